"""Real records through all components: put from a file, read by watch and get, byte for byte and in order."""

from __future__ import annotations

import json
import unicodedata
from itertools import islice
from pathlib import Path

import pytest

from tests.cli.conftest import Easq

#: what `--max-payload` of the service is by default
LIMIT = 8 * 1024**2


def records(count: int) -> bytes:
    """The first `count` named characters of Unicode outside ASCII, one JSON object a line."""
    named = (chr(code) for code in range(0x80, 0x110000) if unicodedata.name(chr(code), ""))
    lines = (
        json.dumps(
            {
                "code_point": f"U+{ord(character):04X}",
                "name": unicodedata.name(character),
                "category": unicodedata.category(character),
                "character": character,
            },
            ensure_ascii=False,
        )
        for character in islice(named, count)
    )
    return "".join(f"{line}\n" for line in lines).encode()


@pytest.fixture(scope="module")
def thousand() -> bytes:
    content = records(1000)
    assert content.count(b"\n") == 1000
    return content


@pytest.fixture
def filled(queue: Easq, thousand: bytes) -> Easq:
    """A queue that holds the thousand records."""
    (queue.home / "records.jsonl").write_bytes(thousand)
    done = queue("put", "-f", "records.jsonl", "-c", "1")
    assert done.status == 0
    assert done.text.splitlines() == [f"[OK] {index}" for index in range(1, 1001)]
    assert done.err.splitlines()[-1] == "Total: 1000, success: 1000, failed: 0"
    return queue


def test_a_thousand_records_come_out_of_watch_as_they_went_in(filled: Easq, thousand: bytes) -> None:
    done = filled("watch", "--commit", "output", "-n", "1000", "-o", "raw")
    assert done.status == 0
    assert done.out == thousand
    assert filled("info", "--field", "stream.length").text == "0\n"


def test_a_thousand_records_come_out_of_get_as_they_went_in(filled: Easq, thousand: bytes) -> None:
    done = filled("get", "-l", "1000", "-o", "raw")
    assert done.status == 0
    assert done.out == thousand
    assert filled("info", "--field", "stream.length").text == "1000\n"


def test_a_thousand_records_go_out_and_in_as_json_lines(filled: Easq, thousand: bytes) -> None:
    """put accepts the output of watch -o json unchanged."""
    watched = filled("watch", "--commit", "output", "-n", "1000", "-o", "json")
    assert watched.status == 0
    assert [json.loads(line)["index"] for line in watched.text.splitlines()] == [
        str(index) for index in range(1, 1001)
    ]
    again = filled("put", "--input-format", "json", "-f", "-", stdin=watched.out)
    assert again.status == 0
    assert again.text.splitlines()[0] == "[OK] 1001"
    assert filled("get", "-l", "1000", "-o", "raw").out == thousand


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"a\0b\0", id="NUL"),
        pytest.param(b"\xff\xfe\xc3\x28 \xed\xa0\x80", id="invalid UTF-8"),
        pytest.param(b"line\nline\r\n", id="line ends"),
        pytest.param(bytes(range(256)) * (LIMIT // 256), id="exactly the limit"),
    ],
)
def test_a_payload_of_any_bytes_comes_back(queue: Easq, tmp_path: Path, payload: bytes) -> None:
    """By file and by get, by JSON line out and in, and by watch."""
    (tmp_path / "payload").write_bytes(payload)
    done = queue("put", "payload") if payload else queue("put", "-d", "")
    assert (done.status, done.text) == (0, "[OK] 1\n")
    assert queue("get", "-o", "raw").out == payload
    line = queue("get", "-o", "json")
    record = json.loads(line.out)
    assert record["size"] == len(payload)
    assert queue("put", "--input-format", "json", "-f", "-", stdin=line.out).text == "[OK] 2\n"
    watched = queue("watch", "--commit", "output", "-n", "2", "-o", "raw")
    assert watched.out == (payload + b"\n") * 2


def test_one_byte_above_the_limit_is_refused_with_the_limit(queue: Easq, tmp_path: Path) -> None:
    (tmp_path / "payload").write_bytes(b"x" * (LIMIT + 1))
    done = queue("put", "payload")
    assert done.status == 4
    assert done.out == b""
    assert f"payload is larger than {LIMIT} bytes, the limit of an item" in done.err
    assert queue("info", "--field", "stream.length").text == "0\n"
