"""Items to send: read from literals, lines, whole files and records, within a limit, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from easq.client.items import JSON, LINES, WHOLE, Item, Items
from easq.client.records import read_record
from easq.errors import PayloadTooLarge, UsageError


def no_stdin() -> IO[bytes]:
    raise UsageError("stdin is closed")


def test_lines_lose_their_line_feed_alone_and_empty_ones_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"a\r\n\n b\nlast")
    items = Items([str(file)], LINES, stdin=no_stdin)
    assert [(item.data, item.line) for item in items] == [(b"a\r", 1), (b" b", 3), (b"last", 4)]
    assert (items.skipped, items.taken, items.rest()) == (1, 3, 0)


def test_sources_are_read_in_the_order_given(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"two\nthree\n")
    items = Items([b"one", str(file), b"four"], LINES, stdin=no_stdin)
    assert [item.data for item in items] == [b"one", b"two", b"three", b"four"]
    assert not items.single


def test_an_item_above_the_limit_is_an_error_and_the_next_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"x" * (9 * 1024 * 1024) + b"\nsmall\n")
    large, small = Items([str(file)], LINES, stdin=no_stdin, limit=lambda: 8 * 1024 * 1024)
    assert isinstance(large.error, PayloadTooLarge)
    assert (large.data, small.data) == (b"", b"small")


def test_a_whole_file_is_one_item(tmp_path: Path) -> None:
    file = tmp_path / "whole"
    file.write_bytes(b"a\nb\n")
    items = Items([str(file)], WHOLE, stdin=no_stdin)
    assert items.single
    assert [item.data for item in items] == [b"a\nb\n"]


def test_records_that_cannot_be_read_are_errors_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "records"
    file.write_bytes(b'{"data":"a","tags":{"k":"v"},"priority":1}\nnot JSON\n{"data":1}\n')
    good, *bad = Items([str(file)], JSON, stdin=no_stdin)
    assert good == Item(b"a", str(file), 1, {"k": "v"}, 1)
    assert [(item.where, type(item.error)) for item in bad] == [
        (f"line 2 of {file}", UsageError),
        (f"line 3 of {file}", UsageError),
    ]


@pytest.mark.parametrize(("keep", "tags"), [(False, {"k": "v"}), (True, {"k": "v", "requestId": "r"})])
def test_a_record_loses_the_tags_that_the_service_sets_anew(keep: bool, tags: dict[str, str]) -> None:
    line = b'{"data":"AAE=","encoding":"base64","tags":{"k":"v","requestId":"r","Header:Content-Type":"a/b"}}'
    record = read_record(line, keep_tags=keep)
    assert (record.data, record.tags, record.content_type) == (b"\0\1", tags, "a/b")


@pytest.mark.parametrize(
    "line",
    [b"[]", b'{"tags":{}}', b'{"data":"*","encoding":"base64"}', b'{"data":"x","priority":-1}'],
)
def test_a_line_that_is_no_record_is_a_value_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"data|JSON|priority"):
        read_record(line, keep_tags=False)


def test_nothing_on_stdin_is_a_usage_error(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with open(empty, "rb") as file, pytest.raises(UsageError, match="nothing came on stdin"):
        list(Items(["-"], WHOLE, stdin=lambda: file))
