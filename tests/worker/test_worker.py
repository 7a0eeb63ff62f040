"""The worker against a real service: the outcome of each item, which consumer has it, and the end."""

from __future__ import annotations

import _thread
import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from typing import TypeAlias

import pytest

from easq.client.queue import QueueClient
from easq.errors import AuthFailed, ChildFailed
from easq.models.base import Answer, BlockingModel, Call, Model, ModelFailed
from easq.models.command import Exec
from easq.models.http import Http
from easq.models.inference import Fate, Outcome, inherited, result_key
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.protocol.operations import SHUTDOWN, Caller
from easq.worker.worker import Worker, engine_user
from tests.client.servers import answering, reply, silent
from tests.conftest import Serve
from tests.models.test_models import Handler, Reply, Seen, Upstream, upstream
from tests.support.http import PROTOBUF
from tests.support.process import Service
from tests.support.protobuf import Item
from tests.support.waiting import PATIENCE_S, eventually

__all__ = ["upstream"]  # the fixture is used by name

Function: TypeAlias = Callable[[Call], Answer]


@dataclass
class Local:
    """A model that is a function, with a count of the calls under way and a gate that they wait at."""

    function: Function = lambda call: Answer(call.data.upper())
    gate: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    most: int = 0
    calls: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def check(self) -> None:
        pass

    def run(self, call: Call, *, timeout_s: float = PATIENCE_S) -> Answer:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            self.calls.append(call.data)
        try:
            end = time.monotonic() + timeout_s
            while not self.gate.wait(0.01):
                if self.cancelled.is_set():
                    raise ModelFailed("cancelled", status=503, code=SHUTDOWN)
                assert time.monotonic() < end
            return self.function(call)
        finally:
            with self.lock:
                self.running -= 1

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.cancel()


@dataclass
class Bench:
    """A service and the workers on it."""

    service: Service
    transport: Transport = field(default_factory=lambda: Transport(NetworkSettings(environ={})))
    workers: list[Worker] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def client(self, *, sink: bool = False, token: str | None = None) -> QueueClient:
        given = self.service.token if token is None else token
        return QueueClient.over(self.transport, self.service.url(sink=sink), Caller(token=given))

    def worker(self, model: Model | BlockingModel, **options: object) -> Worker:
        return Worker(
            self.client(),
            model,
            sink=self.client(sink=True),
            **{
                "user": f"w{len(self.workers)}",
                "on_outcome": self.outcomes.append,
                "on_notice": self.notices.append,
                **options,
            },
        )

    def start(self, model: Model | BlockingModel, **options: object) -> Worker:
        worker = self.worker(model, **options)
        worker.start()
        self.workers.append(worker)
        return worker

    def put(self, *payloads: bytes, **query: object) -> None:
        for payload in payloads:
            self.service.stream().put(payload, **query)

    def results(self, count: int) -> list[Item]:
        """Return the items of the sink, after all items of the input are done."""
        stream = self.service.stream()
        eventually(lambda: stream.length() == 0 and stream.sink.length() >= count)
        return stream.sink.get(_length_=10_000)

    def fates(self) -> list[tuple[int, str]]:
        return [(outcome.index, outcome.fate.value) for outcome in self.outcomes]


@pytest.fixture
def bench(serve: Serve) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*options: str, token: str = "", storage: str | None = "memory:") -> Bench:
        made.append(Bench(serve(*options, token=token, storage=storage)))
        return made[-1]

    yield make
    for one in made:
        for worker in one.workers:
            worker.abort()
            assert worker.wait(PATIENCE_S)
        one.transport.close()


Make: TypeAlias = Callable[..., Bench]


