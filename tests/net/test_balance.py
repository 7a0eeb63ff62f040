"""Smooth weighted round robin: exact per cycle, whatever the threads, the failures and the changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from easq.model import Instance
from easq.net.balance import Balance, shares


def of(*weights: int) -> list[Instance]:
    return [Instance(f"10.0.0.{n}", 50000 + n, weight) for n, weight in enumerate(weights)]


def first(_cycle: int) -> int:
    return 0


def counts(picks: Sequence[Instance | None], instances: Sequence[Instance]) -> list[int]:
    counted = Counter(picks)
    assert None not in counted
    return [counted[instance] for instance in instances]


def test_the_shares_are_exact() -> None:
    """The vector of the official Go SDK's own test."""
    instances = of(10, 10, 20, 10, 30)
    balance = Balance(instances)
    picks = [balance.next() for _ in range(10_000)]
    assert counts(picks, instances) == [1250, 1250, 2500, 1250, 3750]


def test_any_window_of_a_cycle_is_exact_and_the_picks_are_spread() -> None:
    instances = of(5, 1, 1)
    balance = Balance(instances, phase=first)
    picks = [balance.next() for _ in range(21)]
    assert [instances.index(pick) for pick in picks[:7] if pick] == [0, 0, 1, 0, 2, 0, 0]
    for start in range(14):
        assert counts(picks[start : start + 7], instances) == [5, 1, 1]


@pytest.mark.parametrize("steps", range(8))
def test_every_place_of_the_cycle_may_be_the_first(steps: int) -> None:
    instances = of(10, 10, 20, 10, 30)
    straight, later = Balance(instances, phase=first), Balance(instances, phase=lambda _cycle: steps)
    picks = [straight.next() for _ in range(16)]
    assert [later.next() for _ in range(8)] == picks[steps : steps + 8]


def test_runs_of_one_request_each_reach_all_instances_by_weight() -> None:
    instances = of(10, 10, 20, 10, 30)
    picks = [Balance(instances, phase=lambda cycle, n=n: n % cycle).next() for n in range(800)]
    assert counts(picks, instances) == [100, 100, 200, 100, 300]


def test_weight_0_is_drained_and_all_0_are_equal() -> None:
    drained, equal = of(0, 1, 2), of(0, 0, 0)
    balance = Balance(drained)
    assert counts([balance.next() for _ in range(300)], drained) == [0, 100, 200]
    balance = Balance(equal)
    assert counts([balance.next() for _ in range(300)], equal) == [100, 100, 100]


def test_an_instance_that_was_tried_is_not_picked_again() -> None:
    balance = Balance(of(1, 100, 0, 1))
    tried: set[str] = set()
    while instance := balance.next(tried):
        assert instance.address not in tried
        tried.add(instance.address)
    assert tried == {"10.0.0.0:50000", "10.0.0.1:50001", "10.0.0.3:50003"}
    assert balance.next() is not None


def test_the_share_of_a_failed_instance_is_spread_over_the_others() -> None:
    instances = of(1, 1, 1)
    balance = Balance(instances)
    served = []
    for _ in range(300):
        pick = balance.next()
        served.append(balance.next({pick.address}) if pick == instances[0] else pick)
    shared = counts(served, instances)
    assert shared[0] == 0
    assert abs(shared[1] - shared[2]) <= 2


def test_threads_share_one_cycle() -> None:
    instances = of(10, 10, 20, 10, 30)
    balance = Balance(instances)

    def work(_worker: int) -> list[Instance | None]:
        return [balance.next() for _ in range(1000)]

    with ThreadPoolExecutor(8) as pool:
        picks = [pick for some in pool.map(work, range(8)) for pick in some]
    assert counts(picks, instances) == [1000, 1000, 2000, 1000, 3000]


def test_an_equal_list_does_not_restart_the_cycle() -> None:
    instances = of(3, 1, 2)
    balance = Balance(instances)
    picks = []
    for turn in range(600):
        balance.replace(instances if turn % 2 else instances[::-1])
        picks.append(balance.next())
    assert counts(picks, instances) == [300, 100, 200]


def test_a_changed_list_is_used_from_the_next_pick_on() -> None:
    balance = Balance(of(1, 1))
    balance.next()
    changed = of(1, 3)
    balance.replace(changed)
    assert counts([balance.next() for _ in range(400)], changed) == [100, 300]
    fewer = of(1)
    balance.replace(fewer)
    assert balance.next() == fewer[0]
    assert balance.instances == tuple(fewer)


def test_no_instances() -> None:
    assert Balance().next() is None


def test_many_instances_of_large_weights_begin_at_once() -> None:
    instances = [
        Instance(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1, 999_983 + n % 7) for n in range(10_000)
    ]
    assert Balance(instances).next() in instances


def test_expected_shares() -> None:
    assert shares(of(10, 30, 0)) == [0.25, 0.75, 0.0]
    assert shares(of(0, 0)) == [0.5, 0.5]
