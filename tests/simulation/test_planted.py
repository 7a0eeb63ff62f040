"""Each planted bug is detected: it breaks a promise in one of the first runs, and the failure names that promise."""

from __future__ import annotations

import pytest

from tests.simulation.books import Broken
from tests.simulation.planted import BUGS
from tests.simulation.world import play

#: a bug that shows in none of so many lives is not caught
_LIVES = 60
#: planted bug -> the promises of which one is named
NAMED = {
    "takeover_forgets_what_is_out": ("I15", "I13", "P10", "P8"),
    "redelivery_loses_priority": ("P8",),
    "truncate_takes_one_more": ("truncate counts", "I1"),
    "counts_start_anew_after_a_restart": ("I9",),
    "lost_connection_keeps_what_is_out": ("P12", "P13", "I15", "I13"),
    "commits_are_not_stored": ("P9",),
    "one_failure_too_many": ("P13",),
    "poison_comes_with_company": ("P13",),
    "window_is_one_larger": ("I6", "I13"),
    "claims_are_seen": ("P17", "I1", "I13"),
    "time_is_not_due": ("P11",),
    "groups_hold_what_they_do_not_want": ("I1", "P9", "I13"),
    "absent_groups_hold_nothing": ("I1", "P9", "P11", "P16"),
    "a_break_ends_a_filter": ("I1", "P9", "P11", "P16"),
    "what_a_filter_held_stays": ("I1", "P9", "I13"),
    "forgotten_groups_come_back": ("I1", "P9", "P16", "I13"),
    "a_process_that_is_back_has_failed": ("I9", "P13", "P12"),
    "a_process_that_is_back_has_nothing": ("P11", "P8", "P13", "I15"),
    "busy_is_a_failure": ("P11", "P12", "P13", "I9"),
    "busy_never_ends": ("P11", "P12", "P13", "I9"),
    "what_failed_comes_to_the_same": ("P10",),
}


def lives() -> None:
    for seed in range(_LIVES):
        play(seed)


@pytest.mark.long
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS[bug](monkeypatch)
    with pytest.raises(Broken) as caught:
        lives()
    _, _, told = str(caught.value).splitlines()[0].partition(": Broken: ")
    assert told.startswith(NAMED[bug])


def test_a_failure_tells_its_seed_and_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    BUGS["window_is_one_larger"](monkeypatch)
    with pytest.raises(Broken) as caught:
        lives()
    first, *story = str(caught.value).splitlines()
    assert first.startswith("seed ")
    assert any(" put 1 " in line for line in story)
    assert any(" attach " in line for line in story)