def test_an_item_is_answered_and_committed(bench: Make) -> None:
    """The result has the item's request id and tags, the time of its put, and the type of the answer."""
    on = bench()
    on.put(b"one", requestId="r-1", task="7")
    on.start(Local(lambda _: Answer(b"ONE", headers=(("Content-Type", "text/x-answer"),))))
    (result,) = on.results(1)
    source = result.tags.pop("ts@source")
    assert int(source) <= int(result.tags.pop("ts@sink"))
    assert result.data == b"ONE"
    assert result.tags == {"requestId": "r-1", "task": "7", "Header:Content-Type": "text/x-answer"}
    (outcome,) = on.outcomes
    assert (outcome.fate, outcome.request_id, outcome.attempt, outcome.size) == (Fate.ANSWERED, "r-1", 1, 3)
    attributes = on.service.stream().attributes()
    assert attributes["groups.list.[0]"].startswith("Id: qservice,")
    assert attributes["consumers.list.[0]"].startswith("Id: qservice.w0,")
    assert "Window: 5, Slots: 5, AutoCommit: false" in attributes["consumers.list.[0]"]


def test_a_worker_is_called_by_host_and_pid(bench: Make) -> None:
    on = bench()
    on.start(Local(), user="")
    assert f"Id: qservice.{engine_user()}," in on.service.stream().attributes()["consumers.list.[0]"]


def test_an_item_is_forwarded_as_an_engine_does(bench: Make, upstream: Callable[[Reply], Upstream]) -> None:
    on = bench()
    server = upstream(lambda handler: handler.answer(b"{}", ("Content-Type", "application/json")))
    stream = on.service.stream()
    stream.ask(
        "POST", [("Content-Type", "image/png")], b"\x89PNG", path="/v1/in%20fer%2Fx", task="a b", task_id="7"
    )
    on.start(Http(server.url + "/model?k=v"))
    (result,) = on.results(1)
    ((target, headers, body),) = server.seen.requests
    assert (target, body) == ("/model/v1/in%20fer%2Fx?k=v&task=a+b&task_id=7", b"\x89PNG")
    assert headers["Content-Type"] == "image/png"
    assert result.tags["Header:Content-Type"] == "application/json"
    assert result.tags["Path"] == "/v1/in%20fer%2Fx"


