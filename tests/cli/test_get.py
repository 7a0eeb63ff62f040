"""easq get: found items, their output, output files, and --delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from easq.client.payload_files import file_name
from easq.model import REQUEST_ID, Frame
from tests.cli.conftest import Easq, finish


def length(queue: Easq, *args: str) -> int:
    return int(queue("info", "--field", "stream.length", *args).text)


@pytest.fixture
def three(queue: Easq) -> Easq:
    """A queue of a, b and c."""
    queue("put", "-f", "-", stdin=b"a\nb\nc\n")
    return queue


def test_items_from_an_index_on(three: Easq) -> None:
    assert three("get", "-o", "raw").text == "a"
    assert three("get", "0", "-o", "raw").text == "a"
    assert three("get", "2", "-o", "raw").text == "b"
    assert three("get", "2", "-l", "9", "-o", "raw").text == "b\nc\n"
    assert length(three) == 3


@pytest.mark.parametrize("index", ["abc", "1.5", "18446744073709551616", "", "1 ", "１", "+1", "0x1"])
@pytest.mark.parametrize("command", ["get", "trunc"])
def test_an_index_that_is_none(easq: Easq, command: str, index: str) -> None:
    done = easq(command, index)
    lowest = 0 if command == "get" else 1
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        f"easq: invalid value for '[INDEX]': {index!r} is not an index, a whole number from {lowest} to "
        f"18446744073709551615\nhint: easq {command} --help\n"
    )


@pytest.mark.parametrize("command", ["get", "trunc", "delete", "commit", "negative"])
def test_a_negative_index_is_not_taken_for_an_option(easq: Easq, command: str) -> None:
    done = easq(command, "-1")
    assert (done.status, done.err) == (2, "easq: '-1' is not an index: an index is never negative\n")


def test_the_largest_index_finds_nothing(queue: Easq) -> None:
    assert queue("get", "18446744073709551615").status == 3


def test_finding_nothing_is_no_data(queue: Easq) -> None:
    done = queue("get", "7", "--tags", "a=b", "--timeout", "1ms")
    assert (done.status, done.out) == (3, b"")
    assert done.err == "easq: no data from index 7 on with tags[a=b] within 1ms\n"
    empty = queue("get", "--allow-empty")
    assert (empty.status, empty.out, empty.err) == (0, b"", "")


def test_a_wait_ends_when_the_item_comes(queue: Easq) -> None:
    with queue.start("get", "--timeout", "30s", "-o", "raw") as waiting:
        queue("put", "-d", "late")
        assert waiting.communicate()[0] == b"late"
        assert waiting.returncode == 0


def test_tags_and_request_id_choose(queue: Easq) -> None:
    queue("put", "-d", "1", "--tags", "a=1", "--tags", "b=1")
    queue("put", "-d", "2", "--tags", "a=1", "--tags", "requestId=r 2")
    assert queue("get", "-l", "9", "--tags", "a=1", "-o", "raw").text == "1\n2\n"
    assert queue("get", "-l", "9", "--tags", "a=1", "--tags", "b=1", "-o", "raw").text == "1\n"
    assert queue("get", "--request-id", "r 2", "-o", "raw").text == "2"


def test_more_items_than_one_answer_holds(queue: Easq) -> None:
    """The service returns at most 10,000 items: the next request starts after the last of them."""
    count = 10_150
    queue("put", "-f", "-", "-q", stdin=b"".join(b"%d\n" % number for number in range(count)))
    lines = queue("get", "-l", "1000000").text.splitlines()
    assert [line.partition("] [")[2].partition(" ")[0] for line in lines] == [str(n) for n in range(count)]
    done = queue("get", "-l", str(count - 1), "--delete", "-o", "raw")
    assert (done.status, done.err) == (0, "")
    assert done.text.splitlines() == [str(n) for n in range(count - 1)]
    assert queue("get", "-l", "9", "-o", "raw").text == f"{count - 1}\n"


def test_items_that_are_too_large_for_one_answer(queue: Easq) -> None:
    for _ in range(9):
        assert queue("put", stdin=bytes(8 * 1024**2)).status == 0
    done = queue("get", "-l", "10", "-o", "json")
    assert (done.status, done.err) == (0, "")
    assert [json.loads(line)["n"] for line in done.out.splitlines()] == list(range(9))


def test_the_header_of_a_table_comes_once(queue: Easq, tmp_path: Path) -> None:
    queue("put", "-f", "-", "-q", stdin=b"x\n" * 250)
    for options in ((), ("--output-dir", str(tmp_path / "results"))):
        lines = queue("get", "-l", "240", "-o", "table", *options).text.splitlines()
        assert [line.partition("\t")[0] for line in lines] == ["n", *map(str, range(240))]
    assert len(list((tmp_path / "results").iterdir())) == 240


def test_the_sink_is_another_stream(queue: Easq) -> None:
    queue("put", "-k", "-d", "result")
    assert queue("get").status == 3
    assert queue("get", "-k", "-o", "raw").text == "result"
    url = json.loads(queue("config", "show", "-o", "json").out)["url"]
    assert queue("get", "--url", f"{url}/sink", "-o", "raw").text == "result"
    assert queue("get", "-k", "--url", f"{url}/sink/", "-o", "raw").text == "result"


def test_delete_removes_what_was_printed(three: Easq) -> None:
    assert three("get", "-l", "2", "--delete", "-o", "raw").text == "a\nb\n"
    assert three("get", "-l", "9", "-o", "raw").text == "c\n"


def test_what_could_not_be_printed_is_not_deleted(three: Easq) -> None:
    read, write = os.pipe()
    os.close(read)
    with three.start("get", "-l", "9", "--delete", stdout=write) as process:
        os.close(write)
        assert process.stderr is not None
        assert (process.wait(), process.stderr.read()) == (141, b"")
    with open("/dev/full", "wb") as full, three.start("get", "--delete", stdout=full) as process:
        assert process.wait() == 74
    assert length(three) == 3


def test_json_is_a_record_a_line(queue: Easq) -> None:
    queue("put", "-d", b"\xff", "--tags", "k=v", "--tags", "requestId=r-1")
    record = json.loads(queue("get", "-o", "json").out)
    moment = record.pop("source_time")
    stamp = record["tags"].pop("ts@source")
    assert moment.endswith(f".{stamp[-3:]}Z")
    assert record == {
        "n": 0,
        "index": "1",
        "request_id": "r-1",
        "tags": {"Header:Content-Type": record["tags"]["Header:Content-Type"], "k": "v", "requestId": "r-1"},
        "size": 1,
        "encoding": "base64",
        "data": "/w==",
        "sink_time": None,
        "message": "",
    }


def test_a_table_is_tab_separated_in_a_pipe_and_drawn_on_a_terminal(queue: Easq) -> None:
    queue("put", "-d", "a\tb[/bold]", "--tags", "requestId=r")
    piped = queue("get", "-o", "table").text.splitlines()
    assert piped[0] == "n\tindex\trequest_id\ttags\tsize\tdata"
    assert piped[1].split("\t")[:3] == ["0", "1", "r"]
    assert piped[1].split("\t")[4:] == ["10", "a\\tb[/bold]"]
    status, drawn = finish(queue.terminal("get", "-o", "table", env={"COLUMNS": "200"}))
    assert status == 0
    assert "request_id" in drawn.splitlines()[0] + drawn.splitlines()[1]
    assert "a\\tb[/bold]" in drawn
    assert "\t" not in drawn


EVIL = b"\x1b]52;c;aGk=\x07\x1b[2Jx\ry\x9b31m\xe2\x80\xaeabc\xe2\x80\x8b\xc2\x9b0m\n\tend"


def test_a_payload_cannot_drive_the_terminal(queue: Easq) -> None:
    data = "\x1b]52;c;aGk=\x07x\ry\u202eabc\u200b\u009b0m\n\tend"
    assert queue("put", "-d", data, "--tags", "k=\x1b[2J\u2066").status == 0
    status, text = finish(queue.terminal("get"))
    assert status == 0
    assert text.endswith("] \\x1b]52;c;aGk=\\x07x\\ry\\u202eabc\\u200b\\x9b0m\n\tend\n")
    assert "k=\\x1b[2J\\u2066 " in text
    assert all(c in "\n\t" or c.isprintable() for c in text)
    status, table = finish(queue.terminal("get", "-o", "table"))
    assert all(c == "\n" or c.isprintable() for c in table)
    status, line = finish(queue.terminal("get", "-o", "json"))
    assert all(c == "\n" or c.isprintable() for c in line)
    assert json.loads(line)["data"] == data


def test_raw_on_a_terminal_refuses_what_drives_it_and_deletes_nothing(queue: Easq) -> None:
    queue("put", "-q", "-d", "plain\n\ttext é", "-d", "\x1b[2J")
    refused = (
        2,
        "easq: the payload holds control characters, which the terminal would obey\n"
        "hint: redirect it (> FILE), or easq get --output-dir DIR\n",
    )
    assert finish(queue.terminal("get", "-o", "raw")) == (0, "plain\n\ttext é")
    assert finish(queue.terminal("get", "2", "-o", "raw", "--delete")) == refused
    status, text = finish(queue.terminal("watch", "--commit", "output", "-n", "2", "-o", "raw", "-q"))
    partial = refused[1].replace("\nhint", "; committed before that: 1\nhint")
    assert (status, text) == (10, "plain\n\ttext é\n" + partial)
    assert queue("get", "-l", "9", "-o", "raw").text == "\x1b[2J\n"


def test_what_is_not_shown_whole_is_not_deleted(queue: Easq) -> None:
    """A table cuts the payload, and a terminal shows a remark for binary data: such items must not be deleted."""
    queue("put", "-q", "-d", "short", "-d", "long" * 20, "-d", b"\xff\xfe")
    done = queue("get", "-l", "9", "-o", "table", "--delete")
    assert (done.status, len(done.text.splitlines())) == (10, 4)
    message = (
        "easq: 2 of 3 items were not shown in full, and not deleted\nhint: use -o json or --output-dir DIR\n"
    )
    assert done.err == message
    status, text = finish(queue.terminal("get", "-l", "9", "--delete"))
    assert (status, text.splitlines()[-2]) == (
        10,
        "easq: 1 of 2 items were not shown in full, and not deleted",
    )
    status, text = finish(queue.terminal("watch", "--commit", "output", "-n", "1"))
    assert (status, text.splitlines()[1]) == (2, "easq: item 3 cannot be shown in full, and is not committed")
    queue("put", "-q", "-k", "-d", b"\xff", "--tags", "requestId=r")
    status, text = finish(queue.terminal("predict", "-d", "x", "--tags", "requestId=r"))
    assert (status, text) == (
        0,
        "<binary 1 B, use -o raw>\neasq: warning: result 1 was not shown in full, and stays in the sink: "
        "easq get -k 1 --output-dir DIR\n",
    )
    assert queue("get", "-k", "-o", "raw").out == b"\xff"
    assert queue("get", "--delete", "-o", "raw").out == b"\xff\xfe"


def test_an_index_that_is_gone_is_said_and_nothing_else_is_deleted(three: Easq) -> None:
    three("delete", "2", "-y")
    warning = "easq: warning: no item has the index 2; the next one is 3\n"
    done = three("get", "2", "-o", "raw")
    assert (done.status, done.text, done.err) == (0, "c", warning)
    assert three("get", "2", "-l", "5", "-o", "raw").err == warning
    assert three("get", "2", "-o", "json").err == three("get", "3").err == three("get").err == ""
    done = three("get", "2", "--delete")
    assert (done.status, done.out) == (3, b"")
    assert done.err == "easq: no item has the index 2; the next one is 3\nhint: nothing was deleted\n"
    assert length(three) == 2


def test_what_nobody_saw_is_not_deleted(three: Easq) -> None:
    for args, environ in ((("-o", "none"), {}), ((), {"EASQ_OUTPUT": "none"})):
        done = three("get", "--delete", *args, env=environ)
        assert (done.status, done.err) == (
            2,
            "easq: --delete with -o none would delete items that were not shown\n"
            "hint: --output-dir DIR keeps the payloads\n",
        )
        done = three("watch", "--commit", "output", "-n", "1", *args, env=environ)
        assert (done.status, done.err) == (
            2,
            "easq: --commit output with -o none would commit items that were not shown\n"
            "hint: use --auto-commit for items that need not be shown\n",
        )
    assert length(three) == 3
    assert three("get", "--delete", "-o", "none", "--output-dir", "d").status == 0
    assert length(three) == 2


def test_binary_is_not_shown_on_a_terminal_but_goes_through_a_pipe(queue: Easq) -> None:
    (queue.home / "evil").write_bytes(EVIL)
    queue("put", "evil")
    status, text = finish(queue.terminal("get"))
    assert (status, text.rpartition("] ")[2]) == (0, f"<binary {len(EVIL)} B, use -o raw>\n")
    assert queue("get").out.endswith(b"] " + EVIL + b"\n")
    assert queue("get", "-o", "raw").out == EVIL


def test_each_payload_goes_into_a_file_of_its_own(queue: Easq) -> None:
    queue("put", "-d", "one", "--tags", "requestId=r-1")
    queue("put", "-d", "two", "--tags", "requestId=../../x")
    done = queue("get", "-l", "9", "--output-dir", "out", "--delete")
    assert done.status == 0
    assert [line.rpartition(" ")[2] for line in done.text.splitlines()] == ["out/1-r-1", "out/2"]
    assert sorted(os.listdir(queue.home / "out")) == ["1-r-1", "2"]
    assert (queue.home / "out" / "1-r-1").read_bytes() == b"one"
    assert (queue.home / "out" / "2").read_bytes() == b"two"
    assert length(queue) == 0


def test_json_names_the_file(queue: Easq) -> None:
    queue("put", "-d", "one", "--tags", "requestId=r")
    record = json.loads(queue("get", "--output-dir", "out", "-o", "json").out)
    assert (record["file"], record["data"], record["size"]) == ("out/1-r", None, 3)


@pytest.mark.parametrize(
    "request_id",
    ["../../x", "/etc/x", "a\0b", "", ".", "..", "-rf", "a b", "ü", "x" * 300, "a/b", "a.b", "con\n"],
)
def test_a_name_of_a_file_never_comes_from_an_unsafe_request_id(request_id: str) -> None:
    assert file_name(Frame(7, {REQUEST_ID: request_id})) == "7"


def test_a_safe_request_id_is_part_of_the_name() -> None:
    assert file_name(Frame(7, {REQUEST_ID: "e47b76e2-2648_x"})) == "7-e47b76e2-2648_x"


def test_files_that_are_there_and_links_are_left_alone_and_nothing_is_deleted(queue: Easq) -> None:
    queue("put", "-d", "new", "--tags", "requestId=r")
    out, elsewhere = queue.home / "out", queue.home / "elsewhere"
    out.mkdir()
    (out / "1-r").symlink_to(elsewhere)
    done = queue("get", "--output-dir", "out", "--delete")
    assert (done.status, done.err) == (2, "easq: out/1-r: File exists\n")
    assert not elsewhere.exists()
    (queue.home / "link").symlink_to(out)
    done = queue("get", "--output-dir", "link/", "--delete")
    assert (done.status, done.err) == (2, "easq: link/: a symbolic link\n")
    (queue.home / "file").write_text("")
    assert queue("get", "--output-dir", "file", "--delete").status == 2
    assert length(queue) == 1


def test_a_failure_after_some_items_were_deleted_is_partial_and_tells_how_many(queue: Easq) -> None:
    """The first 100 are one answer of the service, and deleted before the next are asked for."""
    queue("put", "-q", "-f", "-", stdin=b"".join(b"%d\n" % number for number in range(1, 121)))
    queue("put", "-q", "-d", "new", "--tags", "requestId=r")
    out = queue.home / "out"
    out.mkdir()
    (out / "121-r").write_text("there before")
    done = queue("get", "-l", "200", "--output-dir", "out", "--delete")
    assert (done.status, done.err) == (10, "easq: out/121-r: File exists; deleted before that: 100\n")
    assert length(queue) == 21


def test_a_file_that_takes_only_a_part_loses_nothing(queue: Easq) -> None:
    """Under PYTHONUNBUFFERED Python's stdout is the raw file, which may write only a part of its data."""
    data = bytes(range(256)) * 8192
    assert queue("put", "-q", stdin=data).status == 0
    limit = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20));"
        "from easq.cli.main import main; sys.argv = ['easq', 'get', '--delete', '-o', 'raw']; main()"
    )
    target = queue.home / "half"
    with target.open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", limit],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            env={**queue.environ, "PYTHONUNBUFFERED": "1"},
            check=False,
        )
    assert target.stat().st_size == 1 << 20
    assert done.returncode != 0
    assert b"cannot write to stdout" in done.stderr
    assert queue("get", "-o", "raw").out == data, "what could not be written whole is still in the queue"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_it_quietly(queue: Easq, unbuffered: str) -> None:
    """Also what is left in a buffer of ours then is no failure that Python tells of."""
    queue("put", "-q", "-c", "64", "-f", "-", stdin=(b"x" * 99 + b"\n") * 3000)
    with queue.start("get", "-l", "3000", env={**queue.environ, "PYTHONUNBUFFERED": unbuffered}) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141
