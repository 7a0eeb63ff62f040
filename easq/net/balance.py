"""Load balancing: smooth weighted round robin, as in nginx.

Each pick adds to the credit of every instance its weight, returns the instance with the highest credit, and subtracts
the sum of all weights from that credit. So each cycle has picks in exact proportion to the weights, spread evenly.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Callable, Collection, Sequence

from easq.model import Instance

#: most picks that are skipped to start within a cycle; they take a fraction of a second
_MAX_PHASE_WORK = 100_000


class Balance:
    """Picks instances by weight. Usable from several threads at once; no I/O."""

    def __init__(
        self, instances: Sequence[Instance] = (), *, phase: Callable[[int], int] = random.randrange
    ) -> None:
        """Prepare.

        Args:
            phase: returns the first pick within a cycle of the given length. It is random by default: otherwise all
                runs with a single request would use the same instance.
        """
        self._phase = phase
        self._lock = threading.Lock()
        self._instances: tuple[Instance, ...] = ()
        self._wheel: list[_Candidate] = []
        self.replace(instances)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """All instances, drained ones included."""
        return self._instances

    def replace(self, instances: Sequence[Instance]) -> None:
        """Use these instances from the next pick on. The same ones, in any order, do not restart the cycle."""
        with self._lock:
            if set(instances) == set(self._instances):
                return
            self._instances = tuple(instances)
            self._wheel = [_Candidate(instance, weight) for instance, weight in _effective(instances)]
            cycle = sum(seat.weight for seat in self._wheel)
            if cycle:
                for _ in range(self._phase(max(1, min(cycle, _MAX_PHASE_WORK // len(self._wheel))))):
                    _pick(self._wheel)

    def next(self, tried: Collection[str] = ()) -> Instance | None:
        """Return the next instance whose address is not in `tried`; None if there is none."""
        with self._lock:
            wheel = self._wheel
            if tried:
                wheel = [seat for seat in wheel if seat.instance.address not in tried]
            return _pick(wheel) if wheel else None

    def has_other(self, tried: Collection[str]) -> bool:
        """Return whether `next` would find an instance whose address is not in `tried`."""
        with self._lock:
            return any(seat.instance.address not in tried for seat in self._wheel)


def shares(instances: Sequence[Instance]) -> list[float]:
    """Return the part of the requests that each instance gets, from 0 to 1."""
    weights = dict(_effective(instances))
    total = sum(weights.values())
    return [weights.get(instance, 0) / total for instance in instances]


class _Candidate:
    """An instance and its credit."""

    __slots__ = ("credit", "instance", "weight")

    def __init__(self, instance: Instance, weight: int) -> None:
        self.instance, self.weight, self.credit = instance, weight, 0


def _effective(instances: Sequence[Instance]) -> list[tuple[Instance, int]]:
    """Return the instances that get requests, and their reduced weights. If all weights are 0, all are equal."""
    factor = math.gcd(*(instance.weight for instance in instances))
    if factor == 0:
        return [(instance, 1) for instance in instances]
    return [(instance, instance.weight // factor) for instance in instances if instance.weight]


def _pick(wheel: Sequence[_Candidate]) -> Instance:
    total = 0
    best = wheel[0]
    for seat in wheel:
        total += seat.weight
        seat.credit += seat.weight
        if seat.credit > best.credit:
            best = seat
    best.credit -= total
    return best.instance
