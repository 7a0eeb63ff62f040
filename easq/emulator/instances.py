"""The instances of one service, their weights, and which of them is called next."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace

from easq.emulator.instance import ModelInstance
from easq.emulator.settings import ModelService
from easq.model import Instance
from easq.models.open import open_model
from easq.net.balance import Balance
from easq.server.auth import Guard, is_unspecified

#: time during which an instance that gave no answer is avoided, in seconds
_SUSPECT_S = 5.0


@dataclass(slots=True)
class _Member:
    """An instance, its weight, and whether discovery lists it."""

    instance: ModelInstance
    weight: int
    is_listed: bool = True


@dataclass(slots=True, eq=False)
class Instances:
    """All instances of a service; none without a service."""

    _members: list[_Member] = field(default_factory=list)
    _balance: Balance = field(default_factory=Balance)
    _suspects: dict[str, float] = field(default_factory=dict)  # address -> until when, by the monotonic clock

    @classmethod
    def of(cls, service: ModelService | None, guard: Guard, *, base: str) -> Instances:
        """Return the instances of `service`, which do not listen yet. Raises UsageError for the model."""
        if service is None:
            return cls()
        own_guard = replace(guard, token="") if service.open_instances else guard
        return cls(
            [
                _Member(
                    ModelInstance(
                        open_model(service.model),
                        own_guard,
                        base=base,
                        name=service.name,
                        limits=service.limits,
                    ),
                    weight,
                )
                for weight in service.weights
            ]
        )

    @property
    def all(self) -> list[ModelInstance]:
        """All instances in order, listed or not."""
        return [member.instance for member in self._members]

    async def start(self, host: str) -> None:
        """Listen on `host`, each at a port of its own. Raises ConfigError."""
        for instance in self.all:
            await instance.start(host)
        self._rebalance()

    async def stop(self) -> None:
        """Stop all instances, at the same time."""
        await asyncio.gather(*(instance.stop() for instance in self.all))

    def set_weight(self, number: int, weight: int) -> None:
        """Change the weight of instance `number`; 0 drains it."""
        self._members[number].weight = weight
        self._rebalance()

    def set_listed(self, number: int, *, is_listed: bool) -> None:
        """List instance `number`, or remove it from the lists. It answers in either case."""
        self._members[number].is_listed = is_listed
        self._rebalance()

    def places(self, reached_at: str = "") -> list[Instance]:
        """Return the addresses of all instances, in order, with their weights.

        Args:
            reached_at: the local address of the caller's connection; empty for loopback. It is returned for instances
                that listen on all addresses of the machine.
        """
        places = []
        for member in self._members:
            ip = member.instance.ip
            if is_unspecified(ip):
                ip = reached_at or ("::1" if ":" in ip else "127.0.0.1")
            places.append(Instance(ip, member.instance.port, member.weight))
        return places

    def addresses(self, reached_at: str = "") -> list[Instance]:
        """Return the `places` that may get requests: listed, and not drained.

        A drained instance is omitted, since the Go SDK divides by zero at weight 0.
        """
        places = zip(self.places(reached_at), self._members, strict=True)
        return [place for place, member in places if member.is_listed and member.weight]

    def _rebalance(self) -> None:
        self._balance.replace(self.addresses())

    def next(self, tried: set[str]) -> Instance | None:
        """Return the next instance by weight. A suspected instance is returned only if there is no other.

        Args:
            tried: addresses that are excluded.
        """
        now = time.monotonic()
        self._suspects = {address: until for address, until in self._suspects.items() if until > now}
        return self._balance.next(tried | self._suspects.keys()) or self._balance.next(tried)

    def suspect(self, address: Instance) -> None:
        """Record that the instance gave no answer, or an incomplete one."""
        self._suspects[address.address] = time.monotonic() + _SUSPECT_S
