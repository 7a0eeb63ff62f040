"""Requests that the client sends straight to instances go on while these fail, and follow the lists of discovery.

The instances, the gateway and discovery are those of `easq serve --model`; each request has an id, by which it is
seen where it came.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from easq.errors import EasqError, Unreachable
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.prediction.discovery import Discovery
from easq.prediction.exchanges import Served, predict_direct, predict_gateway
from easq.prediction.lookup import EasLookup
from easq.protocol.operations import Caller
from tests.conftest import OpenCloud
from tests.support.platform import Cloud
from tests.support.waiting import PATIENCE_S, eventually

SETTINGS = NetworkSettings(connect_timeout_s=2.0, environ={})
FAULTS = ("killed", "hung", "busy", "half")
#: of a request; a third of it is what one attempt on a hung instance takes
TIMEOUT_S = 6.0


class Client:
    """The client's side of direct connect; each request has an id of its own as data and in a header."""

    def __init__(self, cloud: Cloud, transport: Transport, discovery: Discovery) -> None:
        self.cloud = cloud
        self.discovery = discovery
        self._transport = transport
        self._ids = itertools.count()

    def ask(self, timeout_s: float = TIMEOUT_S) -> Served:
        """One request, rightly answered."""
        name = f"r{next(self._ids)}"
        self.discovery.fill(within_s=timeout_s)
        self.discovery.keep_fresh()
        served = self._transport.run(
            predict_direct(
                self.discovery,
                self._transport.settings,
                name.encode(),
                headers={"X-Id": name},
                timeout_s=timeout_s,
            )
        )
        assert served.data == name.encode()
        return served

    def through_gateway(self) -> Served:
        """One request by way of the gateway."""
        name = f"g{next(self._ids)}"
        answer = self._transport.run(
            predict_gateway(
                self.cloud.url,
                Caller(),
                self._transport.settings,
                name.encode(),
                headers={"X-Id": name},
                timeout_s=TIMEOUT_S,
            )
        )
        assert answer.data == name.encode()
        return answer


@contextmanager
def client(cloud: Cloud, *, refresh_s: float = 60.0) -> Iterator[Client]:
    with Transport(SETTINGS) as transport:
        with Discovery(EasLookup(cloud.origin, "model"), SETTINGS, refresh_s=refresh_s) as discovery:
            yield Client(cloud, transport, discovery)


