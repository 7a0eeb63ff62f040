"""Checks who may use the data file: kind, links, mode and owner of the file, of the files beside it, and of their
folder.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from easq.errors import StorageError
from easq.net import files

log = logging.getLogger(__name__)

#: what to do where a file cannot be used
ANOTHER_FILE = "name another file with --storage sqlite:PATH"
#: suffixes of the files beside the data file (see `data_file`)
_BESIDE = ("-wal", "-shm", ".lock", ".new", ".failed", ".copied", ".ballast", ".v1")


def make_folder(folder: Path) -> None:
    """Create the folder if it does not exist. Raises StorageError."""
    try:
        files.make_private_folder(folder)
    except OSError as error:
        raise StorageError(
            f"the folder {folder} cannot be made: {error.strerror}", hint=ANOTHER_FILE
        ) from error


def check_kinds(data_file: Path) -> None:
    """Raise StorageError when the file, or one beside it, is not a regular file or has several hard links."""
    for suffix in ("", *_BESIDE):
        path = Path(f"{data_file}{suffix}")
        try:
            status = os.lstat(path)
            files.require_regular(status)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        if status.st_nlink > 1 and suffix in {"", "-wal"}:
            raise StorageError(
                f"{path} has {status.st_nlink} names (hard links), but its log and lock belong to one name only",
                hint=f"remove the others (find / -samefile {path}), or use a copy of the file",
            )


def close_to_others(data_file: Path) -> None:
    """Set mode 0600 on the file and those beside it. Log a warning for each change, and for what stays exposed."""
    for suffix in ("", *_BESIDE):
        path = Path(f"{data_file}{suffix}")
        if not path.exists():
            continue
        status = path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            path.chmod(0o600)
            log.warning("%s was open to others (mode %04o): set to 0600", path, status.st_mode & 0o7777)
            status = path.stat()
        for warning in files.exposure(path, status):
            log.warning("%s", warning)
    for warning in files.exposure(data_file.parent, data_file.parent.stat()):
        log.warning("%s", warning)


def require_access(path: Path, mode: int) -> None:
    """Raise StorageError unless `path` can be used as `mode` says, or does not exist."""
    bits = {os.R_OK: "readable", os.W_OK: "writable", os.X_OK: "searchable"}
    missing = [
        word
        for bit, word in bits.items()
        if mode & bit and not os.access(path, bit, effective_ids=os.access in os.supports_effective_ids)
    ]
    if not missing or not path.exists():
        return
    status, user = path.stat(), os.geteuid()
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        reason, hint = "its file system is mounted read-only", "mount it for writing, or"
    elif status.st_uid == user:
        reason = f"its mode is {status.st_mode & 0o7777:04o}"
        hint = f"chmod {'u+rwx' if mode & os.X_OK else 'u+rw'} {path}, or"
    else:
        reason = f"its mode is {status.st_mode & 0o7777:04o}, and it belongs to user {status.st_uid}, not to {user}"
        hint = f"run easq as user {status.st_uid}, change its owner, or"
    raise StorageError(f"{path} is not {' and not '.join(missing)}: {reason}", hint=f"{hint} {ANOTHER_FILE}")