def test_a_command_gets_the_item_and_never_the_token(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The payload is data: whatever it holds, no shell reads it."""
    on = bench(token="very-secret")
    monkeypatch.setenv("EASQ_TOKEN", "very-secret")
    payload = b"$(touch x); `touch y`\n"
    on.put(payload, requestId="r-1")
    on.start(Exec(["sh", "-c", "cat; env"]))
    (result,) = on.results(1)
    assert result.data.startswith(payload)
    assert b"EASQ_INDEX=1\n" in result.data
    assert b"EASQ_REQUEST_ID=r-1\n" in result.data
    assert b"EASQ_ATTEMPT=1\n" in result.data
    assert b"very-secret" not in result.data


def test_an_empty_answer_skips_the_sink(bench: Make) -> None:
    on = bench()
    on.put(b"quiet")
    on.start(Local(lambda _: Answer(b"")))
    assert on.results(0) == []
    eventually(lambda: on.fates() == [(1, "empty")])


def test_a_model_that_refuses_is_the_result_in_the_end(
    bench: Make, upstream: Callable[[Reply], Upstream]
) -> None:
    """After --max-delivery failures the service answers with the last code and the model's own words."""
    on = bench("--max-delivery", "3")
    server = upstream(lambda handler: handler.answer(b"no such class", status=422))
    on.put(b"x", requestId="r-1", task="7")
    on.start(Http(server.url))
    (result,) = on.results(1)
    assert (result.data, result.tags["lastCode"], result.tags["task"]) == (b"no such class", "422", "7")
    eventually(lambda: on.fates() == [(1, "failed")] * 3)
    assert [outcome.attempt for outcome in on.outcomes] == [1, 2, 3]
    assert (
        on.service.stream().ask("GET", [("X-EAS-QueueService-Access-Rear", "true"), PROTOBUF]).status == 200
    )


def test_a_call_that_takes_too_long_is_a_failure(bench: Make) -> None:
    on = bench("--max-delivery", "1")
    on.put(b"x")
    on.start(Exec(["sleep", "60"]), item_timeout_s=0.1)
    (result,) = on.results(1)
    assert (result.data, result.tags["lastCode"]) == (b"no answer within 0.1 s", "504")


def test_a_result_that_is_too_large_is_an_error_frame(bench: Make) -> None:
    on = bench("--max-payload", "200")
    on.put(b"x", requestId="r-1", task="7")
    on.start(Local(lambda _: Answer(b"a" * 201)))
    (result,) = on.results(1)
    assert result.data == b"the result is too large: the payload has 201 bytes, an item may have 200"
    assert (result.tags["lastCode"], result.tags["requestId"], result.tags["task"]) == ("413", "r-1", "7")
    assert result.tags["lastReason"] == result.data.decode()
    assert on.fates() == [(1, "too_large")]


@pytest.mark.parametrize("kind", ["command", "http"])
def test_an_answer_above_the_limit_of_the_model_is_an_error_frame_at_once(bench: Make, kind: str) -> None:
    """Also the answer of a command that never ends: another call would not help."""
    on = bench("--max-delivery", "3")
    on.put(b"x", requestId="r-1")
    with answering(reply(200, b"y" * 2000)) as server:
        on.start(Exec(["yes"], max_answer=1000) if kind == "command" else Http(server.url, max_answer=1000))
        (result,) = on.results(1)
        assert result.data == b"the result is too large: the answer is above 1000 bytes"
        assert (result.tags["lastCode"], result.tags["requestId"]) == ("413", "r-1")
        assert on.fates() == [(1, "too_large")]


def test_a_result_that_the_sink_does_not_take_is_a_failure_of_its_item(bench: Make) -> None:
    """Too many tags for a request, say: others are answered."""
    on = bench("--max-delivery", "1", "--max-payload", "30")
    on.put(b"large", b"small")
    on.start(Local(lambda call: Answer(b"a" * 99 if call.data == b"large" else b"ok")))
    results = {item.data: item.tags.get("lastCode") for item in on.results(2)}
    assert results.pop(b"ok") is None
    assert list(results.values()) == ["413"]


def test_a_model_that_is_not_there_yet_is_waited_for(bench: Make) -> None:
    """It has not seen the items, so none of them has failed."""
    on = bench("--max-delivery", "1")
    on.put(b"a", b"b")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Polite, bind_and_activate=False)
    server.server_bind()  # the port is ours, and refuses until it is listened at
    worker = on.start(Http(f"http://127.0.0.1:{server.socket.getsockname()[1]}/"))
    eventually(lambda: worker.is_held)
    assert "waiting for the model: the model cannot be reached: connection refused" in on.notices
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        assert [item.data for item in on.results(2)] == [b"polite"] * 2
        assert not worker.is_held
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Polite(Handler):
    """A model that gives the same answer to each call."""

    reply = staticmethod(lambda handler: handler.answer(b"polite"))
    seen = Seen()


def test_a_model_that_never_comes_is_a_failure(bench: Make) -> None:
    """As long as an item may be busy; then whoever waits for the result is told."""
    on = bench("--max-delivery", "1", "--busy-limit", "300ms")
    on.put(b"a")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    on.start(Http(f"http://127.0.0.1:{port}/"))
    (result,) = on.results(1)
    assert (result.tags["lastCode"], result.data[:32]) == ("503", b"the model cannot be reached: con")


