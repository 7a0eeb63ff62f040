"""What `net/aio.py` relies on; its requests are tested in test_pipeline.py."""

from __future__ import annotations

import sys

import pytest

from easq.net import aio


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_glibc_has_the_parameters_that_are_set() -> None:
    """mallopt returns 1 for a parameter that it knows."""
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(aio._M_MMAP_THRESHOLD, 1024 * 1024) == mallopt(aio._M_TRIM_THRESHOLD, 2 * 1024 * 1024) == 1
