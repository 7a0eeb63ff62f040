"""Predict on the instances themselves, over real sockets: the next one when one fails, and never twice the same.

The instances and discovery are servers in this process, scripted to fail.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from easq import errors
from easq.net.http import Transport
from easq.net.pipeline import Pipeline, Task
from easq.net.retry import Steps
from easq.net.settings import NetworkSettings
from easq.prediction.discovery import Discovery
from easq.prediction.exchanges import Served, predict_direct, signed
from easq.prediction.lookup import EasLookup
from easq.protocol.signatures import authorization
from tests.client.servers import (
    Behaviour,
    Peer,
    Server,
    behaving,
    broken,
    dripping,
    eventually,
    free_port,
    half,
    listing,
    reply,
    silent,
)

SETTINGS = NetworkSettings(connect_timeout_s=2.0, environ={})
FINE = reply(200, b"yes")
TOKEN = "canary-token-canary"


@dataclass
class Cluster:
    """A service of some instances, and discovery that names them; each does what its behaviour says."""

    discovery: Server
    listed: Behaviour
    instances: list[Server]
    behaviours: list[Behaviour]
    transport: Transport
    warnings: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.discovery.port}"

    def client(self, *, refresh_s: float = 60.0) -> Discovery:
        lookup = EasLookup(self.endpoint, "svc")
        return Discovery(lookup, SETTINGS, refresh_s=refresh_s, warn=self.warnings.append)

    def ask(
        self, discovery: Discovery, data: bytes = b"x", timeout_s: float = 30.0, **options: Any
    ) -> Served:
        discovery.fill(within_s=timeout_s)
        discovery.keep_fresh()
        return self.transport.run(
            predict_direct(discovery, self.transport.settings, data, timeout_s=timeout_s, **options)
        )

    def run(self, steps: Steps[Served]) -> Served:
        """Return the result of the exchange, over one of the two senders."""
        raise NotImplementedError

    def counts(self) -> list[int]:
        return [len(instance.requests) for instance in self.instances]


def _blocking(cluster: Cluster, steps: Steps[Served]) -> Served:
    return cluster.transport.run(steps)


def _on_a_loop(cluster: Cluster, steps: Steps[Served]) -> Served:
    bulk, tasks = Pipeline(cluster.transport.settings, workers=2, timed=True), [Task(None, None)]
    ((outcome,),) = bulk.run(iter(tasks), lambda _ask, _times: steps)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.result is not None
    return outcome.result


@pytest.fixture(autouse=True, params=[_blocking, _on_a_loop], ids=["blocking", "on a loop"])
def sender(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules hold whoever sends."""
    monkeypatch.setattr(Cluster, "run", request.param)


@contextmanager
def cluster(*answers: Callable[[Peer], None], weights: Sequence[int] = ()) -> Iterator[Cluster]:
    with ExitStack() as stack:
        behaviours = [Behaviour(answer) for answer in answers]
        instances = [stack.enter_context(behaving(behaviour)) for behaviour in behaviours]
        listed = Behaviour(listing(*instances, weights=weights))
        discovery = stack.enter_context(behaving(listed))
        transport = stack.enter_context(Transport(SETTINGS))
        yield Cluster(discovery, listed, instances, behaviours, transport)


def test_the_request_and_its_answer_are_untouched() -> None:
    with cluster(reply(200, b"<html>\x00\xff")) as service, service.client() as discovery:
        served = service.ask(
            discovery,
            b"\x00question",
            path="/v1/x%20y",
            headers={"Authorization": TOKEN, "Content-Type": "a/b"},
        )
        head, body = service.instances[0].requests[0]
        assert served.data == b"<html>\x00\xff"
        assert served.address == f"127.0.0.1:{service.instances[0].port}"
        assert served.times.attempts == 1
    lines = head.split("\r\n")
    assert lines[0] == "POST /api/predict/svc/v1/x%20y HTTP/1.1"
    assert body == b"\x00question"
    assert {f"Authorization: {TOKEN}", "Content-Type: a/b"} <= set(lines)
    assert "queueservice" not in head.lower()


def test_the_times_tell_connecting_the_first_byte_and_all() -> None:
    with cluster(FINE) as service, service.client() as discovery:
        first, second = (service.ask(discovery).times for _ in range(2))
    assert first.connect_s is not None
    assert first.first_byte_s is not None
    assert 0 < first.connect_s < first.first_byte_s <= first.total_s
    assert second.connect_s is None


def test_shares_are_exact_and_discovery_is_not_asked_by_requests() -> None:
    with cluster(FINE, FINE, FINE, FINE, weights=[1, 2, 5, 0]) as service, service.client() as discovery:
        for _ in range(80):
            service.ask(discovery)
        assert service.counts() == [10, 20, 50, 0]
        assert len(service.discovery.requests) == 1


