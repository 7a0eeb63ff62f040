"""Payloads as files of a folder, one file for each item."""

from __future__ import annotations

import os
import re

from easq.errors import StorageError, UsageError
from easq.model import Frame

#: a request id that may be part of a file name
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


class PayloadFolder:
    """A folder for payloads, created if it does not exist.

    A context manager: at its end, the names of the files are synced to the disk.
    """

    def __init__(self, folder: str) -> None:
        """Open the folder. Raises UsageError for a symbolic link, and for a folder that cannot be used."""
        self._folder = folder
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if not os.path.lexists(folder):
                os.mkdir(folder)
            self._fd = os.open(folder.rstrip("/") or "/", flags)
        except OSError as error:
            link = os.path.islink(folder.rstrip("/"))
            raise UsageError(f"{folder}: {'a symbolic link' if link else error.strerror}") from error

    def __enter__(self) -> PayloadFolder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def write(self, frame: Frame) -> str:
        """Write the payload to a new file, synced to the disk, and return its path.

        Raises UsageError for a file that exists, and StorageError if it cannot be written.
        """
        name = file_name(frame)
        path = os.path.join(self._folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o666, dir_fd=self._fd)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
        try:
            with open(fd, "wb") as file:
                file.write(frame.data)
                file.flush()
                os.fsync(fd)
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}") from error
        return path


def file_name(frame: Frame) -> str:
    """Return INDEX-REQUESTID, or only INDEX if the request id is not safe as a file name."""
    if _SAFE_ID.fullmatch(frame.request_id):
        return f"{frame.index}-{frame.request_id}"
    return str(frame.index)
