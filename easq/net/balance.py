"""Which instance is next: smooth weighted round robin, as nginx does it.

Each pick gives every instance its weight as credit, takes the one with the most, and takes the total off it
again. So the picks of an instance lie spread over the cycle, and each cycle has them in exact proportion.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Collection, Sequence

from easq.model import Instance

#: credits computed to begin somewhere in the cycle; a fraction of a second of work at most
_MAX_PHASE_WORK = 100_000


class Balance:
    """Hands out instances by weight. Usable from several threads at once; no I/O."""

    def __init__(
        self, instances: Sequence[Instance] = (), *, phase: Callable[[int], int] = random.randrange
    ) -> None:
        """`phase` says how many picks into a cycle of the given length it begins: else each run that makes
        a single request would make it to the same instance.
        """
        self._phase = phase
        self._lock = threading.Lock()
        self._instances: tuple[Instance, ...] = ()
        self._wheel: list[_Seat] = []
        self.replace(instances)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Those that it hands out, and those of weight 0."""
        return self._instances

    def replace(self, instances: Sequence[Instance]) -> None:
        """From the next pick on these count. The same ones again, in any order, leave the cycle where it is."""
        with self._lock:
            if set(instances) == set(self._instances):
                return
            self._instances = tuple(instances)
            self._wheel = [_Seat(instance, weight) for instance, weight in _effective(instances)]
            cycle = sum(seat.weight for seat in self._wheel)
            if cycle:
                for _ in range(self._phase(max(1, min(cycle, _MAX_PHASE_WORK // len(self._wheel))))):
                    _turn(self._wheel)

    def next(self, tried: Collection[str] = ()) -> Instance | None:
        """The next one whose address is not among `tried`; None when there is none."""
        with self._lock:
            wheel = self._wheel
            if tried:
                wheel = [seat for seat in wheel if seat.instance.address not in tried]
            return _turn(wheel) if wheel else None


def shares(instances: Sequence[Instance]) -> list[float]:
    """The part of the requests that each gets, from 0 to 1."""
    weights = dict(_effective(instances))
    total = sum(weights.values())
    return [weights.get(instance, 0) / total for instance in instances]


class _Seat:
    """An instance on the wheel, with what it is owed."""

    __slots__ = ("credit", "instance", "weight")

    def __init__(self, instance: Instance, weight: int) -> None:
        self.instance, self.weight, self.credit = instance, weight, 0


def _effective(instances: Sequence[Instance]) -> list[tuple[Instance, int]]:
    """Those that get requests, with weights in lowest terms: 0 is drained, all 0 is all equal."""
    factor = math.gcd(*(instance.weight for instance in instances))
    if factor == 0:
        return [(instance, 1) for instance in instances]
    return [(instance, instance.weight // factor) for instance in instances if instance.weight]


def _turn(wheel: Sequence[_Seat]) -> Instance:
    total = 0
    best = wheel[0]
    for seat in wheel:
        total += seat.weight
        seat.credit += seat.weight
        if seat.credit > best.credit:
            best = seat
    best.credit -= total
    return best.instance
