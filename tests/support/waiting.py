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


#: nothing that is refused waits for anything: what takes longer each time is a hang, in seconds
HANG_S = 1.0


def promptly(act: Callable[[], T]) -> T:
    """What `act` returns. When it took above a second it is done again: a hang is what takes that long every time,
    not whatever a busy machine held up once.
    """
    for _ in range(3):
        began = time.monotonic()
        done = act()
        took_s = time.monotonic() - began
        if took_s <= HANG_S:
            return done
    raise AssertionError(f"a hang: {took_s:.1f} s, three times")
