"""Time: the wall clock may jump by a day, and a working client need not answer pings.

Each rule is a function. It runs on the real service, and on a service with a planted bug that breaks the rule.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from aiohttp import WSMsgType

from easq.server import server, watch
from easq.server.queue import Clock
from easq.server.subscriber import Subscriber
from easq.server.watch import Liveness
from easq.storage.base import Timing
from tests.server.conftest import Open
from tests.support.protobuf import read_item
from tests.support.websocket import BINARY, PING, PONG, Refused
from tests.support.websocket import watch as watch_stream

DAY_S = 86_400.0


class Wall:
    """The wall clock of the service, which a test can set."""

    def __init__(self) -> None:
        self.jumped_s = 0.0

    def time(self) -> float:
        return time.time() + self.jumped_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    clock = Wall()
    monkeypatch.setattr(server, "time", SimpleNamespace(time=clock.time))
    return clock


def nothing_happens_when_the_wall_clock_jumps(start: Open, wall: Wall, jump_s: float) -> None:
    """No watcher is dropped as silent, and no item is redelivered or released. Only new tags have the new time."""
    queue = start(timing=Timing(leave_grace_s=3600, group_retention_s=3600)).queue
    me = queue.as_consumer("u")
    queue.put(b"before")
    with watch_stream(queue.as_consumer("away", "absent"), _window_=1) as gone:
        assert gone.indexes(1) == [1]
    with watch_stream(me, _window_=2) as watching:
        assert watching.indexes(1) == [1]
        wall.jumped_s = jump_s
        with pytest.raises(Refused) as refused:
            watch_stream(me).connection.close()
        assert refused.value.answer.status == 409
        queue.put(b"after")
        assert watching.indexes(1) == [2]
        me.commit(1, 2)
        # the absent group still holds both
        assert queue.length() == 2
        first, second = queue.get(_length_=2, _auto_delete_="false")
        moved_s = (int(second.tags["ts@source"]) - int(first.tags["ts@source"])) / 1000
        assert abs(moved_s - jump_s) < 3600


@pytest.mark.parametrize("jump_s", [DAY_S, -DAY_S, 3600.0])
def test_nothing_happens_when_the_wall_clock_jumps(start: Open, wall: Wall, jump_s: float) -> None:
    nothing_happens_when_the_wall_clock_jumps(start, wall, jump_s)


def test_rules_on_the_wall_clock_are_caught(start: Open, wall: Wall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: every rule uses the wall clock."""

    def on_the_wall(_: Callable[[], float], wall_ms: Callable[[], int]) -> Clock:
        return Clock(lambda: wall_ms() / 1000, wall_ms)

    monkeypatch.setattr(server, "Clock", on_the_wall)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        nothing_happens_when_the_wall_clock_jumps(start, wall, DAY_S)


def a_client_that_pings_and_never_answers_pings_stays(start: Open) -> None:
    """The Python SDK does so while the application works on an item."""
    queue = start(liveness=Liveness(silent_after_s=0.6)).queue
    with watch_stream(queue.as_consumer("u"), _window_=1) as watching:
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            watching.send(PING, b"ping")
            while watching.read().opcode != PONG:
                pass
            time.sleep(0.02)  # between two pings
        queue.put()
        while (frame := watching.read()).opcode in {PING, PONG}:
            pass
        assert frame.opcode == BINARY
        assert read_item(frame.payload).index == 1


def test_a_client_that_pings_and_never_answers_pings_stays(start: Open) -> None:
    a_client_that_pings_and_never_answers_pings_stays(start)


@pytest.fixture
def only_pongs_count_as_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted bug: a watcher that has not answered a ping in time is dropped, even if it sends other messages."""

    async def listen(self: watch._WebSocketTransport, _subscriber: Subscriber) -> bool:
        loop = asyncio.get_running_loop()
        answered = loop.time()
        while True:
            left = answered + self._liveness.silent_after_s - loop.time()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    message = await self.response.receive()
            except TimeoutError:
                return True
            if message.type in {WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR, WSMsgType.CLOSE}:
                return True
            if message.type is WSMsgType.PING:
                await self.response.pong(message.data)
            elif message.type is WSMsgType.PONG:
                answered = loop.time()

    monkeypatch.setattr(watch._WebSocketTransport, "_listen", listen)


@pytest.mark.usefixtures("only_pongs_count_as_signs_of_life")
def test_a_service_that_insists_on_pongs_is_caught(start: Open) -> None:
    with pytest.raises((AssertionError, EOFError, OSError)):
        a_client_that_pings_and_never_answers_pings_stays(start)
