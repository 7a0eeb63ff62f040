"""Engines that die at random moments and at the critical points: each input has one result, stored before the input is
committed.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.classifier import Classifier
from tests.conftest import Serve
from tests.models.test_models import Handler, Reply, Upstream, upstream
from tests.reliability.check import committed_without_a_result, results_differ
from tests.reliability.oplog import Event, read
from tests.support.http import PROTOBUF, Connection
from tests.support.process import Service
from tests.support.waiting import eventually
from tests.support.working import Working, classifier, working

__all__ = ["upstream"]  # the fixture is used by name

SEED = int(os.environ.get("EASQ_SEED", "20240601"))
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of the real model."""
    with classifier() as url:
        yield url


def question(number: int) -> bytes:
    """Each has another answer."""
    return json.dumps([{"mean radius": 6 + number / 50}]).encode()


def put_all(
    service: Service, count: int, *, is_time: Callable[[int], bool] = lambda _: True
) -> dict[str, bytes]:
    """Put `count` inputs at their times; return request id -> the right answer."""
    wanted, right = {}, Classifier()
    stream = service.stream()
    with Connection(service.port) as connection:
        for number in range(count):
            eventually(lambda: is_time(number), within_s=120)  # noqa: B023
            body = question(number)
            target = stream.target(requestId=f"r-{number}")
            assert connection.ask("POST", target, (), body).status == 200
            wanted[f"r-{number}"] = right.answer(body)
    return wanted


def results(service: Service) -> list[tuple[str, bytes]]:
    """Return the items of the sink once every input is processed."""
    eventually(lambda: service.stream().length() == 0, within_s=120)
    return [(item.request_id, item.data) for item in service.stream().sink.get(_length_=10_000)]


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    complaints: list[str]
    events: list[Event]
    answers: int
    runs: int  # calls of the model that came to an end


def run_under_kills(serve: Serve, folder: Path, model: str, *, items: int, kills: int, seed: int) -> Outcome:
    """Three workers, each killed so many times at a random moment, and started again under its own name. Some
    items are put for each kill, so that there is something under way each time.
    """
    service = serve("--max-delivery", "0", "--leave-grace", "0s", program=_observed(folder))
    failures: list[BaseException] = []
    over = threading.Event()
    killed: list[str] = []

    def suffer(user: str) -> None:
        chance = random.Random(f"{seed} {user}")
        try:
            for round_number in range(kills + 1):
                worker = Working(service, "--forward", model, user=user)
                try:
                    worker.wait_until_watching()
                    over.wait(chance.uniform(0.0, 0.6) if round_number < kills else 120)
                finally:
                    worker.kill()
                    killed.append(user)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=suffer, args=(f"w{number}",)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        wanted = put_all(
            service, items, is_time=lambda number: number < items * (len(killed) + 1) / (3 * kills)
        )
        found = results(service)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    events = read(folder)
    complaints = results_differ(wanted, found) + committed_without_a_result(events)
    return Outcome(complaints, events, len(found), sum(event.f == "answer" for event in events))


def _observed(folder: Path) -> tuple[str, str]:
    return ("tests.reliability.observed", str(folder))


@pytest.mark.parametrize(
    ("items", "kills"),
    [
        pytest.param(300, 2, id="a short run"),
        pytest.param(1000, 10, id="a thousand items", marks=pytest.mark.long),
    ],
)
def test_each_input_has_one_result_whoever_dies(
    serve: Serve, tmp_path: Path, model: str, record_property: Record, items: int, kills: int
) -> None:
    """Equal to what the model gives, and stored before its input is committed. `EASQ_SEED` changes the course."""
    began = time.monotonic()
    outcome = run_under_kills(serve, tmp_path / "oplog", model, items=items, kills=kills, seed=SEED)
    record_property("items, kills, seed", f"{items}, {3 * kills}, {SEED}")
    record_property("answers put again after a kill", outcome.runs - items)
    record_property("seconds", round(time.monotonic() - began))
    found = outcome.complaints
    assert found == [], f"{len(found)} complaints, logs in {tmp_path}: {found[:5]}"
    assert outcome.answers == items


