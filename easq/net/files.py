"""Reads, writes and locks files that a user names: regular files only, up to a size, replaced atomically.

All functions on files raise OSError. Its `strerror` is the reason; the caller adds the name of the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from easq.errors import ConfigError

#: most symbolic links that are followed to one file: the kernel's limit
_MAX_LINKS = 40


def real_path(path: Path) -> Path:
    """Return `path` with its symbolic links resolved; the result is a regular file, or does not exist yet.

    Raises OSError for a link that belongs to another user: planted in a shared folder such as /tmp, it would make us
    overwrite one of our own files. Raises OSError also for a link of ours to another user's file.
    """
    linked = False
    for _ in range(_MAX_LINKS):
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(status.st_mode):
            require_regular(status)
            if linked and status.st_uid != os.geteuid():
                raise OSError(
                    errno.EPERM,
                    f"it is a symbolic link to a file that belongs to user {status.st_uid}, not to you",
                )
            return path
        if status.st_uid != os.geteuid():
            raise OSError(
                errno.EPERM, f"it is a symbolic link that belongs to user {status.st_uid}, not to you"
            )
        linked, path = True, path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def open_regular(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Return a descriptor of the regular file `path`.

    Raises OSError for everything else without opening it: to open a device can act on it, and to open a FIFO waits for
    its other end.
    """
    try:
        require_regular(os.stat(path, follow_symlinks=not flags & os.O_NOFOLLOW))
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, mode)
    try:
        require_regular(os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_regular(path: str | Path, limit: int, *, follow: bool = True) -> tuple[bytes, os.stat_result]:
    """Return the content of the file `path`, at most `limit` bytes, and its status. The null device counts as empty.

    Raises OSError for a larger file.

    Args:
        follow: whether a symbolic link is followed, whoever it belongs to; else it is refused.
    """
    status = os.stat(path, follow_symlinks=follow)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        return b"", status
    fd = open_regular(path, os.O_RDONLY | (0 if follow else os.O_NOFOLLOW))
    with open(fd, "rb") as file:
        data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
        return data, os.fstat(fd)


def replace(path: Path, data: bytes, *, private: bool = True, sync: bool = True, follow: bool = True) -> None:
    """Replace the file `path` atomically by `data`. After an error the old file is unchanged.

    Args:
        private: set mode 0600; else 0644 less the umask.
        sync: sync the file and its folder before returning.
        follow: write the file behind a symbolic link, as `real_path` resolves it; else replace the link itself.
    """
    if follow or not path.is_symlink():
        path = real_path(path)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o600 if private else 0o644)
    try:
        with open(fd, "wb") as file:
            if private:
                os.fchmod(fd, 0o600)
            file.write(data)
            file.flush()
            if sync:
                os.fsync(fd)
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the entries of the folder to the disk; do nothing where the file system cannot."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def lock(fd: int, *, wait: bool) -> None:
    """Lock the open file or folder `fd` for this process, until it is closed.

    Raises BlockingIOError if another process has the lock and `wait` is false.
    """
    import fcntl  # not for commands that lock nothing

    fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def make_private_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, with mode 0700 for any umask."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        try:
            one.mkdir(mode=0o700)
        except FileExistsError:
            if not one.is_dir():  # if it is, another process has made it meanwhile
                raise
        else:
            one.chmod(0o700)


def exposure(path: str | Path, status: os.stat_result) -> tuple[str, ...]:
    """Return warnings about who else can read or change the file `path`, or can change the folder `path`.

    A folder with the sticky bit, such as /tmp, is accepted: there nobody can remove or rename another user's files.
    """
    mode, warnings = stat.S_IMODE(status.st_mode), []
    folder = stat.S_ISDIR(status.st_mode)
    if not folder and not stat.S_ISREG(status.st_mode):
        return ()
    if status.st_uid != os.geteuid() and not (folder and status.st_uid == 0):
        warnings.append(f"{path} belongs to user {status.st_uid}, not to you")
    if mode & (0o022 if folder else 0o077) and not (folder and mode & stat.S_ISVTX):
        warnings.append(
            f"{path} is open to others (mode {mode:04o}): chmod {'700' if folder else '600'} {path}"
        )
    return tuple(warnings)


def require_regular(status: os.stat_result) -> None:
    """Raise OSError unless `status` describes a regular file."""
    mode = status.st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a folder")
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
    }
    raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'no file')}, not a regular file")


def easq_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """Return the folder `easq` inside the folder that `variable` names, or else inside `below_home` of the home folder.

    Raises ConfigError if no home is known.
    """
    base = Path(environ.get(variable, ""))
    if not base.is_absolute():  # the XDG rule: a relative path is ignored
        home = environ.get("HOME") or os.path.expanduser("~")
        if home == "~":
            raise ConfigError(
                f"no home folder is known: HOME is not set, and user {os.getuid()} has none",
                hint=f"set HOME or {variable}",
            )
        base = Path(home) / below_home
    return base / "easq"
