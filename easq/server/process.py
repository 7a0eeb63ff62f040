"""Settings of the whole process of `easq serve`: garbage collector, memory allocator, open files.

Nothing here is called by an import, or by `Server`: a service inside another program leaves that program as it is.
"""

from __future__ import annotations

import ctypes
import gc
import logging

log = logging.getLogger(__name__)

#: Thresholds of the garbage collector, in new objects. Python's default of 700 is below what 64 concurrent puts
#: allocate, and costs 4 % of the time; 5,000 costs nothing measurable. After 60,000 connections that broke one after
#: the other the process has grown by 1 MiB, as with 700; with (50,000, 20, 50) by 3 KB for each connection.
COLLECT = (5_000, 10, 10)
#: malloc: buffers of at least so many bytes are mapped on their own, and at most so many bytes of other freed memory
#: stay with the process
_MAPPED_BYTES, _TRIM_BYTES = 1024**2, 16 * 1024**2
#: their names in malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def tune_process() -> None:
    """Prepare this process for a service that runs alone in it."""
    gc.freeze()
    gc.set_threshold(*COLLECT)
    _return_freed_memory()
    _open_many_files()


def _return_freed_memory() -> None:
    """Tell the C library of Linux (glibc) to give large buffers back to the system as soon as they are freed.

    By default glibc raises the threshold up to 32 MiB, and keeps freed buffers that lie between smaller allocations.
    After 100 watchers were reset at once in the middle of an item of 8 MiB, the process kept 950 MiB (with SQLite
    2,400 MiB); with these settings 8 MiB. Puts and gets of 256 KiB to 8 MiB do not get slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def _open_many_files() -> None:
    """Raise the limit of open files, and so of connections, to the highest that the system allows."""
    try:
        import resource
    except ImportError:
        return  # no such limit here
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.debug("the limit of open files stays as it is: %s", error)
