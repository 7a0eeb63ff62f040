"""What may stand under a file's name and is no regular file, made in a temporary folder."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

#: minor numbers of the memory devices of Linux
NULL, ZERO = 3, 5


def make_device(path: Path, minor: int = NULL) -> None:
    """Make a device of our own at `path`; the test is skipped where that is not allowed."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        pytest.skip(f"no device can be made: {error.strerror}")


def make_socket(path: Path) -> None:
    """Make a socket at `path`, which nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


#: kind -> how it is made
NODES: Mapping[str, Callable[[Path], None]] = {
    "device": make_device,
    "FIFO": os.mkfifo,
    "folder": os.mkdir,
    "socket": make_socket,
}


def look(path: Path) -> tuple[int, int]:
    """Return what stands at `path`: its kind and mode, and which device it is."""
    status = os.lstat(path)
    return status.st_mode, status.st_rdev
