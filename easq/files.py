"""Files that easq reads and writes for a user: regular files alone, read up to a bound, written whole.

Everything raises OSError, whose `strerror` says in words what is wrong with the file; the caller names the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

#: symbolic links that are followed to one file, as the kernel does
_MAX_LINKS = 40


def real_path(path: Path) -> Path:
    """Return the file that a write to `path` goes to: behind links of this user, and not there yet or a regular file.

    A link that somebody else planted is refused: in a folder that others may write to (/tmp) it would have us
    overwrite a file of our own. So is a link of ours to a file of somebody else's.
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
                    errno.EPERM, f"it is a symbolic link to a file of user {status.st_uid}, not of yours"
                )
            return path
        if status.st_uid != os.geteuid():
            raise OSError(errno.EPERM, f"it is a symbolic link of user {status.st_uid}, not of yours")
        linked, path = True, path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def open_regular(path: str | Path, flags: int, mode: int = 0o600) -> int:
    """Return a descriptor of the regular file `path`. Nothing else is opened: that alone moves some devices, and
    waits for the other end of a FIFO.
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
    """Return what is in the file `path`, at most `limit` bytes, and its status. The null device is an empty file.

    Args:
        follow: a symbolic link is followed, whoever made it.
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
    """Write `data` as the whole of the file `path`, at once: nobody reads a part of it, and a failure leaves the old.

    Args:
        private: mode 0600 whatever the umask, else what the umask leaves.
        sync: it is on the disk afterwards.
        follow: the file behind a symbolic link is written, by the rules of `real_path`; else the link is replaced.
    """
    if follow or not path.is_symlink():
        path = real_path(path)
    draft = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(draft, flags, 0o600 if private else 0o666)
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
    """Put the folder's list of names on the disk, where the file system can do that."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def make_private_folder(folder: Path) -> None:
    """Make `folder` and those above it that are missing; nobody else may enter what was made, whatever the umask."""
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for one in reversed(missing):
        try:
            one.mkdir(mode=0o700)
        except FileExistsError:
            if not one.is_dir():  # else another process made it meanwhile
                raise
        else:
            one.chmod(0o700)


def exposure(path: str | Path, status: os.stat_result) -> tuple[str, ...]:
    """Return warnings that the file or folder `path` is open to others; a file must not be read by them either.

    A folder such as /tmp, in which nobody removes the files of another, is none that others can change.
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
    """Raise OSError unless the status is that of a regular file."""
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
