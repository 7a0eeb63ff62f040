"""How long the callbacks of an event loop hold their thread, in processor time: a busy machine does not count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

#: processor time that `_work` takes on the machine that the bound was set on, in seconds
_WORK_S = 0.018


def _work() -> float:
    """Return the processor time, in seconds, of work that is like a callback's: objects made, kept and looked up."""
    began = time.thread_time()
    kept = {number: (number, str(number)) for number in range(100_000)}
    assert sum(len(kept[number][1]) for number in range(100_000)) == 488_890
    return time.thread_time() - began


#: no callback of the service holds its event loop longer, in seconds: 50 ms, and more on a slower machine
MOST_S = 0.05 * max(1.0, min(_work() for _ in range(3)) / _WORK_S)


@dataclass
class Longest:
    """The longest callback so far, and the longest turn of a loop, which does what was ready in it."""

    seconds: float = 0.0
    what: str = ""
    turn_s: float = 0.0


@contextmanager
def longest_callback() -> Iterator[Longest]:
    """Measure all callbacks of all loops of this process."""
    found = Longest()
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        took = time.thread_time() - began
        if took > found.seconds:
            found.seconds, found.what = took, repr(handle)

    turn = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def measured_turn(loop: asyncio.BaseEventLoop) -> None:
        began = time.thread_time()
        turn(loop)
        found.turn_s = max(found.turn_s, time.thread_time() - began)

    asyncio.Handle._run = measured  # type: ignore[method-assign]
    asyncio.BaseEventLoop._run_once = measured_turn  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]
        asyncio.BaseEventLoop._run_once = turn  # type: ignore[attr-defined]
