"""Thousands of random lives of a stream: each keeps every promise, after every event.

`EASQ_SEEDS=3000` makes the test command play so many; `EASQ_FIRST_SEED=N` starts at another one. A failure prints its
seed and all events, and `play(seed)` repeats it.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.world import play

SEEDS = int(os.environ.get("EASQ_SEEDS", "320"))
#: what the long test plays beyond these
MORE = 1680
FIRST = int(os.environ.get("EASQ_FIRST_SEED", "0"))
#: seeds are spread over so many tests, so that workers share them
_SHARES = 16


@pytest.mark.parametrize("share", range(_SHARES))
def test_every_promise_holds_after_every_event(share: int) -> None:
    played = [play(seed) for seed in range(FIRST + share, FIRST + SEEDS, _SHARES)]
    assert sum(one.deliveries for one in played) > 10 * len(played)


@pytest.mark.long
@pytest.mark.parametrize("share", range(_SHARES))
def test_thousands_of_lives(share: int) -> None:
    """Play MORE seeds beyond those of the test command."""
    for seed in range(FIRST + SEEDS + share, FIRST + SEEDS + MORE, _SHARES):
        play(seed)


def test_a_seed_is_the_same_life_each_time() -> None:
    assert play(1) == play(1)


@pytest.mark.parametrize("seed", [365, 1563])
def test_one_connection_waits_for_an_item_that_goes_alone(seed: int) -> None:
    """The item was put back more than once: a second connection that waited for it got nothing else."""
    play(seed)
