"""The engines of `serve --model` in this process: results, failures, cost, and their stop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from easq.model import Attributes, Consumer, Frame
from easq.models.base import Answer, ModelFailed
from easq.models.command import Exec
from easq.models.open import Echo
from easq.protocol import operations as op
from easq.server.engine import Engine
from easq.server.queue import Clock, QueuePolicy
from easq.server.queues import Pair, Queues
from easq.server.server import Server
from easq.storage.base import Limits, Subscription, Timing
from easq.storage.memory import MemoryStorage
from tests.conftest import OpenCloud
from tests.emulator.test_instance import MakeUpstream
from tests.models.test_models import Handler, upstream
from tests.support.http import Stream
from tests.support.platform import Cloud
from tests.support.waiting import eventually
from tests.support.websocket import Refused, Watch

__all__ = ["upstream"]  # the fixture is used by name

#: failed items are redelivered at once
AT_ONCE = Timing(backoff_s=(0.0,))


def begun(made: Cloud) -> Cloud:
    """Return the service with its engines running."""

    async def start(server: Server) -> None:
        server.start_engines()

    made.do(start)
    return made


def sink(made: Cloud) -> Stream:
    return made.stream("/api/predict/q/sink")


def answered(made: Cloud, count: int = 1) -> list[tuple[str, bytes]]:
    """Return request id and data of `count` answers, once they are there."""
    eventually(lambda: sink(made).length() == count)
    return [(item.request_id, item.data) for item in sink(made).get(_length_=count, _auto_delete_="false")]


def test_200_idle_queues_have_no_threads_and_cost_nothing(cloud: OpenCloud) -> None:
    """In an earlier version each engine had nine threads that woke up ten times a second."""
    made = cloud("exec:cat", queues=["q", *(f"q{number}" for number in range(199))])
    before = threading.active_count()
    begun(made)

    async def thread_s(_: Server) -> float:
        return time.thread_time()

    eventually(lambda: "consumers.list.[0]" in made.stream("/api/predict/q198").attributes())
    began_s = made.do(thread_s)
    time.sleep(1.0)
    assert made.do(thread_s) - began_s < 0.1
    assert threading.active_count() == before
    made.stream("/api/predict/q7").put(b"x")
    eventually(lambda: made.stream("/api/predict/q7/sink").length() == 1)


def test_an_answer_is_in_the_sink_under_the_request_id_of_its_item(cloud: OpenCloud) -> None:
    """It has the tags of the item, and the content type of the answer."""
    made = begun(cloud())
    made.queue.put(b"{}", [("Content-Type", "application/json")], requestId="r", mine="1")
    eventually(lambda: sink(made).length() == 1)
    (item,) = sink(made).get()
    assert (item.request_id, item.data, item.tags["mine"]) == ("r", b"{}", "1")
    assert item.tags["Header:Content-Type"] == "application/json"
    eventually(lambda: made.queue.length() == 0)


def test_an_empty_answer_and_one_that_is_too_large_are_as_with_a_worker(
    cloud: OpenCloud, tmp_path: Path
) -> None:
    script = tmp_path / "model.sh"
    script.write_text("x=$(cat); [ $x = empty ] || head -c 2000 /dev/zero")
    made = begun(cloud(f"exec:sh {script}", sink_policy=QueuePolicy(max_payload=1000)))
    made.queue.put(b"empty")
    eventually(lambda: made.queue.length() == 0)
    assert sink(made).length() == 0
    made.queue.put(b"large", requestId="r")
    eventually(lambda: sink(made).length() == 1)
    (item,) = sink(made).get()
    assert (item.request_id, item.tags["lastCode"]) == ("r", "413")
    assert (
        item.tags["lastReason"]
        == "the result is too large: the payload has 2000 bytes, an item may have 1000"
    )


def test_an_answer_that_never_ends_is_too_large_at_once(
    cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "model.sh"
    script.write_text(f"echo call >> {tmp_path}/calls; exec yes")
    monkeypatch.setattr(Exec.__init__, "__kwdefaults__", {"max_answer": 1000})
    made = begun(cloud(f"exec:sh {script}"))
    made.queue.put(b"x", requestId="r")
    eventually(lambda: sink(made).length() == 1)
    (item,) = sink(made).get()
    assert (item.request_id, item.tags["lastCode"]) == ("r", "413")
    assert item.tags["lastReason"] == "the result is too large: the answer is above 1000 bytes"
    eventually(lambda: made.queue.length() == 0)
    assert (tmp_path / "calls").read_text() == "call\n"


def test_a_full_sink_holds_answers_until_there_is_room(cloud: OpenCloud) -> None:
    """The engine has at most a window of items in flight, and loses none."""
    made = begun(cloud(sink_policy=QueuePolicy(limits=Limits(max_items=1))))
    for number in range(10):
        made.queue.put(b"%d" % number)
    taken: list[bytes] = []

    def drained() -> bool:
        taken.extend(item.data for item in sink(made).get(_auto_delete_="true"))
        return len(taken) == 10

    eventually(drained)
    assert sorted(taken) == [b"%d" % number for number in range(10)]
    eventually(lambda: made.queue.length() == 0)


def test_an_item_that_fails_is_given_up_and_answered(cloud: OpenCloud) -> None:
    """An error of the service itself counts too. The answer does not describe it."""
    made = begun(cloud("exec:sh -c 'echo no luck >&2; exit 3'", timing=AT_ONCE))
    made.queue.put(b"x", requestId="r")
    assert answered(made) == [("r", b"no luck")]


def test_a_bug_fails_the_item_and_no_other(cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(self: Echo, call: object, *, timeout_s: float) -> None:  # noqa: ARG001
        raise RuntimeError("canary")

    with monkeypatch.context() as patch:
        patch.setattr(Echo, "answer", answer)
        made = begun(cloud(timing=AT_ONCE))
        made.queue.put(b"x", requestId="r")
        assert answered(made) == [("r", b"internal error")]
    made.queue.put(b"y", requestId="s")
    assert answered(made, 2)[1] == ("s", b"y")


def test_a_busy_model_fails_no_item_and_is_asked_about_one_at_a_time(
    cloud: OpenCloud, upstream: MakeUpstream
) -> None:
    """A model that starts answers 503 for longer than five deliveries take. All items are answered in the end."""
    state = {"calls": 0, "now": 0, "most": 0}
    lock = threading.Lock()

    def reply(request: Handler) -> None:
        with lock:
            state["calls"] += 1
            state["now"] += 1
            after_first = state["calls"] > 5
            state["most"] = max(state["most"], state["now"]) if after_first else 0
            busy = state["calls"] <= 6
        time.sleep(0.05)
        with lock:
            state["now"] -= 1
        if busy:
            request.send_response(503)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            request.answer(b"done")

    made = begun(cloud(upstream(reply).url, policy=QueuePolicy(max_failures=1)))
    for number in range(5):
        made.queue.put(b"x", requestId=f"r{number}")
    eventually(lambda: state["calls"] >= 7)
    assert state["most"] == 1
    assert {data for _, data in answered(made, 5)} == {b"done"}


def test_a_command_that_goes_and_comes_back_fails_no_item(cloud: OpenCloud, tmp_path: Path) -> None:
    command = tmp_path / "command"

    def install() -> None:
        command.write_text("#!/bin/sh\ncat\n")
        command.chmod(0o700)

    install()
    made = begun(cloud(f"exec:{command}", policy=QueuePolicy(max_failures=1)))
    command.unlink()
    made.queue.put(b"x", requestId="r")
    eventually(lambda: "Pending: 1" not in made.queue.attributes()["consumers.list.[0]"])
    install()
    assert answered(made) == [("r", b"x")]


def test_an_ended_stream_is_worked_on_again_once_it_is_opened(cloud: OpenCloud) -> None:
    made = begun(cloud())
    for undo in ("true", "false"):
        made.queue.ask("POST", (), b"", _eos_=undo)
    made.queue.put(b"x", requestId="r")
    assert answered(made) == [("r", b"x")]


@pytest.mark.parametrize("model", ["exec:sleep 1000", "http"])
def test_items_in_flight_are_returned_without_a_failure_when_the_service_stops(
    cloud: OpenCloud,
    upstream: MakeUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
) -> None:
    """They are returned after the grace period, and the next service processes them."""
    monkeypatch.setattr("easq.server.engine._GRACE_S", 0.1)
    hold = threading.Event()

    def wait(request: Handler) -> None:
        hold.wait()
        request.close_connection = True

    storage = f"sqlite:{tmp_path / 'easq.db'}"
    made = begun(cloud(upstream(wait).url if model == "http" else model, storage=storage))
    made.queue.put(b"x", requestId="r")
    eventually(lambda: "Pending: 1" in made.queue.attributes().get("consumers.list.[0]", ""))
    made.stop()
    hold.set()
    again = begun(cloud(storage=storage, policy=QueuePolicy(max_failures=1)))
    assert answered(again) == [("r", b"x")]


def test_the_name_of_an_engine_is_not_taken_while_it_lives(
    cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heartbeats protect the name, though it has no connection."""
    monkeypatch.setattr("easq.server.engine._HEARTBEAT_S", 0.05)
    monkeypatch.setattr("easq.server.queue.ALIVE_S", 1.0)
    monkeypatch.setattr("easq.server.queue.TAKEOVER_WAIT_S", 1.5)
    made = begun(cloud())
    eventually(lambda: "consumers.list.[0]" in made.queue.attributes())
    me = made.queue.as_consumer("model-0", group="q")
    with pytest.raises(Refused) as refused:
        Watch(made.port, f"{me.path}?_watch_=true", me.headers)
    assert refused.value.answer.status == 409


