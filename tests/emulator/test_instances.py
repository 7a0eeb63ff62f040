"""The instances of a service: which ones are listed, and which one is called next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from easq.emulator.instances import Instances
from easq.emulator.settings import ModelService
from easq.server.auth import Guard

GUARD = Guard.make(bound="127.0.0.1", token="", allowed_hosts=())


def with_instances(
    weights: tuple[int, ...], act: Callable[[Instances], None], host: str = "127.0.0.1"
) -> None:
    """Call `act` with instances that listen."""

    async def body() -> None:
        instances = Instances.of(ModelService("echo", weights=weights), GUARD, base="/api/predict")
        await instances.start(host)
        try:
            act(instances)
        finally:
            await instances.stop()

    asyncio.run(body())


def ports(instances: Instances, count: int, tried: set[str] | None = None) -> list[int]:
    """Return the ports of the next instances."""
    numbers = {place.address: number for number, place in enumerate(instances.places())}
    found = [instances.next(tried or set()) for _ in range(count)]
    return [numbers[one.address] for one in found if one is not None]


def test_without_a_service_there_is_none() -> None:
    none = Instances.of(None, GUARD, base="")
    assert (none.all, none.places(), none.addresses(), none.next(set())) == ([], [], [], None)


def test_the_next_instance_is_chosen_by_weight() -> None:
    """The shares are exact in each cycle. A drained or unlisted instance gets none, though it has an address."""

    def act(instances: Instances) -> None:
        assert Counter(ports(instances, 30)) == {0: 20, 1: 10}
        instances.set_listed(0, is_listed=False)
        assert ports(instances, 2) == [1, 1]
        instances.set_weight(2, 10)
        assert Counter(ports(instances, 20)) == {1: 10, 2: 10}
        assert len(instances.places()) == 3
        assert [place.weight for place in instances.addresses()] == [10, 10]

    with_instances((20, 10, 0), act)


def test_a_suspected_instance_is_passed_over_while_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("easq.emulator.instances.time", SimpleNamespace(monotonic=lambda: now[0]))

    def act(instances: Instances) -> None:
        first, second = instances.addresses()
        instances.suspect(first)
        assert ports(instances, 4) == [1, 1, 1, 1]
        assert ports(instances, 1, {second.address}) == [0]
        assert ports(instances, 1, {first.address, second.address}) == []
        now[0] += 5.1
        assert sorted(ports(instances, 4)) == [0, 0, 1, 1]

    with_instances((10, 10), act)


def test_an_instance_on_all_addresses_is_named_by_the_one_that_the_caller_knows() -> None:
    def act(instances: Instances) -> None:
        assert [place.ip for place in instances.places()] == ["127.0.0.1"]
        assert [place.ip for place in instances.places("192.0.2.1")] == ["192.0.2.1"]

    with_instances((10,), act, host="0.0.0.0")
