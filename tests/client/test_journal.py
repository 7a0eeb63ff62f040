"""The journal: the state of a killed run, and the inputs that it refuses."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

import pytest

from easq.client.journal import Journal, Numbers
from easq.errors import StorageError, UsageError
from tests.support.nodes import NODES, look

INPUT = [b"a", b"b", b"c", b"d", b"e", b"f"]


def opened(path: Path, *, target: str = "http://h/q", how: str = "") -> Journal:
    return Journal(str(path), target=target, how=how)


def left(journal: Journal, records: Iterable[bytes] = INPUT) -> list[tuple[bytes, int]]:
    return [(record, entry.number) for record, entry in journal.left((r, r) for r in records)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def begun(path: Path) -> Path:
    """Write the journal of a run that read all records, and stored records 0, 1 and 3."""
    with opened(path) as journal:
        assert left(journal) == [(record, number) for number, record in enumerate(INPUT)]
        journal.stored([0, 1])
        journal.stored([3])
    return path


def test_what_was_stored_is_left_out_and_keys_stay(begun: Path) -> None:
    with opened(begun) as first:
        key = first.key(2)
        assert first.stored_before == 3
        assert left(first) == [(b"c", 2), (b"e", 4), (b"f", 5)]
        first.stored([2])
    with opened(begun) as second:
        assert second.key(2) == key
        assert left(second) == [(b"e", 4), (b"f", 5)]
        second.stored([4, 5])
    with opened(begun) as third:
        assert left(third) == []


def test_keys_differ_from_journal_to_journal(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as one, opened(tmp_path / "b") as two:
        assert one.key(0) != two.key(0)
        assert re.fullmatch(r"[0-9a-f]{16}-0", one.key(0))


def test_only_what_may_have_been_sent_is_in_doubt(path: Path) -> None:
    with opened(path) as journal:
        assert [entry.doubt_s for _, entry in journal.left((r, r) for r in INPUT[:3])] == [None] * 3
        journal.stored([0])
        journal.refused([2])
    with opened(path) as journal:
        many = [*INPUT, *(b"%d" % number for number in range(100))]
        doubts = {entry.number: entry.doubt_s for _, entry in journal.left((r, r) for r in many)}
    assert 0 not in doubts
    assert doubts[1] is not None
    assert 0 <= doubts[1] < 600
    assert doubts[2] is None  # refused for certain
    assert doubts[100] is None  # beyond what was said to be begun


def test_a_record_is_said_to_be_begun_before_it_is_given(path: Path) -> None:
    with opened(path) as journal:
        records = journal.left((r, r) for r in INPUT)
        assert b"begun" not in path.read_bytes()
        next(records)
        assert re.search(rb"^[0-9a-f]{16} begun 64 [0-9]+\n", path.read_bytes(), re.MULTILINE)


def test_it_is_private_and_holds_no_payload_and_no_address(begun: Path) -> None:
    assert stat.S_IMODE(begun.stat().st_mode) == 0o600
    text = begun.read_bytes()
    assert b"http" not in text
    assert re.fullmatch(rb"(?:[0-9a-f]{16} (?:easq-journal|begun|ok|no) [0-9a-f ,-]+\n)+", text)


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_it_is_private_from_its_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    """It is made so, whatever the umask, and need not become so."""
    made: list[int] = []
    monkeypatch.setattr(os, "fchmod", lambda fd, _: made.append(stat.S_IMODE(os.fstat(fd).st_mode)))
    old = os.umask(umask)
    try:
        with opened(path):
            pass
    finally:
        os.umask(old)
    assert made == [0o600 & ~umask]


def test_one_that_others_could_read_is_private_from_now_on(path: Path) -> None:
    path.touch(mode=0o644)
    path.chmod(0o644)
    with opened(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_line_that_a_kill_cut_off_is_forgotten(begun: Path) -> None:
    whole = begun.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[-1])):
        begun.write_bytes(whole[:-cut])
        with opened(begun) as journal:
            assert left(journal) == [(b"c", 2), (b"d", 3), (b"e", 4), (b"f", 5)]
            journal.stored([3])
        with opened(begun) as journal:
            assert left(journal) == [(b"c", 2), (b"e", 4), (b"f", 5)]


def test_every_change_of_a_whole_line_is_noticed(begun: Path) -> None:
    whole = begun.read_bytes()
    lines = whole.splitlines(keepends=True)
    last = len(whole) - 1  # without its line feed the last line is one that was cut off
    for at in range(last):
        begun.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UsageError, match="cannot be trusted") as caught:
            opened(begun)
        assert caught.value.hint
    for missing in range(len(lines) - 1):
        begun.write_bytes(b"".join(lines[:missing] + lines[missing + 1 :]))
        with pytest.raises(UsageError, match="cannot be trusted"):
            opened(begun)
    begun.write_bytes(b"".join([*lines, lines[-1]]))
    with pytest.raises(UsageError, match="cannot be trusted"):
        opened(begun)


@pytest.mark.parametrize("other", [{"target": "http://h/other"}, {"how": "tags"}])
def test_a_journal_of_another_address_or_options_is_refused(begun: Path, other: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="belongs to another"):
        opened(begun, **other)


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([b"X", *INPUT[1:]], "its first 6 records differ"),
        ([*INPUT[:5], b"X"], "its first 6 records differ"),
        ([b"ab", b"", *INPUT[2:]], "its first 6 records differ"),
        (INPUT[:5], "it ends after 5 records"),
        ([], "it ends after 0 records"),
    ],
)
def test_another_input_is_refused_before_any_record_is_given(
    begun: Path, records: list[bytes], why: str
) -> None:
    with opened(begun) as journal:
        given = journal.left((r, r) for r in records)
        with pytest.raises(UsageError) as caught:
            next(given)
    assert caught.value.message == f"the input is not the one of the journal {begun}: {why}"


def test_an_input_that_grew_is_the_same(begun: Path) -> None:
    with opened(begun) as journal:
        assert [record for record, _ in left(journal, [*INPUT, b"g"])] == [b"c", b"e", b"f", b"g"]


@pytest.mark.parametrize("content", [b"precious", b"precious\n", b"abc", b"\0" * 100, b"\n"])
def test_a_file_that_is_no_journal_is_left_as_it_is(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)
    with pytest.raises(UsageError):
        opened(path)
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_one_run_at_a_time(path: Path) -> None:
    with opened(path), pytest.raises(UsageError, match="is in use by another run"):
        opened(path)


def test_what_is_no_file_or_cannot_be_made_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for wrong in (tmp_path, tmp_path / "pipe", tmp_path / "missing" / "journal"):
        with pytest.raises(UsageError, match=f"cannot use {wrong} as a journal"):
            opened(wrong)


def test_nothing_follows_a_line_that_could_not_be_written() -> None:
    """A full disk: what was acknowledged is not called stored, and half a line is not written behind."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    journal = object.__new__(Journal)
    journal.path, journal._failed, journal._last = "j", None, b""
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    try:
        for _ in range(2):
            with pytest.raises(StorageError, match="cannot write the journal j: No space left on device"):
                journal._append("begun 64 0")
    finally:
        os.close(journal._fd)


def test_numbers_are_a_set_of_ranges() -> None:
    numbers = Numbers()
    expected: set[int] = set()
    for start, end in [(5, 7), (0, 1), (7, 9), (20, 30), (1, 2), (4, 21), (50, 51), (3, 60), (2, 3)]:
        numbers.add(start, end)
        expected |= set(range(start, end))
        assert {number for number in range(70) if number in numbers} == expected
        assert len(numbers) == len(expected)


@pytest.mark.parametrize("kind", NODES)
def test_what_is_no_regular_file_is_no_journal_and_stays_what_it_is(path: Path, kind: str) -> None:
    NODES[kind](path)
    before = look(path)
    with pytest.raises(UsageError, match=f"cannot use {path} as a journal: it is a {kind}"):
        opened(path)
    assert look(path) == before


def test_a_line_without_an_end_is_not_read(begun: Path) -> None:
    with begun.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="cannot be trusted: it holds what easq put did not write"):
        opened(begun)


def test_a_journal_may_stand_behind_a_link(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(begun)
    with opened(tmp_path / "link") as journal:
        assert journal.stored_before == 3
