"""The counts of a put of many items: which are stored, which failed, which may be there twice, which are left."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from easq.client.items import LINES, Item, Items
from easq.client.journal import REMEMBERED_S
from easq.client.put_run import MAX_REPORTED, PutCounts, in_doubt
from easq.errors import AuthFailed, EasqError, NotFound, ServerError, Unreachable


def no_stdin() -> IO[bytes]:
    raise AssertionError("nothing reads stdin")


@pytest.fixture
def counts(tmp_path: Path) -> PutCounts:
    file = tmp_path / "lines"
    file.write_text("a\nb\nc\nd\n")
    return PutCounts(Items([str(file)], LINES, stdin=no_stdin), stop_at_failure=True)


def test_stored_failed_and_rest_are_all_items(counts: PutCounts) -> None:
    items = iter(counts.items)
    assert counts.add_stored(next(items)) == 0
    counts.add_failed(next(items), NotFound("no queue"))
    assert (counts.stored, counts.failed, counts.ended, counts.size) == (1, 1, 2, 1)
    assert counts.rest(unread=True) is None
    assert counts.rest(unread=False) == 2


def test_items_of_earlier_runs_are_stored_and_not_sent(counts: PutCounts) -> None:
    counts.stored_before = 3
    assert counts.add_stored(Item(b"x")) == 3
    assert (counts.stored, counts.stored_now) == (4, 1)


def test_failures_with_the_same_message_are_one_with_a_number(counts: PutCounts) -> None:
    for line in (1, 2, 3):
        counts.add_failed(Item(b"", "f", line), AuthFailed("wrong token"))
    counts.add_failed(Item(b"", "f", 4), NotFound("no queue"))
    told = [(where, error.message) for where, error in counts.distinct_failures()]
    assert told == [("line 1 of f and 2 more", "wrong token"), ("line 4 of f", "no queue")]


def test_no_more_failures_are_kept_than_are_reported(counts: PutCounts) -> None:
    for line in range(MAX_REPORTED + 5):
        counts.add_failed(Item(b"", "f", line), NotFound("no"))
    assert (counts.failed, len(counts.failures)) == (MAX_REPORTED + 5, MAX_REPORTED)


def test_a_recognised_key_clears_the_doubt_about_all_young_puts(counts: PutCounts) -> None:
    counts.add_answer(is_duplicate=False, doubt_s=None)
    assert counts.possible_duplicates == 0
    counts.add_answer(is_duplicate=False, doubt_s=1.0)
    counts.add_answer(is_duplicate=False, doubt_s=REMEMBERED_S)
    assert counts.possible_duplicates == 2
    counts.add_answer(is_duplicate=True, doubt_s=1.0)
    assert counts.possible_duplicates == 1  # the service may have forgotten the old one


@pytest.mark.parametrize(
    ("error", "kind"), [(ServerError("broke"), ServerError), (NotFound("gone"), Unreachable)]
)
def test_an_error_in_doubt_says_so(error: EasqError, kind: type[EasqError]) -> None:
    doubtful = in_doubt(error)
    assert type(doubtful) is kind
    assert doubtful.message == f"{error.message}; whether it was stored is not known"