def test_a_model_that_loads_costs_no_item_a_failure(
    bench: Make, upstream: Callable[[Reply], Upstream]
) -> None:
    """Nor does one that is overloaded again and again. All items are answered, though one failure is the last."""
    on = bench("--max-delivery", "1")
    calls = itertools.count()

    def reply(handler: Handler) -> None:
        if next(calls) < 6:
            handler.answer(b"loading", ("Retry-After", "1"), status=503)
        else:
            handler.answer(b"ready")

    on.put(*[b"x"] * 100)
    worker = on.start(Http(upstream(reply).url))
    assert len(on.results(100)) == 100
    assert {item.data for item in on.results(100)} == {b"ready"}
    assert not worker.is_held
    assert on.notices == ["waiting for the model: the model answered 503", "the model answers"]
    fates = Counter(fate for _, fate in on.fates())
    assert fates == {"answered": 100, "busy": 6}
    first = next(outcome for outcome in on.outcomes if outcome.fate is Fate.BUSY)
    assert (first.code, first.reason) == ("503", "loading")


def test_what_a_failing_worker_has_goes_to_one_that_does_not_fail(bench: Make) -> None:
    """None of the items is given up, and the failing one soon tries one at a time."""

    def fail(_: Call) -> Answer:
        raise ModelFailed("no", status=500)

    on = bench()
    failing = Local(fail)
    on.start(failing)
    on.start(Local(lambda call: (time.sleep(0.01), Answer(call.data.upper()))[1]))
    on.put(*[b"x"] * 40)
    assert [item.data for item in on.results(40)] == [b"X"] * 40
    assert len(failing.calls) < 20


def test_a_service_that_knows_no_busy_items_has_them_held(
    bench: Make, upstream: Callable[[Reply], Upstream]
) -> None:
    """The real EAS does not count deliveries: each delivery looks like the first one."""
    on = bench("--max-delivery", "1")
    calls = itertools.count()

    def reply(handler: Handler) -> None:
        handler.answer(b"ready", status=429 if next(calls) < 3 else 200)

    on.put(*[b"x"] * 10)
    worker = on.worker(Http(upstream(reply).url), window=2)
    worker._input.describe = lambda: SimpleNamespace(name="qservice", features=frozenset())  # type: ignore[assignment, return-value, method-assign]
    worker.start()
    on.workers.append(worker)
    assert len(on.results(10)) == 10
    assert {outcome.attempt for outcome in on.outcomes} == {1}
    assert {fate for _, fate in on.fates()} == {"answered"}


def test_what_is_held_for_too_long_has_failed(bench: Make, upstream: Callable[[Reply], Upstream]) -> None:
    on = bench("--max-delivery", "1")
    on.put(b"x")
    server = upstream(lambda handler: handler.answer(b"too much", status=429))
    worker = on.worker(Http(server.url), busy_limit_s=0.5)
    worker._input.describe = lambda: SimpleNamespace(name="qservice", features=frozenset())  # type: ignore[assignment, return-value, method-assign]
    worker.start()
    on.workers.append(worker)
    (result,) = on.results(1)
    assert (result.tags["lastCode"], result.data) == ("429", b"too much")


def test_refusals_of_items_are_no_sign_of_a_model_that_fails(bench: Make) -> None:
    def refuse(_: Call) -> Answer:
        raise ModelFailed("no image", status=422)

    on = bench("--max-delivery", "1")
    on.put(*[b"x"] * 20)
    worker = on.start(Local(refuse))
    assert {item.tags["lastCode"] for item in on.results(20)} == {"422"}
    assert not worker.is_held


def test_a_stop_does_not_wait_for_a_model(bench: Make) -> None:
    on = bench("--max-delivery", "1")
    on.put(b"a")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    worker = on.start(Http(f"http://127.0.0.1:{port}/"))
    eventually(lambda: worker.is_held)
    worker.stop(0.1)
    assert worker.wait(PATIENCE_S)
    assert (set(on.fates()), on.service.stream().length()) == ({(1, "busy")}, 1)


def test_a_long_answer_is_no_longer_reason(bench: Make, upstream: Callable[[Reply], Upstream]) -> None:
    """The reason of a negative is the model's text, cut to the limit of a negative without splitting a character."""
    on = bench("--max-delivery", "1")
    server = upstream(lambda handler: handler.answer("ä".encode() * 5000 + b"\n", status=500))
    on.put(b"a")
    on.start(Http(server.url))
    (result,) = on.results(1)
    assert result.data == "ä".encode() * 2048