def work_and_die(service: Service, model: str, bug: str) -> None:
    """A worker with this bug has killed itself."""
    program = ("tests.reliability.planted_work", bug)
    dying = Working(service, "--forward", model, user="w0", program=program)
    try:
        assert dying.process.wait(60) == -9, dying.log.read_text()
    finally:
        dying.kill()


@pytest.mark.parametrize(
    "point",
    ["dies-with-a-full-window", "dies-before-it-puts", "dies-before-it-commits", "dies-after-it-committed"],
)
def test_an_engine_that_dies_at_the_worst_moment_is_made_good(
    serve: Serve, tmp_path: Path, model: str, point: str
) -> None:
    """Its items come again, to it or to another: one result each."""
    service = serve("--max-delivery", "0", "--leave-grace", "0s", program=_observed(tmp_path / "oplog"))
    wanted = put_all(service, 30)
    dying = Working(service, "--forward", model, user="w0", program=("tests.reliability.planted_work", point))
    try:
        assert dying.process.wait(60) == -9, dying.log.read_text()
    finally:
        dying.kill()
    with working(service, "--forward", model, user="w1"):
        found = results(service)
    assert results_differ(wanted, found) == []
    assert committed_without_a_result(read(tmp_path / "oplog")) == []


def test_an_engine_that_commits_first_is_caught(serve: Serve, tmp_path: Path, model: str) -> None:
    """Although nothing is lost as long as no worker dies."""
    service = serve(program=_observed(tmp_path / "oplog"))
    wanted = put_all(service, 20)
    program = ("tests.reliability.planted_work", "commits-before-it-puts")
    with working(service, "--forward", model, program=program):
        eventually(lambda: service.stream().sink.length() == 20)
    assert results_differ(wanted, results(service)) == []
    complaints = committed_without_a_result(read(tmp_path / "oplog"))
    assert len([text for text in complaints if text.startswith("committed without a result: ")]) >= 20


def test_an_engine_without_keys_is_caught(serve: Serve, tmp_path: Path, model: str) -> None:
    """The worker dies between put and commit, and its items are answered twice."""
    service = serve("--max-delivery", "0", "--leave-grace", "0s", program=_observed(tmp_path / "oplog"))
    wanted = put_all(service, 20)
    work_and_die(service, model, "forgets-the-key")
    with working(service, "--forward", model, user="w1"):
        found = results(service)
    assert any(text.startswith("2 results: ") for text in results_differ(wanted, found))


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        ([], "no result: r"),
        ([("r", b"1"), ("r", b"1")], "2 results: r"),
        ([("r", b"2")], "another result: r is b'2'"),
        ([("r", b"1"), ("s", b"1")], "a result of nothing: s"),
    ],
)
def test_the_check_of_results_notices(found: list[tuple[str, bytes]], complaint: str) -> None:
    assert results_differ({"r": b"1"}, found) == [complaint]
    assert results_differ({"r": b"1"}, [("r", b"1")]) == []


def test_a_model_that_crashes_on_poison_harms_nobody_else(serve: Serve, record_property: Record) -> None:
    """Three of 500 items kill the command: they end in the rear store and as error frames, the others are answered.

    Others are behind each of them: a model that does nothing but fail is called with ever longer pauses.
    """
    service = serve("--retry-delay", "0s")
    stream = service.stream()
    poison = {7, 250, 400}
    with Connection(service.port) as connection:
        for number in range(500):
            body = b"poison" if number in poison else b"%d" % number
            connection.ask("POST", stream.target(requestId=f"r-{number}"), (), body)
    script = 'x=$(cat); [ "$x" = poison ] && kill -SEGV $$; printf "R$x"'
    began = time.monotonic()
    with working(service, "--", "sh", "-c", script):
        eventually(lambda: stream.length() == 0, within_s=60)
        record_property("500 commands in seconds", round(time.monotonic() - began, 1))
    answers = {item.request_id: item for item in stream.sink.get(_length_=10_000)}
    assert len(answers) == stream.sink.length() == 500
    failed = {name: item for name, item in answers.items() if "lastCode" in item.tags}
    assert failed.keys() == {f"r-{number}" for number in poison}
    assert {(item.tags["lastCode"], item.data) for item in failed.values()} == {
        ("500", b"killed by signal 11")
    }
    assert all(item.data == b"R" + name[2:].encode() for name, item in answers.items() if name not in failed)
    rear = [("X-EAS-QueueService-Access-Rear", "true"), PROTOBUF]
    dead = stream.ask("GET", rear, _raw_="false", _auto_delete_="false", _length_="99").items
    assert sorted(item.request_id for item in dead) == sorted(failed)
    assert {item.tags["rear@failures"] for item in dead} == {"5"}


