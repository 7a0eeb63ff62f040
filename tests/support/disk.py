"""A small disk: a file system in memory, for what happens when it is full."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Path]:
    """`folder` is a disk of that size; the test is skipped where one cannot be mounted."""
    if error := mount(folder, mib << 20):
        if os.environ.get("CI") and os.geteuid() == 0:
            pytest.fail(error)
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        unmount(folder)


def mount(folder: Path, size: int, *, under: Sequence[str] = ()) -> str:
    """Make `folder` a disk of `size` bytes, and return what `mount` says if that fails. `under` runs `mount`."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        [*under, "mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    return mounted.stderr.strip() or "mount failed" if mounted.returncode else ""


def unmount(folder: Path) -> None:
    """Remove the small disk."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, mib: int) -> None:
    """The small disk has this size from now on."""
    subprocess.run(["mount", "-o", f"remount,size={mib}m", str(folder)], check=True)


def use_up(path: Path) -> None:
    """Write a file until its disk has no room at all."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))