def test_a_full_sink_holds_everything_and_loses_nothing(bench: Make) -> None:
    """At most the window is in flight, nothing begins meanwhile, and the work goes on by itself."""
    on = bench("--sink-max-length", "2")
    model = Local()
    on.put(*(b"%d" % number for number in range(12)))
    worker = on.start(model, window=3)
    eventually(lambda: worker.is_held and not model.running)
    assert on.service.stream().sink.length() == 2
    called = len(model.calls)
    assert called <= 5
    assert on.service.stream().length() == 10
    assert len(model.calls) == called
    found: list[bytes] = []
    stream = on.service.stream()

    def take() -> bool:
        items = stream.sink.get(_length_=1)
        for item in items:
            found.append(item.data)
            stream.sink.delete(item.index)
        return len(found) == 12

    eventually(take)
    assert sorted(found) == sorted(b"%d" % number for number in range(12))
    assert sorted(model.calls) == sorted(found)  # once each
    eventually(lambda: stream.length() == 0 and not worker.is_held)
    assert worker.failed is None


def test_an_answer_that_is_in_the_sink_already_is_committed(bench: Make) -> None:
    """After a crash between put and commit: the same answer is stored once, and another answer does not replace it."""
    on = bench()
    on.put(b"same", b"other")
    frames = on.client().get(length=2)
    for frame, data in zip(frames, (b"SAME", b"as it was said the first time"), strict=True):
        on.client(sink=True).put(
            data, tags=inherited(frame.tags), key=result_key("qservice", "qservice", frame)
        )
    on.start(Local())
    assert sorted(item.data for item in on.results(2)) == [b"SAME", b"as it was said the first time"]


def test_what_runs_when_the_service_is_killed_is_answered_once(bench: Make) -> None:
    """The worker connects again; items in flight are delivered again, do not run again, and are committed."""
    on = bench("--leave-grace", "0s", "--max-delivery", "0", storage=None)
    on.service.wanted_port = on.service.port
    model = Local()
    model.gate.clear()
    on.put(*(b"%d" % number for number in range(9)))
    on.start(model, window=3)
    eventually(lambda: model.running == 3)
    on.service.restart()
    eventually(lambda: any("connected to" in notice for notice in on.notices))
    model.gate.set()
    assert sorted(item.data for item in on.results(9)) == [b"%d" % number for number in range(9)]
    assert sorted(model.calls) == [b"%d" % number for number in range(9)]


def test_a_commit_that_is_lost_is_made_again(bench: Make) -> None:
    """The service is away when the commit is due: it is tried until it is there."""
    on = bench("--leave-grace", "0s", storage=None)
    on.service.wanted_port = on.service.port

    def then_killed(_: Call) -> Answer:
        on.service.kill()
        return Answer(b"")

    on.put(b"x")
    on.start(Local(then_killed))
    eventually(lambda: any("not committed" in notice for notice in on.notices))
    on.service.start()
    assert on.results(0) == []
    eventually(lambda: (1, "empty") in on.fates())


def test_what_is_done_together_is_committed_together(bench: Make) -> None:
    """While a commit is under way the next ones gather; none waits for a time, or for a number."""
    on = bench()
    requests: list[str] = []
    on.transport = Transport(NetworkSettings(environ={}, trace=lambda _, line: requests.append(line)))
    model = Local()
    model.gate.clear()
    on.put(*(b"%d" % number for number in range(40)))
    on.start(model, window=40)
    eventually(lambda: model.running == 40)
    model.gate.set()
    assert len(on.results(40)) == 40
    commits = [line for line in requests if "PUT" in line]
    assert 0 < len(commits) < 40


