"""Random steps against the real engines and a plain reference: every answer is equal.

`EASQ_EXAMPLES=5000 pytest -n 2 tests/model` runs so many, each time others; a failure prints the shortest steps found.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from easq.storage.redis import stream as remote
from easq.storage.rules import failures
from tests.model.machine import Machine, Restarts, SharedRedis
from tests.model.reference import FREE_LOSSES

EXAMPLES = int(os.environ.get("EASQ_EXAMPLES", "0"))
#: what the suite runs is the same each time; more examples are others each time
SETTINGS = settings(
    max_examples=EXAMPLES or 80,
    stateful_step_count=50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True)
def few_losses_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are few: a loss counts earlier than it does for users."""
    for module in (failures, remote):
        monkeypatch.setattr(module, "FREE_LOSSES", FREE_LOSSES)


@pytest.mark.parametrize("machine", [Machine, Restarts])
def test_every_answer_is_the_references(machine: type[Machine]) -> None:
    """Memory and SQLite give the same answers, and SQLite also when it is stopped or killed in between."""
    run_state_machine_as_test(machine, settings=SETTINGS)


def redis_gives_the_same_answers(url: str, examples: int) -> None:
    machine = type("OnRedis", (SharedRedis,), {"redis_url": url})
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=EXAMPLES or examples))


def test_redis_gives_the_same_answers(redis_url: str) -> None:
    redis_gives_the_same_answers(redis_url, 10)


@pytest.mark.long
def test_redis_gives_the_same_answers_for_long(redis_url: str) -> None:
    redis_gives_the_same_answers(redis_url, 80)
