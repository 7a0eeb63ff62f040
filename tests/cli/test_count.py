"""easq count: items present, by tag, by priority, in each stream."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Easq


@pytest.fixture
def mixed(queue: Easq) -> Easq:
    """Two items of task a, one of them urgent, one of task b, and one result."""
    queue("put", "-q", "-d", "1", "--tags", "task=a", "--tags", "k=v w")
    queue("put", "-q", "-d", "2", "--tags", "task=a", "--priority", "1")
    queue("put", "-q", "-d", "3", "--tags", "task=b")
    queue("put", "-q", "-k", "-d", "4", "--tags", "task=a")
    return queue


@pytest.mark.parametrize(
    ("args", "number"),
    [
        ([], 3),
        (["--tags", "task=a"], 2),
        (["--tags", "task=a", "--tags", "k=v w"], 1),
        (["--tags", "task=c"], 0),
        (["--priority", "1"], 1),
        (["--priority", "0"], 2),
        (["--priority", "0", "--tags", "task=a"], 1),
        (["-k"], 1),
        (["-k", "--tags", "task=b"], 0),
        (["--rear"], 0),
    ],
)
def test_the_number_alone_is_printed(mixed: Easq, args: list[str], number: int) -> None:
    done = mixed("count", *args)
    assert (done.status, done.text, done.err) == (0, f"{number}\n", "")


def test_the_other_forms(mixed: Easq) -> None:
    assert mixed("count", "-o", "json").text == '{"count":3}\n'
    assert mixed("count", "-o", "table").text == "count\n3\n"
    assert mixed("count", "-o", "none").text == ""


@pytest.mark.parametrize(
    "args", [["--priority", "-1"], ["--priority", "x"], ["--tags", "x"], ["--tags", "_x=1"]]
)
def test_what_cannot_be_counted_is_refused(queue: Easq, args: list[str]) -> None:
    done = queue("count", *args)
    assert (done.status, done.out) == (2, b"")
    assert args[1] in done.err