def test_a_stop_lets_what_runs_end_and_hands_back_the_rest(bench: Make) -> None:
    """Nothing of it counts as a failure, and the next worker has it at once."""
    on = bench("--max-delivery", "1", "--leave-grace", "1h")
    model = Local()
    model.gate.clear()
    on.put(*(b"%d" % number for number in range(8)))
    first = on.start(model, window=4, jobs=2)
    eventually(lambda: model.running == 2)
    first.stop(PATIENCE_S)
    eventually(lambda: [fate for _, fate in on.fates()].count("returned") >= 2)
    assert not first.wait(0)
    model.gate.set()
    assert first.wait(PATIENCE_S)
    assert first.failed is None
    assert sorted(item.data for item in on.service.stream().sink.get(_length_=9)) == [b"0", b"1"]
    assert on.service.stream().length() == 6
    on.start(Local())
    assert len(on.results(8)) == 8


def test_what_runs_longer_than_the_grace_is_cut_off_and_handed_back(bench: Make) -> None:
    on = bench("--max-delivery", "1", "--leave-grace", "1h")
    model = Local()
    model.gate.clear()
    on.put(b"long")
    first = on.start(model)
    eventually(lambda: model.running == 1)
    first.stop(0.1)
    assert first.wait(PATIENCE_S)
    assert (first.failed, on.fates()) == (None, [(1, "returned")])
    on.start(Local())
    assert [item.data for item in on.results(1)] == [b"LONG"]


def test_a_full_sink_does_not_hold_up_a_stop(bench: Make) -> None:
    """The answer is given up, the item is not."""
    on = bench("--sink-max-length", "1")
    on.service.stream().sink.put(b"there")
    on.put(b"x")
    worker = on.start(Local())
    eventually(lambda: worker.is_held)
    worker.stop(0.1)
    assert worker.wait(PATIENCE_S)
    assert on.fates() == [(1, "returned")]
    assert on.service.stream().length() == 1


def test_a_command_that_cannot_start_ends_the_worker(bench: Make) -> None:
    """With no failure to any item, and no loop."""
    on = bench("--max-delivery", "1")
    on.put(b"a", b"b")
    worker = on.start(Exec(["/no/such/command"]))
    assert worker.wait(PATIENCE_S)
    assert isinstance(worker.failed, ChildFailed)
    assert on.service.stream().length() == 2
    assert {fate for _, fate in on.fates()} == {"returned"}


def test_a_bug_in_a_model_ends_the_worker_and_surfaces(bench: Make) -> None:
    def broken(_: Call) -> Answer:
        raise ZeroDivisionError

    on = bench()
    on.put(b"x")
    worker = on.start(Local(broken), grace_s=0.1)
    assert worker.wait(PATIENCE_S)
    assert isinstance(worker.failed, ZeroDivisionError)
    assert on.service.stream().length() == 1


def test_nothing_is_committed_while_the_caller_has_too_many_outcomes_to_deal_with(bench: Make) -> None:
    """So that a slow reader of the outcomes slows the work down, and is not held in memory."""
    on = bench()
    waiting = [20_000]
    on.put(*(b"%d" % number for number in range(30)))
    model = Local()
    worker = on.start(model, unread=lambda: waiting[0])
    eventually(lambda: worker.in_flight == 5 and on.outcomes and not model.running)
    assert len(model.calls) <= 10  # a first commit, and a full window
    waiting[0] = 0
    assert len(on.results(30)) == 30


def test_an_interrupt_ends_a_start_that_waits_for_the_service(bench: Make) -> None:
    """Nothing works on in the background."""
    on = bench()
    with answering(reply(200, b'{"meta.name":"q"}'), silent) as server:

        def interrupt() -> None:
            eventually(lambda: len(server.requests) > 1)
            _thread.interrupt_main()

        interrupting = threading.Thread(target=interrupt)
        url = f"{server.url}/q"
        worker = Worker(
            QueueClient.over(on.transport, url, Caller()),
            Local(),
            sink=QueueClient.over(on.transport, f"{url}/sink", Caller()),
        )
        interrupting.start()
        with pytest.raises(KeyboardInterrupt):
            worker.start()
        interrupting.join()
        assert worker.wait(PATIENCE_S)