def test_a_sink_of_ten_holds_two_hundred_back(serve: Serve, model: str, record_property: Record) -> None:
    """The consumer of the results comes late: meanwhile the input stays where it is, and then all is drained."""
    service = serve("--sink-max-length", "10")
    stream = service.stream()
    wanted = put_all(service, 200)
    with working(service, "--forward", model) as worker:
        eventually(lambda: stream.sink.length() == 10)
        pid = worker.process.pid
        eventually(lambda: stream.length() == 190)
        eventually(lambda: "Slots: 0" in next(t for t in stream.attributes().values() if ".w0, " in t))
        began = time.monotonic()
        found: list[tuple[str, bytes]] = []
        while len(found) < 200:
            for item in stream.sink.get(_length_=10, _timeout_="5s"):
                found.append((item.request_id, item.data))
                stream.sink.delete(item.index)
        record_property("190 held items drained in seconds", round(time.monotonic() - began, 1))
        eventually(lambda: stream.length() == 0)
        assert (worker.process.poll(), worker.process.pid) == (None, pid)
    assert results_differ(wanted, found) == []
    assert {json.loads(line)["outcome"] for line in worker.log.read_text().splitlines()} == {"answered"}


class Sleeper:
    """A model that takes its time: how many calls it has at once, by its own count, and how many in all."""

    def __init__(self, upstream: Callable[[Reply], Upstream], *, seconds: float) -> None:
        self.lock = threading.Lock()
        self.running = self.most = self.calls = 0
        self.seconds = seconds
        self.url = upstream(self.answer).url

    def answer(self, handler: Handler) -> None:
        with self.lock:
            self.running += 1
            self.calls += 1
            self.most = max(self.most, self.running)
        time.sleep(self.seconds)  # this is what the model does, not what the test waits for
        with self.lock:
            self.running -= 1
        handler.answer(b"done")


def test_never_more_than_the_window_is_at_the_model(
    serve: Serve, upstream: Callable[[Reply], Upstream], record_property: Record
) -> None:
    """With window 5 the model counts at most 5 concurrent calls, and it reaches 5."""
    service = serve()
    sleeper = Sleeper(upstream, seconds=0.05)
    wanted = put_all(service, 100)
    with working(service, "--window", "5", "--forward", sleeper.url):
        assert len(results(service)) == len(wanted)
    record_property("most calls at once, window 5", sleeper.most)
    assert (sleeper.most, sleeper.calls) == (5, 100)


def test_two_workers_share_by_speed(
    serve: Serve, upstream: Callable[[Reply], Upstream], record_property: Record
) -> None:
    """One whose model is ten times as fast has most of the items, not every second one."""
    service = serve()
    fast, slow = Sleeper(upstream, seconds=0.02), Sleeper(upstream, seconds=0.2)
    with (
        working(service, "--window", "2", "--forward", slow.url, user="slow"),
        working(service, "--window", "2", "--forward", fast.url, user="fast"),
    ):
        wanted = put_all(service, 200)
        assert len(results(service)) == len(wanted)
    record_property("items of 200 by a model of 20 ms and one of 200 ms", f"{fast.calls}, {slow.calls}")
    assert fast.calls + slow.calls == 200
    assert fast.calls > 1.5 * slow.calls  # by turns it would be as many