async def _engine_on(
    storage: MemoryStorage, call: Callable[[Frame, float], Awaitable[Answer]]
) -> tuple[Engine, Pair]:
    """Return one engine on the queue `q`, in this event loop."""
    await storage.start(lambda _: None)
    clock = Clock(asyncio.get_running_loop().time, lambda: int(time.time() * 1000))
    queues = Queues(storage, ["q"], policy=QueuePolicy(), sink_policy=QueuePolicy(), clock=clock)
    await queues.open()
    return Engine(queues.pairs["q"], "u", call, 30.0), queues.pairs["q"]


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


def test_an_item_that_fails_after_its_connection_was_replaced_is_returned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The new session has delivered it again, so this engine returns it."""
    monkeypatch.setattr("easq.server.engine._RECONNECT_S", 0.05)
    consumer = Consumer("q", "u")

    async def main() -> None:
        calls: list[int] = []
        may_fail = asyncio.Event()

        async def call(frame: Frame, _: float) -> Answer:
            calls.append(frame.index)
            if len(calls) == 1:
                await may_fail.wait()
                raise ModelFailed("no", status=400)
            return Answer(b"done")

        storage = MemoryStorage(AT_ONCE)
        engine, pair = await _engine_on(storage, call)
        running = asyncio.create_task(engine.run())
        await pair.input.put(op.Put(b"x", {}))
        await _until(lambda: calls == [1])
        now = asyncio.get_running_loop().time()
        session = await storage.attach("q", consumer, Subscription(5), now=now)  # takes over the name
        await storage.detach("q", session, lost=False, now=now)
        async with asyncio.timeout(20):
            while (place := await storage.locate("q", "q", 1)) is None or place.owner != "u":
                await asyncio.sleep(0.01)
        may_fail.set()
        async with asyncio.timeout(20):
            while (await pair.input.attributes())["stream.length"] != "0":
                await asyncio.sleep(0.01)
        assert calls == [1, 1]
        running.cancel()
        await storage.close()

    asyncio.run(main())


def test_an_item_that_comes_again_while_its_failure_is_reported_is_in_flight() -> None:
    """Stopping the engine waits for the item."""

    async def main() -> None:
        calls: list[int] = []
        may_answer, may_report = asyncio.Event(), asyncio.Event()

        async def call(frame: Frame, _: float) -> Answer:
            calls.append(frame.index)
            if len(calls) == 1:
                raise ModelFailed("no", status=503, busy=True, retry_after_s=0.0)
            await may_answer.wait()
            return Answer(b"done")

        storage = MemoryStorage(AT_ONCE)
        engine, pair = await _engine_on(storage, call)
        attributes = pair.input.attributes

        async def late_attributes() -> Attributes:
            await may_report.wait()
            return await attributes()

        pair.input.attributes = late_attributes  # type: ignore[method-assign]
        running = asyncio.create_task(engine.run())
        await pair.input.put(op.Put(b"x", {}))
        await _until(lambda: calls == [1, 1])
        may_report.set()
        await _until(lambda: len(engine.stop()) == 1)
        await asyncio.sleep(0)
        (task,) = engine.stop()
        may_answer.set()
        await asyncio.wait_for(task, 20)
        assert (await attributes())["stream.length"] == "0"
        running.cancel()
        await storage.close()

    asyncio.run(main())
