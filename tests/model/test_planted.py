"""The reference detects each planted bug: some answer of the engine differs."""

from __future__ import annotations

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.machine import InMemory, Machine, Restarts
from tests.model.planted import AFTER_A_RESTART, BUGS
from tests.model.test_model import SETTINGS, few_losses_are_free

__all__ = ["few_losses_are_free"]

#: the first answer that differs is enough here, the shortest way to it is not looked for
AT_ONCE = settings(SETTINGS, max_examples=1000, derandomize=True, phases=[Phase.generate], print_blob=False)

#: other programs, where those of `AT_ONCE` do not meet the bug: some need a rare order of calls
BY_CHANCE = settings(AT_ONCE, derandomize=False, database=None)


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    machine: type[Machine] = Restarts if bug in AFTER_A_RESTART else InMemory
    assert any(is_caught(machine, tried) for tried in (AT_ONCE, BY_CHANCE, BY_CHANCE))


def is_caught(machine: type[Machine], tried: settings) -> bool:
    try:
        run_state_machine_as_test(machine, settings=tried)
    except AssertionError:
        return True
    return False
