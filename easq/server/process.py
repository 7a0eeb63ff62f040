"""Settings of the whole process of `easq serve`: garbage collector, memory allocator, open files.

Neither an import nor `Server` calls these functions: a service inside another program does not change that program.
"""

from __future__ import annotations

import ctypes
import gc
import logging

log = logging.getLogger(__name__)

#: thresholds of the garbage collector, in new objects. 64 concurrent puts allocate more than Python's default of 700,
#: which costs 4 % of the time; 5,000 costs nothing measurable. After 60,000 broken connections the process had grown by
#: 1 MiB, with 700 as with 5,000. With (50,000, 20, 50) it had grown by 3 KB for each connection.
COLLECT = (5_000, 10, 10)
#: settings of malloc in bytes: the smallest buffer that gets a mapping of its own, and the most freed memory that the
#: process keeps
_MAPPED_BYTES, _TRIM_BYTES = 1024**2, 16 * 1024**2
#: numbers of these two settings in malloc.h
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
    100 watchers were reset at once in the middle of an item of 8 MiB: the process then kept 950 MiB (with SQLite 2,400
    MiB), and 8 MiB with these settings. Puts and gets of 256 KiB to 8 MiB are as fast as before.
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
