"""The programs whose instructions `python -m tests.bench.instructions` counts.

`put` and `work` do `--count` operations on a storage engine, one after the other; `serve` is a service that answers
requests until SIGTERM. Each exits without closing what it opened: only the operations are of interest.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine

from easq.model import NO_INDEX, REQUEST_ID, TS_SOURCE, Consumer, Frame
from easq.storage.base import Limits, Selection, Storage, Subscription
from easq.storage.open import open_storage

#: bytes of an item
_SIZE = 256
#: seconds between two readings of the clock; a put through the service reads it about ten times
_STEP_S = 0.000_02
#: for as long as a program runs, in seconds
_LONG = 3600.0
_INPUT, _SINK, _CONSUMER = "q", "q/sink", Consumer("u", "g")


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock advances by `_STEP_S` at each reading. Under valgrind everything takes 50 times as
    long: by the real clock, timers would fire that much more often for each operation, and not at the same operation
    in each run.
    """

    _reading = 1000.0

    def time(self) -> float:
        self._reading += _STEP_S
        return self._reading


def _frame(number: int) -> Frame:
    tags = {"Header:Content-Type": "text/plain", TS_SOURCE: "1790000000000", REQUEST_ID: f"p{number:09}"}
    return Frame(NO_INDEX, tags, b"x" * _SIZE)


async def _append(storage: Storage, stream: str, number: int) -> None:
    await storage.append(stream, _frame(number), priority=0, limits=Limits())


async def _put(storage: Storage, count: int, polls: int) -> None:
    """Put `count` items, while `polls` long polls wait for request ids that nobody puts."""
    waiting = [
        asyncio.ensure_future(
            storage.wait(_INPUT, Selection(0, {REQUEST_ID: f"r{number}"}), taking=False, timeout_s=_LONG)
        )
        for number in range(polls)
    ]
    await asyncio.sleep(0)
    for number in range(count):
        await _append(storage, _INPUT, number)
    assert not any(poll.done() for poll in waiting)


async def _work(storage: Storage, count: int, items: int) -> None:
    """Push `count` of the `items` in the input to a consumer that puts each one in the sink and commits it."""
    for number in range(items):
        await _append(storage, _INPUT, number)
    loop = asyncio.get_running_loop()
    session = await storage.attach(_INPUT, _CONSUMER, Subscription(window=10), now=loop.time())
    done = 0
    while done < count:
        for lease in (await storage.lease(_INPUT, session, index_only=False))[: count - done]:
            await _append(storage, _SINK, done)
            assert await storage.commit(_INPUT, _CONSUMER.group, [lease.frame.index]) == 1
            done += 1


async def _on_storage(asked: argparse.Namespace) -> None:
    # garbage is not collected: that would begin at another operation in each run, and `serve` has its share
    gc.disable()
    storage = open_storage(asked.storage)
    await storage.start(lambda error: print(error, file=sys.stderr))
    await storage.open(_INPUT)
    await storage.open(_SINK)
    if asked.program == "put":
        await _put(storage, asked.count, asked.polls)
    else:
        await _work(storage, asked.count, asked.items)
    os._exit(0)


def _serve(asked: argparse.Namespace) -> Coroutine[None, None, None]:
    from easq.server.process import tune_process
    from easq.server.server import Server, ServerSettings, serve

    tune_process()
    server = Server(ServerSettings(port=asked.port, storage=asked.storage))

    def ready() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
        print(f"EASQ_URL={server.url()}", flush=True)

    return serve(server, ready)


def main() -> None:
    """Run the program that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.counted", description=__doc__)
    parser.add_argument("program", choices=["put", "work", "serve"])
    parser.add_argument("--storage", required=True)
    parser.add_argument("--count", type=int, default=0, help="operations")
    parser.add_argument("--polls", type=int, default=0, help="long polls that wait meanwhile")
    parser.add_argument("--items", type=int, default=0, help="that are there before the work begins")
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    # a thread that waits for the interpreter's lock asks for it after this time, which is short for valgrind
    sys.setswitchinterval(_LONG)
    program = _serve if asked.program == "serve" else _on_storage
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(program(asked))


if __name__ == "__main__":
    main()
