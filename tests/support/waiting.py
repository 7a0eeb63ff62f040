"""Waiting for something to become true, with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: how long anything may take before a test gives up, in seconds; generous, since machines are noisy
PATIENCE_S = 20.0


def eventually(look: Callable[[], T], *, within_s: float = PATIENCE_S) -> T:
    """The first truthy thing that `look` returns; AssertionError with the last thing when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"still {seen!r} after {within_s} s"
        time.sleep(0.01)
    return seen
