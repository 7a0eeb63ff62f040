"""The sample session of the vendor's page, on a terminal: the output of eascmd, byte for byte."""

from __future__ import annotations

import re

from tests.cli.conftest import Easq, finish

TAGS = (
    r"tags\[Header:Content-Type=text/plain; charset=utf-8 requestId=[0-9a-f-]{36} "
    r"(?:ts@sink=\d{13}(?: ts@source=\d{13})?|ts@source=\d{13})\]"
)


def run(easq: Easq, *args: str) -> str:
    status, text = finish(easq.terminal("stream", *args))
    assert status == 0
    return text


def test_put_shows_index_and_totals(queue: Easq) -> None:
    assert re.fullmatch(
        r"\[OK\] 1\n\[INFO\] Put data done\.\nTotal time cost: [\d.]+m?s\nTotal size: 3\.00 B\n"
        r"Total: 1, success: 1, failed: 0\n",
        run(queue, "put", "-d", "10s"),
    )


def test_put_of_a_file_shows_every_line(queue: Easq) -> None:
    (queue.home / "test.data").write_bytes(b"data1\ndata2\n")
    assert re.fullmatch(
        r"\[INFO\] Opening data file: test\.data\n\[OK\] 1\n\[OK\] 2\n\[INFO\] Put data done\.\n"
        r"Total time cost: [\d.]+m?s\nTotal size: 10\.00 B\nTotal: 2, success: 2, failed: 0\n",
        run(queue, "put", "-f", "test.data"),
    )


def test_get_shows_number_index_tags_and_data(queue: Easq) -> None:
    queue("put", "-f", "-", stdin=b"data1\ndata2\n")
    text = run(queue, "get", "-l10", "--timeout=1ms")
    assert re.fullmatch(rf"\[OK\] \[0 - 1\] {TAGS} data1\n\[OK\] \[1 - 2\] {TAGS} data2\n", text)
    request_id = re.findall(r"requestId=(\S+)", text)[1]
    again = run(queue, "get", "--tags", f"requestId={request_id}")
    assert re.fullmatch(rf"\[OK\] \[0 - 2\] {TAGS} data2\n", again)


def test_info_shows_sorted_attributes(queue: Easq) -> None:
    lines = run(queue, "info").splitlines()
    assert lines[0] == "[OK] Attributes: "
    assert "stream.length : 0" in lines
    assert lines[1:] == sorted(lines[1:])


def test_delete_asks_and_deletes(queue: Easq) -> None:
    queue("put", "-f", "-", stdin=b"a\nb\nc\n")
    terminal = queue.terminal("stream", "delete", "3")
    terminal.expect_exact("Deleting index(es):\r\n3 [y/N]")
    assert terminal.before == b""
    terminal.sendline("y")
    assert finish(terminal) == (0, "y\n[OK] deleted\n")
    assert queue("get", "-l", "9", "-o", "raw").text == "a\nb\n"


def test_trunc_asks_and_truncates(queue: Easq) -> None:
    queue("put", "-f", "-", stdin=b"a\nb\nc\nd\n")
    terminal = queue.terminal("stream", "trunc", "4")
    terminal.expect_exact("trunc stream from index: 4 [y/N]")
    assert terminal.before == b""
    terminal.sendline("y")
    assert finish(terminal) == (0, "y\n[OK] truncated\n")
    assert queue("get", "-l", "9", "-o", "raw").text == "d\n"


def test_watch_asks_to_commit_and_to_negative(queue: Easq) -> None:
    queue("put", "-k", "-f", "-", stdin=b"data4\ndata5\n")
    terminal = queue.terminal("stream", "watch", "-k", "-n", "3")
    terminal.expect_exact(
        "[INFO] Start to watch: index: 0, indexOnly: false, autoCommit: false, window: 10\r\n"
    )
    assert terminal.before == b""
    terminal.expect(rf"^\[OK\] \[0 - 1\] {TAGS} data4\r\ncommit: 1 \? \[Y/n\]".encode())
    terminal.sendline("")
    terminal.expect(rf"^\r\n\[OK\] \[1 - 2\] {TAGS} data5\r\ncommit: 2 \? \[Y/n\]".encode())
    terminal.sendline("n")
    terminal.expect(rb"^n\r\nnegative: 2 \? \[Y/n\]")
    terminal.sendline("y")
    terminal.expect(rb"^y\r\n\[OK\] \[2 - 2\] tags\[.*deliveryCount=2 .*\] data5\r\ncommit: 2 \? \[Y/n\]")
    terminal.sendline("Y")
    assert finish(terminal) == (0, "Y\n")
    assert queue("info", "-k", "--field", "stream.length").text == "0\n"


def test_watch_with_auto_commit_asks_nothing(queue: Easq) -> None:
    queue("put", "-f", "-", stdin=b"data5\ndata6\n")
    text = run(queue, "watch", "--auto-commit", "-n", "2")
    assert re.fullmatch(
        r"\[INFO\] Start to watch: index: 0, indexOnly: false, autoCommit: true, window: 10\n"
        rf"\[OK\] \[0 - 1\] {TAGS} data5\n\[OK\] \[1 - 2\] {TAGS} data6\n",
        text,
    )
    assert queue("info", "--field", "stream.length").text == "0\n"