def test_a_wrong_token_is_refused_at_the_start(bench: Make) -> None:
    on = bench(token="right")
    with pytest.raises(AuthFailed):
        Worker(on.client(token="wrong"), Local()).start()


def test_the_end_of_the_stream_is_a_good_end(bench: Make) -> None:
    on = bench()
    on.put(b"a", b"b")
    worker = on.start(Local())
    on.service.stream().ask("POST", (), b"", _eos_="true")
    assert worker.wait(PATIENCE_S)
    assert worker.failed is None
    assert len(on.results(2)) == 2


def test_an_ended_sink_ends_the_worker(bench: Make) -> None:
    on = bench()
    on.put(b"a")
    on.service.stream().sink.ask("POST", (), b"", _eos_="true")
    worker = on.start(Local())
    assert worker.wait(PATIENCE_S)
    assert "the sink takes no answers" in str(worker.failed)
    assert on.service.stream().length() == 1


@pytest.mark.parametrize(("jobs", "most"), [(None, 5), (2, 2), (9, 5)])
def test_never_more_is_under_way_than_may_be(bench: Make, jobs: int | None, most: int) -> None:
    """By the model's own count."""
    on = bench()
    model = Local()
    model.gate.clear()
    on.put(*(b"%d" % number for number in range(20)))
    on.start(model, window=5, jobs=jobs)
    eventually(lambda: model.running == most)
    model.gate.set()
    on.results(20)
    assert model.most == most


# as a program uses it


def test_a_function_is_a_worker_in_the_background(serve: Serve) -> None:
    service = serve()
    failures: list[str] = []

    def reverse(data: bytes) -> bytes:
        if data == b"bad":
            raise ValueError("no picture")
        return data[::-1]

    def note(outcome: Outcome) -> None:
        if outcome.code:
            failures.append(f"{outcome.fate.value}: {outcome.code} {outcome.reason}")

    with QueueClient(service.url(), service.token) as queue:
        with Worker(queue, reverse, on_outcome=note):
            ack = queue.put("abc")
            [frame] = queue.sink.get(timeout_s=30, tags={"requestId": ack.request_id})
            assert frame.data == b"cba"
            queue.put(b"bad")
            eventually(lambda: failures)
        assert set(failures) == {"failed: EngineError ValueError: no picture"}
    eventually(lambda: not [one for one in threading.enumerate() if one.name.startswith("easq-")])


@pytest.mark.parametrize("model", [["tr", "a-z", "A-Z"], "exec:tr a-z A-Z"])
def test_a_command_runs_until_the_stream_ends(serve: Serve, model: str | list[str]) -> None:
    service = serve()
    with QueueClient(service.url(), service.token) as queue:
        queue.put(b"abc")
        queue.end()
        Worker(queue, model).run()
        assert [frame.data for frame in queue.sink.get()] == [b"ABC"]


def test_what_ends_a_worker_is_raised(serve: Serve) -> None:
    service = serve(token="t")
    with QueueClient(service.url(), service.token) as queue:
        queue.put(b"abc")
        with pytest.raises(ChildFailed):
            Worker(queue, ["no-such-command-here"]).run()
        assert queue.count() == 1
    with QueueClient(service.url(), "wrong") as queue, pytest.raises(AuthFailed):
        Worker(queue, bytes.upper).run()


def test_ctrl_c_lets_the_item_in_flight_end(serve: Serve) -> None:
    service = serve()

    def interrupt(data: bytes) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        return data

    with QueueClient(service.url(), service.token) as queue:
        queue.put(b"abc")
        with pytest.raises(KeyboardInterrupt):
            Worker(queue, interrupt).run()
        assert [frame.data for frame in queue.sink.get()] == [b"abc"]
        assert queue.count() == 0