def under_load(ask: Callable[[], Any], count: int, meanwhile: Callable[[], None]) -> list[Any]:
    """Return the results of `count` requests from four threads. `meanwhile` is called once a quarter of them was
    answered, and half of them begin after it.
    """
    answered = threading.Semaphore(0)
    happened = threading.Event()

    def one(number: int) -> Any:
        if number >= count // 2:
            assert happened.wait(PATIENCE_S)
        result = ask()
        answered.release()
        return result

    with ThreadPoolExecutor(4) as pool:
        results = pool.map(one, range(count))
        for _ in range(count // 4):
            assert answered.acquire(timeout=PATIENCE_S)
        meanwhile()
        happened.set()
        return list(results)


def check_no_repetition(cloud: Cloud) -> None:
    """No request came to an instance twice."""
    twice = [arrival for arrival, times in Counter(cloud.seen).items() if times > 1]
    assert twice == []


@pytest.mark.parametrize("fault", FAULTS)
def test_no_request_fails_while_one_instance_does(cloud: OpenCloud, fault: str) -> None:
    """One of three is killed, hung, busy or cuts its answers, under load: each request is answered, by the second
    attempt at the latest, and none comes to the same instance twice.
    """
    made = cloud(weights=(1, 1, 1))
    with client(made) as mine:
        served = under_load(mine.ask, 40 if fault == "hung" else 200, lambda: made.fail(1, fault))
    attempts = Counter(one.times.attempts for one in served)
    assert set(attempts) == {1, 2}
    check_no_repetition(made)
    again = [one for one in served if one.times.attempts == 2]
    assert all(one.address != made.addresses[1] for one in again)


def test_a_slow_instance_keeps_its_part(cloud: OpenCloud) -> None:
    """Late is not failed: no request is sent a second time, and the parts are what the weights say."""
    made = cloud(weights=(1, 3))
    made.fault(0, "slow")
    with client(made) as mine:
        served = under_load(mine.ask, 40, lambda: None)
    assert {one.times.attempts for one in served} == {1}
    assert made.counts() == [10, 30]


@pytest.mark.long
@pytest.mark.parametrize(("first", "second"), [*itertools.combinations_with_replacement(FAULTS, 2)])
def test_no_request_fails_while_one_instance_is_left(cloud: OpenCloud, first: str, second: str) -> None:
    """Two of three fail, each in its own way: the third answers all, by the third attempt at the latest."""
    made = cloud(weights=(1, 1, 1))

    def fail() -> None:
        made.fail(0, first)
        made.fail(2, second)

    with client(made) as mine:
        served = under_load(mine.ask, 40 if "hung" in (first, second) else 200, fail)
    assert max(one.times.attempts for one in served) <= 3
    check_no_repetition(made)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_gateway_answers_too_while_one_instance_fails(cloud: OpenCloud, fault: str) -> None:
    """The client sends again what the gateway could not have answered, and the gateway's next turn is another's."""
    made = cloud(weights=(1, 1, 1), timeout_s=1.0)  # the gateway's, after which it answers 504
    with client(made) as mine:
        under_load(mine.through_gateway, 20 if fault == "hung" else 100, lambda: made.fail(1, fault))
    assert made.asked("discovery") == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_with_all_down_each_is_tried_before_any_is_again(cloud: OpenCloud, fault: str) -> None:
    """The error comes within the deadline; and in each round of attempts no instance is asked twice."""
    made = cloud(weights=(1, 1, 1))
    with client(made) as mine:
        mine.ask()
        for number in range(3):
            made.fail(number, fault)
        del made.seen[:]
        with pytest.raises(EasqError) as caught:
            mine.ask(timeout_s=0.5)
        assert caught.value.status in (502, 503, 504)
        order = [number for number, _ in made.seen]
        for start in range(0, len(order) - 2, 3):
            assert sorted(order[start : start + 3]) == [0, 1, 2]
        for number in range(3):
            made.back(number)
        served: set[str] = set()

        def all_serve() -> bool:
            served.add(mine.ask().address)
            return served == set(made.addresses)

        eventually(all_serve)


def test_discovery_is_not_asked_by_requests(cloud: OpenCloud) -> None:
    """One question for all of them, as counted at the server."""
    made = cloud(weights=(1, 1))
    with client(made) as mine:
        under_load(mine.ask, 200, lambda: None)
    assert made.asked("discovery") == 1


def refreshed(mine: Client, done: Callable[[], bool]) -> int:
    """Requests go on until `done`; how often discovery was asked meanwhile."""
    before = mine.cloud.asked("discovery")

    def look() -> bool:
        mine.ask()
        return done()

    eventually(look)
    return mine.cloud.asked("discovery") - before


def test_an_instance_that_returns_is_served_within_a_refresh(cloud: OpenCloud) -> None:
    """It left the list and the client with it; it is back with the next answer (or the one after, when that was
    under way).
    """
    made = cloud(weights=(1, 1))
    with client(made, refresh_s=0.2) as mine:
        mine.ask()
        made.list(0, False)
        assert refreshed(mine, lambda: len(mine.discovery.instances) == 1) <= 2
        before = made.counts()[0]
        for _ in range(10):
            mine.ask()
        assert made.counts()[0] == before
        made.list(0, True)
        assert refreshed(mine, lambda: made.counts()[0] > before) <= 2


def test_a_weight_takes_effect_within_a_refresh(cloud: OpenCloud) -> None:
    """In the middle of a run: from then on the parts are exact again, and 0 is drained."""
    made = cloud(weights=(1, 1))
    with client(made, refresh_s=0.2) as mine:

        def parts(count: int) -> list[int]:
            before = made.counts()
            for _ in range(count):
                mine.ask()
            return [now - then for now, then in zip(made.counts(), before, strict=True)]

        def weights() -> list[int]:
            listed = {one.address: one.weight for one in mine.discovery.instances}
            return [listed.get(address, 0) for address in made.addresses]

        assert parts(40) == [20, 20]
        made.weigh(0, 3)
        assert refreshed(mine, lambda: weights() == [3, 1]) <= 2
        assert parts(40) == [30, 10]
        made.weigh(1, 0)
        assert refreshed(mine, lambda: weights() == [3, 0]) <= 2
        assert parts(40) == [40, 0]


@pytest.mark.parametrize(
    "count", [pytest.param(80, id="80"), pytest.param(10_000, id="10000", marks=pytest.mark.long)]
)
def test_shares_are_exact_in_every_cycle(cloud: OpenCloud, count: int) -> None:
    """Weights 10, 10, 20, 10, 30: of each 8 requests 1, 1, 2, 1 and 3, as seen at the instances; 0 gets none."""
    made = cloud(weights=(10, 10, 20, 0, 10, 30))
    with client(made) as mine:
        for _ in range(count):
            mine.ask()
    order = [number for number, _ in made.seen]
    for start in range(0, count, 8):
        assert Counter(order[start : start + 8]) == {0: 1, 1: 1, 2: 2, 4: 1, 5: 3}
    assert made.counts() == [count // 8, count // 8, count // 4, 0, count // 8, 3 * count // 8]
    assert made.asked("discovery") == 1


def check_that_an_empty_list_is_ignored(cloud: OpenCloud) -> None:
    """Discovery answers 200 with an empty list, again and again, and requests go on."""
    made = cloud(weights=(1, 1))
    with client(made, refresh_s=0.1) as mine:
        mine.ask()
        made.empty()
        asked = made.asked("discovery")
        eventually(lambda: made.asked("discovery") >= asked + 3)
        for _ in range(10):
            mine.ask(timeout_s=1.0)
        assert len(mine.discovery.instances) == 2


def test_an_empty_list_does_not_clear_what_is_known(cloud: OpenCloud) -> None:
    check_that_an_empty_list_is_ignored(cloud)


def test_a_cache_that_an_empty_list_clears_is_caught(
    cloud: OpenCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check above fails for a client with the official SDKs' mistake."""
    ask = Discovery._ask

    def clearing(self: Discovery, *arguments: Any, **options: Any) -> None:
        try:
            ask(self, *arguments, **options)
        except Unreachable:  # what it raises for a list without instances
            self._balance.replace(())
            raise

    monkeypatch.setattr(Discovery, "_ask", clearing)
    with pytest.raises(Unreachable):
        check_that_an_empty_list_is_ignored(cloud)


def test_the_service_itself_never_sends_an_empty_list(cloud: OpenCloud) -> None:
    """If all instances are gone or drained, the client keeps its last list."""
    made = cloud(weights=(1, 1))
    with client(made, refresh_s=0.1) as mine:
        mine.ask()
        made.weigh(0, 0)
        made.list(1, False)
        asked = made.asked("discovery")
        eventually(lambda: made.asked("discovery") >= asked + 3)
        mine.ask()
        assert len(mine.discovery.instances) >= 1
