"""The service is killed with `kill -9` at random moments, again and again, on one data folder, under load."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.reliability.check import figures, violations
from tests.reliability.load import Load, commit
from tests.reliability.oplog import Log, read
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.process import Service
from tests.support.websocket import watch

PUTTERS = 32
#: kills in the test command, and in the longer one
FEW, MANY = 6, int(os.environ.get("EASQ_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("EASQ_SEED", "20240601"))


def drain(log: Log, stream: Stream) -> None:
    """All that is left is delivered to a consumer with room for it, and committed in large steps."""
    me = stream.as_consumer("drain")
    left = stream.length()
    log.add("open", connection="drain", window=10_000)
    with watch(me, _window_=10_000) as watching, Connection(stream.port) as committing:
        batch: list[int] = []
        for number in range(left):
            item = watching.next()
            log.add("deliver", index=item.index, payload=item.data.decode(), connection="drain")
            batch.append(item.index)
            if len(batch) == 1000 or number == left - 1:
                commit(log, committing, me, batch)
                batch = []
        assert watching.has_no_more(0.5)


@dataclass(frozen=True)
class Outcome:
    """The result of a run under kills."""

    violations: list[str]
    figures: dict[str, int]
    ready_s: list[float]


def run_under_kills(service: Service, folder: Path, rounds: int, seed: int) -> Outcome:
    """`rounds` times: the clients work for a random while, the service is killed, and is started again."""
    chance = random.Random(seed)
    folder.mkdir()
    nemesis = Log(folder, "nemesis")
    load = Load(folder)
    ready: list[float] = []
    for number in range(PUTTERS):
        load.start(f"p{number}", load.put_on(f"p{number}", keyed=number % 2 == 1))
    load.start("w0", load.watch_on("w0"))
    load.start("w1", load.watch_on("w1", quiet_s=0.05))
    try:
        for _ in range(rounds):
            load.point_at(service)
            load.over.wait(chance.uniform(0.2, 1.2))
            nemesis.add("kill")
            service.kill()
            load.up.clear()
            service.start()
            ready.append(service.seconds_to_ready)
    finally:
        load.stop()
    assert load.failures == []
    try:
        drain(nemesis, service.stream())
    finally:
        nemesis.close()
    history = read(folder)
    return Outcome(violations(history), figures(history), ready)


@pytest.mark.parametrize("rounds", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_nothing_is_lost_reused_or_repeated_when_the_service_is_killed(
    serve: Serve, tmp_path: Path, record_property: Callable[[str, object], None], rounds: int
) -> None:
    """No acknowledged put is lost, no index is given twice, no committed item comes back, the window holds.

    Half of the putters send again what was not answered, with a key: it is there once.

    `EASQ_SEED` and `EASQ_KILL_ROUNDS` change the course and the length; the logs stay in the test's folder.
    """
    service = serve("--leave-grace", "0s")
    outcome = run_under_kills(service, tmp_path / "oplog", rounds, SEED)
    counted = outcome.figures | {"seed": SEED, "slowest start in ms": round(max(outcome.ready_s) * 1000)}
    for name, value in counted.items():
        record_property(name, value)
    print(counted)
    found = outcome.violations
    assert found == [], f"{len(found)} violations, seed {SEED}, logs in {tmp_path}: {found[:5]}"
    assert service.stream().length() == 0
    assert service.terminate() == 0, service.log.read_text()
    assert counted["kills"] == rounds
    assert counted["puts acknowledged"] > 20 * rounds
    assert counted["commits acknowledged"] > rounds
    assert max(outcome.ready_s) < 10, "a start should take 2 s; this is five times that"


@pytest.mark.long
@pytest.mark.parametrize(
    ("bug", "complaint"),
    [
        ("acknowledged-before-stored", "lost: "),
        ("last-index-forgotten", "reused: "),
        ("commits-forgotten", "back after its commit: "),
        ("window-one-too-large", "above the window: "),
    ],
)
def test_a_service_with_a_planted_bug_is_caught(
    serve: Serve, tmp_path: Path, bug: str, complaint: str
) -> None:
    """The same run, shorter, over a service that breaks one promise: the checker names that promise."""
    service = serve("--leave-grace", "0s", program=("tests.reliability.planted", bug))
    outcome = run_under_kills(service, tmp_path / "oplog", 3, SEED)
    assert [found for found in outcome.violations if found.startswith(complaint)], outcome


def test_what_a_service_had_acknowledged_when_it_was_killed_is_there_again(serve: Serve) -> None:
    """One of everything: items with tags and priorities, a commit, a delete, a group's half-way state, the end mark."""
    service = serve()
    queue = service.stream()
    first, second = queue.as_consumer("u", "one"), queue.as_consumer("u", "two")
    for number in range(6):
        queue.put(str(number).encode(), kind=number % 2, _priority_=number // 4)
    with watch(first, _window_=6) as watching, watch(second, _window_=1) as other:
        assert watching.indexes(6) == [5, 6, 1, 2, 3, 4]
        assert other.indexes(1) == [5]
        first.commit(1, 2)
        queue.delete(3)
        queue.sink.put(b"result", requestId="r")
        queue.ask("POST", (), b"", _eos_="true")
        before = queue.get(_length_=99)
        service.restart()
    queue = service.stream()
    assert queue.get(_length_=99) == before
    assert queue.attributes()["meta.state"] == "End"
    assert [item.data for item in queue.sink.get(requestId="r")] == [b"result"]
    with watch(queue.as_consumer("x", "one")) as watching:
        again = watching.take(3)
        assert [item.index for item in again] == [5, 6, 4]
    with watch(queue.as_consumer("x", "two")) as watching:
        assert watching.indexes(5) == [5, 6, 1, 2, 4]
    queue.ask("POST", (), b"", _eos_="false")
    assert queue.put() == 7


def test_a_key_is_remembered_when_the_item_is_gone_and_the_service_was_killed(serve: Serve) -> None:
    """A put that is sent again has the answer of the first time, and stores nothing; another body is 422."""
    service = serve()
    key = [("Idempotency-Key", "once")]
    first = service.stream().ask("POST", key, b"payload")
    assert first.header("X-Easq-Duplicate") is None
    for _ in range(2):
        again = service.stream().ask("POST", key, b"payload")
        assert (again.status, again.body, again.header("X-Easq-Duplicate")) == (200, first.body, "1")
        name = "X-Eas-Queueservice-Request-Id"
        assert again.header(name) == first.header(name)
        assert service.stream().ask("POST", key, b"another").status == 422
        service.stream().commit(1)
        assert service.stream().length() == 0
        service.restart()
    assert service.stream().sink.ask("POST", key, b"payload").header("X-Easq-Duplicate") is None
    assert service.stream().put() == 2


def test_an_item_out_of_deliveries_waits_in_the_rear_also_after_a_kill(serve: Serve) -> None:
    """The item is not in the queue, its copy is complete, and the sink has an answer."""
    service = serve("--max-delivery", "2", "--leave-grace", "0s")
    queue = service.stream().as_consumer("u")
    queue.put(b"poison", requestId="r", task="7")
    with watch(queue, _window_=1) as watching:
        for _ in range(2):
            assert watching.next().data == b"poison"
            queue.negative(1, code="500", reason="no luck")
        assert watching.has_no_more(0.5)
    service.restart()
    queue = service.stream()
    assert queue.length() == 0
    (told,) = queue.sink.get(requestId="r")
    assert (told.data, told.tags["lastCode"], told.tags["task"]) == (b"no luck", "500", "7")
    rear = [("X-EAS-QueueService-Access-Rear", "true"), PROTOBUF]
    (copy,) = queue.ask("GET", rear, _raw_="false", _auto_delete_="false").items
    assert (copy.data, copy.tags["task"], copy.tags["lastReason"]) == (b"poison", "7", "no luck")


def test_a_start_takes_little_longer_with_many_items(
    serve: Serve, record_property: Callable[[str, object], None]
) -> None:
    """Ten thousand items are there again in seconds, and the next put goes on where they end."""
    service = serve()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(Connection(service.port)) for _ in range(100)]
        for connection in connections:
            for _ in range(100):
                connection.send_request("POST", service.stream().path, (), b"x" * 100)
        for connection in connections:
            for _ in range(100):
                assert connection.read_answer().status == 200
    began = time.monotonic()
    service.restart()
    took_s = time.monotonic() - began
    record_property("restart with 10,000 items in ms", round(took_s * 1000))
    assert service.stream().length() == 10_000
    assert service.stream().put() == 10_001
    assert took_s < 15


@pytest.mark.parametrize("times", [3])
def test_an_orderly_stop_under_load_loses_nothing_and_exits_0(
    serve: Serve, tmp_path: Path, times: int
) -> None:
    """SIGTERM: what was acknowledged is there after the next start, and only unanswered puts are in doubt."""
    folder = tmp_path / "oplog"
    folder.mkdir()
    nemesis = Log(folder, "nemesis")
    service = serve("--leave-grace", "0s")
    load = Load(folder)
    for number in range(8):
        load.start(f"p{number}", load.put_on(f"p{number}"))
    load.start("w0", load.watch_on("w0"))
    try:
        for _ in range(times):
            load.point_at(service)
            load.over.wait(0.4)
            load.up.clear()
            nemesis.add("kill")
            assert service.terminate() == 0, service.log.read_text()
            service.start()
    finally:
        load.stop()
    assert load.failures == []
    drain(nemesis, service.stream())
    nemesis.close()
    assert violations(read(folder)) == []