def test_a_weight_changed_during_the_run_takes_effect() -> None:
    with cluster(FINE, FINE) as service, service.client(refresh_s=0.3) as discovery:
        service.ask(discovery)
        service.listed.now = listing(*service.instances, weights=[0, 5])
        assert eventually(lambda: discovery.instances[0].weight == 0)
        before = service.counts()
        for _ in range(10):
            service.ask(discovery)
        assert service.counts() == [before[0], before[1] + 10]


FAULTS: dict[str, Callable[[Peer], None]] = {
    "reset": broken,
    "half": half,
    "502": reply(502),
    "503": reply(503),
    "504": reply(504),
    "hung": silent,
    "drip": dripping,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_request_fails_while_one_instance_is_healthy(fault: str) -> None:
    """Two of three fail in the same way: every request is answered, and no instance is asked twice for one."""
    slow = fault in ("hung", "drip")
    with cluster(FAULTS[fault], FINE, FAULTS[fault]) as service, service.client() as discovery:
        bodies = [b"%d" % number for number in range(4 if slow else 30)]
        with ThreadPoolExecutor(4) as pool:
            served = list(pool.map(lambda body: service.ask(discovery, body, 6.0 if slow else 60.0), bodies))
        assert [one.data for one in served] == [b"yes"] * len(bodies)
        assert {one.address for one in served} == {f"127.0.0.1:{service.instances[1].port}"}
        assert max(one.times.attempts for one in served) <= 3
        for instance in service.instances:
            assert max(Counter(body for _, body in instance.requests).values(), default=1) == 1
        assert len(service.discovery.requests) == 1


def test_no_request_fails_when_an_instance_is_killed_during_the_run() -> None:
    with cluster(FINE, FINE) as service, service.client() as discovery:
        with behaving(Behaviour(FINE)) as killed:
            service.listed.now = listing(*service.instances, killed)
            service.ask(discovery)
            done = threading.Event()

            def load() -> list[bytes]:
                found = [service.ask(discovery).data for _ in range(20)]
                while not done.is_set():
                    found.append(service.ask(discovery).data)
                return found + [service.ask(discovery).data for _ in range(20)]

            pool = ThreadPoolExecutor(2)
            loads = [pool.submit(load) for _ in range(2)]
            assert eventually(lambda: len(killed.requests) > 3)
        done.set()
        assert {data for one in loads for data in one.result()} == {b"yes"}
        pool.shutdown()


def test_an_instance_that_is_not_there_is_left_for_the_next() -> None:
    with cluster(FINE) as service:
        gone = Server(lambda _server, _peer: None, port=free_port())
        service.listed.now = listing(gone, *service.instances)
        with service.client() as discovery:
            attempts = [service.ask(discovery).times.attempts for _ in range(10)]
    assert sorted(attempts) == [1] * 5 + [2] * 5


@pytest.mark.parametrize("status", [301, 400, 401, 404, 429, 450, 500])
def test_what_an_instance_says_itself_is_not_asked_of_another(status: int) -> None:
    with cluster(reply(status, b"why"), reply(status, b"why")) as service, service.client() as discovery:
        with pytest.raises(errors.EasqError) as caught:
            service.ask(discovery)
        assert caught.value.status == status
        assert sum(service.counts()) == 1


def test_all_down_is_unreachable_within_the_deadline_and_tells_the_attempts() -> None:
    with cluster(FINE) as service:
        gone = [Server(lambda _server, _peer: None, port=free_port()) for _ in range(2)]
        service.listed.now = listing(*gone)
        with service.client() as discovery, pytest.raises(errors.Unreachable) as caught:
            service.ask(discovery, timeout_s=1.0)
    assert "refused (the last of " in caught.value.message
    assert " attempts on 2 instances)" in caught.value.message
    assert caught.value.exit == 6


def test_all_silent_is_a_deadline_and_each_is_asked_once() -> None:
    text = r"^no answer from http://\S+ within 0\.9 s \(2 attempts on 2 instances\)$"
    with cluster(silent, silent) as service, service.client() as discovery:
        with pytest.raises(errors.DeadlineExceeded, match=text):
            service.ask(discovery, timeout_s=0.9)
        assert service.counts() == [1, 1]


@pytest.mark.parametrize("count", [1, 2])
def test_the_last_instance_has_all_the_time_that_is_left(count: int) -> None:
    """An instance that hangs takes a third of it. One that is slow is not asked again."""

    def slow(peer: Peer) -> None:
        peer.stop.wait(1.4)
        FINE(peer)

    with cluster(*[slow] * count) as service, service.client() as discovery:
        served = service.ask(discovery, timeout_s=3.0)
        assert (served.data, served.times.attempts) == (b"yes", count)
        assert service.counts() == [1] * count


def test_all_busy_is_unavailable_and_each_is_asked_before_one_is_again() -> None:
    with cluster(reply(503, b"busy"), reply(503, b"busy"), reply(503, b"busy")) as service:
        with service.client() as discovery, pytest.raises(errors.Unavailable, match="busy"):
            service.ask(discovery, timeout_s=1.0)
        counts = service.counts()
        assert min(counts) >= 1
        assert max(counts) - min(counts) <= 1


def test_once_all_were_tried_there_is_a_pause_before_each_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: list[int] = []

    def pause_s(number: int) -> float:
        rounds.append(number)
        return 0.0 if number < 4 else 1e9

    monkeypatch.setattr("easq.prediction.exchanges.full_jitter", pause_s)
    with cluster(reply(503), reply(502), reply(504)) as service, service.client() as discovery:
        with pytest.raises(errors.ServerError, match=r"\(the last of 12 attempts on 3 instances\)"):
            service.ask(discovery, timeout_s=60.0)
        assert service.counts() == [4, 4, 4]
    assert rounds == [1, 2, 3, 4]


def test_all_down_and_back_again_is_answered_by_a_request_that_waits() -> None:
    with cluster(reply(503), reply(503)) as service, service.client() as discovery:
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(service.ask, discovery, b"x", 60.0)
            assert eventually(lambda: sum(service.counts()) > 2)
            service.behaviours[1].now = FINE
            assert waiting.result(30).data == b"yes"


def test_an_instance_that_is_new_in_the_list_goes_before_those_that_were_tried() -> None:
    with cluster(reply(503), reply(503), FINE) as service:
        service.listed.now = listing(*service.instances[:2])
        with service.client(refresh_s=0.3) as discovery, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(service.ask, discovery, b"x", 60.0)
            assert eventually(lambda: sum(service.counts()) >= 2)
            service.listed.now = listing(*service.instances)
            assert waiting.result(30).address == f"127.0.0.1:{service.instances[2].port}"


def test_discovery_that_fails_during_the_run_fails_no_request() -> None:
    """Success stays 100 % on the last good list, through every kind of answer."""
    empty = reply(200, b'{"endpoints":{"items":[]}}')
    bad = [reply(500), reply(404), empty, reply(200, b"null"), reply(200, b"<html>"), broken, half]
    with cluster(FINE, FINE) as service, service.client(refresh_s=0.2) as discovery:
        for answer in bad:
            service.ask(discovery)
            service.listed.now = answer
            seen = len(service.discovery.requests)
            # a second request shows that the answer to the first was read
            assert eventually(lambda seen=seen: len(service.discovery.requests) > seen + 2)
            assert [service.ask(discovery).data for _ in range(4)] == [b"yes"] * 4
        assert len(discovery.instances) == 2


def test_a_redirect_of_an_instance_takes_nothing_elsewhere() -> None:
    with behaving(Behaviour(FINE)) as other:
        leading = reply(307, b"", Location=f"http://127.0.0.1:{other.port}/api/predict/svc")
        with cluster(leading) as service, service.client() as discovery:
            with pytest.raises(errors.NotAQueueService, match="redirect"):
                service.ask(discovery, TOKEN.encode(), headers={"Authorization": TOKEN})
        assert other.connections == 0


def test_instances_and_discovery_see_only_what_is_theirs() -> None:
    with cluster(FINE) as service, service.client() as discovery:
        service.ask(discovery, headers={"Authorization": TOKEN})
        assert TOKEN not in "".join(service.discovery.heads())
        assert TOKEN in service.instances[0].heads()[0]


def test_a_signed_request_shows_no_token_and_carries_a_true_date() -> None:
    path = EasLookup("http://e", "svc").path("/v1/x%20y")
    with cluster(FINE) as service, service.client() as discovery:
        service.ask(discovery, b"[{}]", path="/v1/x%20y", headers=signed(TOKEN, b"[{}]", "", path))
        head = service.instances[0].heads()[0]
    headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    target = head.split(" ")[1]
    assert target == "/api/predict/svc/v1/x%20y"
    assert headers["Date"].endswith(" GMT")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-MD5"] == "a21cafb4c405e6997671a02e578b9b1e"
    expected = authorization(TOKEN, headers["Content-MD5"], headers["Content-Type"], headers["Date"], target)
    assert headers["Authorization"] == expected
    assert TOKEN not in head


def test_the_date_is_gmt_in_every_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    monkeypatch.setenv("TZ", "Asia/Shanghai")
    time.tzset()
    try:
        date = signed(TOKEN, b"", "", "/api/predict/svc")["Date"]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert abs((parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()) < 60


def test_an_unknown_service_is_not_found() -> None:
    with cluster(FINE) as service:
        service.listed.now = reply(404)
        with service.client() as discovery, pytest.raises(errors.NotFound, match="discovery at"):
            service.ask(discovery)
