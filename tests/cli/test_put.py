"""easq put: items, refused input, and reports of a run that fails in the middle."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from tests.cli.conftest import DEADLINE_S, Easq, finish
from tests.client.servers import Peer, answering, broken, eventually, free_port, reply, silent
from tests.conftest import Serve
from tests.support.nodes import ZERO, make_device
from tests.support.process import AS_ANYONE


def payloads(queue: Easq, *args: str) -> list[bytes]:
    """The payloads in the queue, as they are."""
    done = queue("get", "-l", "1000", "-o", "json", "--allow-empty", *args)
    assert done.status == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    assert all(record["encoding"] == "utf8" for record in records)
    return [record["data"].encode() for record in records]


def test_an_item_is_the_literal_itself(queue: Easq) -> None:
    (queue.home / "x").write_text("the file")
    assert queue("put", "-d", "@x").text == "[OK] 1\n"
    assert queue("put", "-d", "").text == "[OK] 2\n"
    assert queue("put", "-d", " a\n").text == "[OK] 3\n"
    assert queue("put", "--data=-x").text == "[OK] 4\n"
    assert payloads(queue) == [b"@x", b"", b" a\n", b"-x"]


def test_bytes_of_an_argument_that_are_no_text_stay_what_they_are(queue: Easq) -> None:
    assert queue("put", "-d", b"\xff\xfe").status == 0
    assert queue("get", "-o", "raw").out == b"\xff\xfe"


def test_of_lines_only_the_line_feed_is_cut_and_empty_ones_are_skipped(queue: Easq) -> None:
    done = queue("put", "-f", "-", stdin=b"a\r\n\n \n\n\tb\x0b\x0cc\xc2\x85d")
    assert done.text == "[OK] 1\n[OK] 2\n[OK] 3\n"
    assert done.err.startswith(
        "[INFO] Opening data file: -\n[INFO] Skipped 2 empty lines.\n[INFO] Put data done.\nTotal time cost: "
    )
    assert done.err.endswith("Total size: 11.00 B\nTotal: 3, success: 3, failed: 0\n")
    assert payloads(queue) == [b"a\r", b" ", b"\tb\x0b\x0cc\xc2\x85d"]


def test_paths_and_bare_stdin_are_whole_items(queue: Easq) -> None:
    (queue.home / "one").write_bytes(b"1\n1\n")
    (queue.home / "two").write_bytes(b"")
    assert queue("put", "one", "two").text == "[OK] 1\n[OK] 2\n"
    assert queue("put", stdin=b"3\n3\n").text == "[OK] 3\n"
    assert payloads(queue) == [b"1\n1\n", b"", b"3\n3\n"]


def test_input_format_chooses_how_files_are_cut(queue: Easq) -> None:
    (queue.home / "one").write_bytes(b"1\n2\n")
    assert queue("put", "-f", "one", "--input-format", "whole").text == "[OK] 1\n"
    assert queue("put", "one", "--input-format", "lines").text == "[OK] 2\n[OK] 3\n"
    assert queue("put", "--input-format", "lines", stdin=b"4\n5\n").text == "[OK] 4\n[OK] 5\n"


def test_a_pipe_can_be_named_as_a_file(queue: Easq) -> None:
    read, write = os.pipe()
    os.write(write, b"a\nb\n")
    os.close(write)
    with queue.start("put", "-f", f"/dev/fd/{read}", "-q", pass_fds=[read]) as process:
        out, err = process.communicate()
    os.close(read)
    assert (process.returncode, out, err) == (0, b"[OK] 1\n[OK] 2\n", b"")


def test_tags_priority_path_and_type_go_with_every_item(queue: Easq) -> None:
    done = queue(
        "put", "-d", "x", "--tags", "run=7", "--tags", "q=a=b ü/&", "--priority", "1", "--path", "/v1/x",
        "--content-type", "image/png",
    )  # fmt: skip
    assert done.status == 0
    tags = json.loads(queue("get", "-o", "json").out)["tags"]
    assert tags["run"] == "7"
    assert tags["q"] == "a=b ü/&"
    assert tags["Header:Content-Type"] == "image/png"
    assert "/v1/x" in tags.values()
    queue("put", "-d", "normal")
    queue("put", "-d", "first", "--priority", "2")
    watched = queue("watch", "--commit", "output", "-n", "3", "-o", "raw")
    assert watched.text == "first\nx\nnormal\n"


@pytest.mark.parametrize(
    ("tag", "problem"),
    [
        ("novalue", "'novalue' is no tag: it has no '='"),
        ("=x", "'=x' is no tag: nothing stands before '='"),
        ("_priority_=1", "'_priority_=1' is no tag: names that begin with '_' are the wire's own"),
        ("a=b\r\nX: y", r"'a=b\r\nX: y' is no tag: it holds a line break or NUL"),
        ("a\n=b", r"'a\n=b' is no tag: it holds a line break or NUL"),
        (b"a=\xff", r"'a=\udcff' is no tag: it is not UTF-8"),
    ],
)
def test_a_tag_that_is_none_is_refused_before_anything_is_sent(queue: Easq, tag: str, problem: str) -> None:
    for command in ("put", "get", "watch"):
        done = queue(command, *(("-d", "x") if command == "put" else ()), "--tags", tag)
        assert (done.status, done.out) == (2, b"")
        assert done.err == f"easq: invalid value for '--tags': {problem}\nhint: easq {command} --help\n"
    assert payloads(queue) == []


@pytest.mark.parametrize(
    ("args", "err"),
    [
        (["-f", "missing"], "cannot read missing: No such file or directory"),
        (
            ["missing"],
            "cannot read missing: No such file or directory\nhint: use -d STR to send the text itself",
        ),
        (["-f", "."], "cannot read .: it is a folder"),
        (["there", "."], "cannot read .: it is a folder"),
        (["-f", "there", "there"], "PATH and -d or -f exclude each other"),
        (["-d", "x", "there"], "PATH and -d or -f exclude each other"),
        (
            ["-d", "x", "--input-format", "lines"],
            "-d gives one literal item; --input-format is for files and stdin",
        ),
        (["-f", "-", "-f", "there", "-f", "-"], "stdin (-) is given twice, and can be read once"),
        (["-", "-"], "stdin (-) is given twice, and can be read once"),
        (["-d", "x", "--tags", "a=1", "--tags", "a=2"], "tag 'a' is given twice, as '1' and as '2'"),
        ([], "nothing came on stdin; an empty item is put with -d ''"),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_stored(queue: Easq, args: list[str], err: str) -> None:
    (queue.home / "there").write_text("x")
    done = queue("put", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err == f"easq: {err}\n"
    assert payloads(queue) == []


def test_every_literal_and_file_is_taken_in_the_order_given(queue: Easq) -> None:
    (queue.home / "a").write_text("a1\na2\n")
    (queue.home / "b").write_text("b1\n\nb2\n")
    done = queue(
        *("put", "-d", "one", "-f", "a", "--data=two", "-f", "-", "-d", "", "-fb", "--tags", "k=v"),
        stdin=b"s\n",
    )
    assert (done.status, done.text) == (0, "".join(f"[OK] {n}\n" for n in range(1, 9)))
    assert done.err.startswith(
        "[INFO] Opening data file: a\n[INFO] Opening data file: -\n[INFO] Opening data file: b\n"
        "[INFO] Skipped 1 empty line.\n[INFO] Put data done.\n"
    )
    assert done.err.endswith("Total: 8, success: 8, failed: 0\n")
    assert payloads(queue) == [b"one", b"a1", b"a2", b"two", b"s", b"", b"b1", b"b2"]


@pytest.mark.parametrize(
    ("sources", "place"),
    [
        (("-d", "a", "-d", "b", "-d", "c"), "-d (2 of 3)"),
        (("-d", "a", "-f", "in", "-d", "c"), "line 1 of in"),
    ],
)
def test_one_of_many_sources_that_fails_is_named(easq: Easq, sources: tuple[str, ...], place: str) -> None:
    (easq.home / "in").write_text("b\n")
    with answering(reply(200, b"1"), reply(413, b"too large")) as server:
        done = easq("put", *sources, "--url", f"http://127.0.0.1:{server.port}/q")
    assert (done.status, done.text) == (10, "[OK] 1\n")
    assert done.err.endswith(
        f"easq: {place}: too large; 1 stored, 1 failed, 1 not attempted\n"
        f"hint: go on with {place}, and all that follows it\n"
    )


@pytest.mark.parametrize(
    "args", [("--priority", "0", "--priority", "1"), ("--path", "a", "--path", "b"), ("-c", "1", "-c1")]
)
def test_an_option_of_one_value_is_refused_the_second_time(queue: Easq, args: tuple[str, ...]) -> None:
    done = queue("put", "-d", "x", *args)
    name = {"-c": "--concurrency"}.get(args[0], args[0])
    assert (done.status, done.out) == (2, b"")
    assert done.err == f"easq: {name} is given 2 times, and takes one value\nhint: easq put --help\n"
    assert payloads(queue) == []


def test_json_lines_of_another_system_end_with_cr_lf(queue: Easq) -> None:
    lines = b'{"data":"a"}\r\n{"data":"b"}\r\n\r\n'
    done = queue("put", "--input-format", "json", stdin=lines)
    assert (done.status, done.text) == (0, "[OK] 1\n[OK] 2\n")
    assert "Skipped 1 empty line." in done.err
    assert payloads(queue) == [b"a", b"b"]


def test_a_file_that_may_not_be_read_is_refused(queue: Easq) -> None:
    (queue.home / "shut").write_text("x")
    (queue.home / "shut").chmod(0)
    done = subprocess.run(
        [*AS_ANYONE, *queue.argv(("put", "-f", "shut"))],
        cwd=queue.home,
        env=queue.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"easq: cannot read shut: Permission denied\n"
    assert payloads(queue) == []


def test_a_closed_stdin_is_nothing_to_send(queue: Easq) -> None:
    with queue.start("put", stdin=None, preexec_fn=lambda: os.close(0)) as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert err == b"easq: nothing to send\nhint: -d STRING, -f FILE, PATH..., or pipe it in\n"


def test_a_terminal_as_stdin_is_nothing_to_send(queue: Easq) -> None:
    status, text = finish(queue.terminal("put"))
    assert (status, text.splitlines()[0]) == (2, "easq: nothing to send")


def test_what_get_writes_put_takes_back_unchanged(queue: Easq) -> None:
    queue("put", "-d", b"\xff\xfe", "--tags", "a=b", "--content-type", "image/png")
    queue("put", "-d", "text ü\n", "--tags", "requestId=mine")
    written = queue("get", "-l", "9", "-o", "json").out
    done = queue("put", "-k", "--input-format", "json", stdin=written)
    assert (done.status, done.text) == (0, "[OK] 1\n[OK] 2\n")
    before = [json.loads(line) for line in written.splitlines()]
    after = [json.loads(line) for line in queue("get", "-k", "-l", "9", "-o", "json").out.splitlines()]
    for old, new in zip(before, after, strict=True):
        assert (old["data"], old["encoding"]) == (new["data"], new["encoding"])
        assert new["request_id"] != old["request_id"]
        kept = {k: v for k, v in old["tags"].items() if k != "requestId" and not k.startswith("ts@")}
        assert {k: v for k, v in new["tags"].items() if k in kept} == kept
        assert "ts@source" not in new["tags"]
    queue("put", "-k", "--input-format", "json", "--keep-tags", stdin=written)
    last = json.loads(queue("get", "-k", "4", "-o", "json").out)
    assert last["request_id"] == "mine"
    assert last["tags"]["ts@source"] == before[1]["tags"]["ts@source"]


def test_a_priority_in_json_is_kept(queue: Easq) -> None:
    queue("put", "--input-format", "json", stdin=b'{"data":"low"}\n\n{"data":"high","priority":1}\n')
    assert queue("watch", "--commit", "output", "-n", "2", "-o", "raw").text == "high\nlow\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("x", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "not a JSON object"),
        ("{}", "no data, which must be text"),
        ('{"data":1}', "no data, which must be text"),
        ('{"data":"a","encoding":"hex"}', "encoding 'hex' is neither utf8 nor base64"),
        ('{"data":"a","encoding":"base64"}', "data is not base64: "),
        ('{"data":"\\ud800"}', "data is no UTF-8: it holds a lone surrogate"),
        ('{"data":"a","tags":[]}', None),
        ('{"data":"a","tags":[1]}', "tags is not an object of texts"),
        ('{"data":"a","tags":{"k":1}}', "tags is not an object of texts"),
        ('{"data":"a","tags":{"_k":"v"}}', "'_k=v' is no tag: names that begin with '_' are the wire's own"),
        ('{"data":"a","priority":"1"}', "priority '1' is not a whole number from 0"),
        ('{"data":"a","priority":true}', "priority True is not a whole number from 0"),
    ],
)
def test_a_json_line_that_is_no_record_is_named(queue: Easq, line: str, problem: str | None) -> None:
    done = queue("put", "--input-format", "json", stdin=line.encode() + b"\n")
    if problem is None:
        assert done.status == 0
        return
    assert (done.status, done.out) == (2, b"")
    assert f"easq: line 1: {problem}" in done.err


def test_one_bad_line_in_the_middle_stops_and_says_where_to_go_on(queue: Easq) -> None:
    (queue.home / "in").write_text('{"data":"1"}\n\n{"data":2}\n{"data":"3"}\n{"data":"4"}\n')
    done = queue("put", "-f", "in", "--input-format", "json")
    assert (done.status, done.text) == (10, "[OK] 1\n")
    assert done.err.endswith(
        "Total: 4, success: 1, failed: 1, remaining: 2\n"
        "easq: line 3 of in: no data, which must be text; 1 stored, 1 failed, 2 not attempted\n"
        "hint: go on with: tail -n +3 in | easq put -f - --input-format json\n"
    )


def test_on_error_continue_tries_every_line(queue: Easq) -> None:
    lines = b'{"data":"1"}\nx\n{"data":"3"}\n'
    done = queue("put", "--input-format", "json", "--on-error", "continue", stdin=lines)
    assert (done.status, done.text) == (10, "[OK] 1\n[OK] 2\n")
    assert "easq: line 2: not JSON: " in done.err
    assert done.err.endswith("Total: 3, success: 2, failed: 1\neasq: 2 stored, 1 failed\n")


def test_a_payload_above_the_limit_is_refused_as_the_queue_would(queue: Easq) -> None:
    """Before it is sent, so there is no status of an answer."""
    (queue.home / "big").write_bytes(b"x" * (8 * 1024 * 1024 + 1))
    done = queue("put", "big", "-o", "json")
    assert (done.status, done.out) == (4, b"")
    error = json.loads(done.err)["error"]
    assert (error["kind"], error["exit"], error["http_status"]) == ("payload_too_large", 4, None)


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (("put", "zero"), 4),
        (("put",), 4),
        (("put", "-f", "zero"), 4),
        (("put", "-f", "zero", "--input-format", "json"), 4),
        (("predict", "zero"), 4),
        (("bench", "put", "-f", "zero"), 4),
        (("commit", "-"), 2),
        (("config", "set", "token", "-"), 2),
    ],
    ids=str,
)
def test_what_never_ends_is_read_as_far_as_it_can_be_sent(
    queue: Easq, args: tuple[str, ...], status: int
) -> None:
    """Neither an item nor a line without an end takes the memory."""
    zero = queue.home / "zero"
    make_device(zero, ZERO)

    def bound_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    with zero.open("rb") as endless:
        with queue.start(*args, stdin=endless, preexec_fn=bound_memory) as process:
            out, err = process.communicate()
    assert (process.returncode, out) == (status, b""), err
    assert b"bytes" in err
    assert payloads(queue) == []


def test_a_line_that_is_too_long_is_refused_and_the_next_ones_are_put(easq: Easq, serve: Serve) -> None:
    """A payload above the default limit is compared with the limit of the queue."""
    url = serve("--max-payload", "9MiB", storage="memory:").url()
    mib = b"x" * 1024 * 1024
    (easq.home / "in").write_bytes(b"a\n" + mib * 9 + b"\n" + mib * 9 + b"x\nb\n" + mib * 20)
    done = easq("put", "-f", "in", "--on-error", "continue", "--url", url)
    assert (done.status, done.text) == (10, "[OK] 1\n[OK] 2\n[OK] 3\n")
    for line in (3, 5):
        assert f"line {line} of in: it is larger than {9 * len(mib)} bytes, the limit of an item" in done.err
    assert "Total: 5, success: 3, failed: 2" in done.err


def test_json_output_is_a_record_an_item_and_a_summary(queue: Easq) -> None:
    done = queue("put", "-f", "-", "-o", "json", stdin=b"a\n\nbc\n")
    records = [json.loads(line) for line in done.out.splitlines()]
    assert [(r["n"], r["index"], r["size"]) for r in records] == [(0, "1", 1), (1, "2", 2)]
    assert re.fullmatch(r"[0-9a-f-]{36}", records[0]["request_id"])
    summary = json.loads(done.err)["summary"]
    del summary["seconds"]
    assert summary == {
        "total": 2, "success": 2, "failed": 0, "remaining": 0, "skipped": 1, "size": 3,
        "resumed": 0, "possible_duplicates": 0,
    }  # fmt: skip


def test_quiet_and_none(queue: Easq) -> None:
    assert queue("put", "-d", "x", "-q").err == ""
    done = queue("put", "-d", "x", "-o", "none", "-q")
    assert (done.status, done.out, done.err) == (0, b"", "")


def test_with_many_at_a_time_results_are_in_the_order_of_the_input(queue: Easq) -> None:
    lines = b"".join(b"%d\n" % number for number in range(200))
    done = queue("put", "-f", "-", "-c", "8", "-o", "json", stdin=lines)
    assert done.status == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    items = {r["index"]: r["data"] for r in map(json.loads, _all(queue))}
    assert [items[record["index"]] for record in records] == [str(number) for number in range(200)]


def _all(queue: Easq) -> list[bytes]:
    return queue("get", "-l", "1000", "-o", "json").out.splitlines()


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "x", "1e999"])
def test_a_rate_that_is_none_is_refused(queue: Easq, rate: str) -> None:
    done = queue("put", "-f", "-", f"--rate={rate}", stdin=b"x\n")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: invalid value for '--rate': '{rate}' is not a number above 0\n")


def test_a_rate_is_kept(queue: Easq) -> None:
    done = queue("put", "-f", "-", "--rate", "50", "-o", "json", stdin=b"x\n" * 6)
    assert done.status == 0
    assert json.loads(done.err)["summary"]["seconds"] >= 5 / 50


class _Breaking(BaseHTTPRequestHandler):
    """A server that accepts `limit` puts. It reads a later put and closes the connection without an answer."""

    protocol_version = "HTTP/1.1"
    limit = 0
    taken = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if type(self).taken >= self.limit:
            self.close_connection = True
            return
        type(self).taken += 1
        body = str(self.taken).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Eas-Queueservice-Request-Id", "r")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def breaking(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that dies in the middle of a put, as no real one does on request."""
    handler = type("Handler", (_Breaking,), {"limit": request.param})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/q"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("breaking", [3], indirect=True)
def test_a_server_that_dies_in_the_middle_leaves_word_of_what_is_stored(easq: Easq, breaking: str) -> None:
    (easq.home / "in put").write_bytes(b"1\n\n2\n3\n4\n5\n6\n")
    done = easq("put", "-f", "in put", "--url", breaking, "--request-timeout", "0.5s")
    assert (done.status, done.text) == (10, "[OK] 1\n[OK] 2\n[OK] 3\n")
    last = done.err.splitlines()[-2:]
    assert last[0].startswith("easq: line 5 of in put: ")
    assert last[0].endswith("; whether it was stored is not known; 3 stored, 1 failed, 2 not attempted")
    assert last[1] == "hint: go on with: tail -n +5 'in put' | easq put -f -"
    assert "Total: 6, success: 3, failed: 1, remaining: 2" in done.err.splitlines()


@pytest.mark.parametrize("breaking", [0], indirect=True)
def test_where_nothing_was_stored_the_status_is_that_of_the_failure(easq: Easq, breaking: str) -> None:
    done = easq("put", "-f", "-", "--url", breaking, "--request-timeout", "0.5s", stdin=b"1\n2\n")
    assert (done.status, done.out) == (6, b"")
    assert done.err.splitlines()[-1].startswith("easq: line 1: ")
    single = easq("put", "-d", "x", "--url", breaking)
    assert (single.status, single.out) == (6, b"")
    assert single.err.endswith("; whether it was stored is not known\n")
    assert single.err.count("\n") == 1


@pytest.mark.parametrize("breaking", [0], indirect=True)
def test_a_broken_put_is_not_sent_twice(easq: Easq, breaking: str) -> None:
    done = easq("put", "-d", "x", "--url", breaking, "-v")
    assert done.err.count("> POST ") == 1


def test_a_server_that_is_not_there_leaves_no_doubt(easq: Easq) -> None:
    done = easq("put", "-d", "x", "--url", "http://127.0.0.1:1/q", "--connect-timeout", "0.1")
    assert done.status == 6
    assert "not known" not in done.err


def test_a_full_queue_is_refused(easq: Easq, serve: Serve) -> None:
    url = serve("--max-length", "2", storage="memory:").url()
    done = easq("put", "-f", "-", "--url", url, stdin=b"1\n2\n3\n4\n")
    assert (done.status, done.text) == (10, "[OK] 1\n[OK] 2\n")
    assert "line 3: " in done.err
    assert "; 2 stored, 1 failed, the rest not attempted\nhint: go on with line 3\n" in done.err
    single = easq("put", "-d", "x", "--url", url, "-o", "json")
    assert single.status == 4
    assert json.loads(single.err)["error"]["kind"] == "queue_full"


@pytest.fixture
def lines(queue: Easq) -> list[str]:
    """The lines of the file `lines`."""
    found = [f"line {number}" for number in range(300)]
    (queue.home / "lines").write_text("".join(f"{line}\n" for line in found))
    return found


def test_a_run_with_a_journal_is_repeated_without_a_second_item(queue: Easq, lines: list[str]) -> None:
    command = ("put", "-f", "lines", "-c", "8", "--resume", "journal")
    first = queue(*command)
    assert first.status == 0
    assert first.text.count("[OK] ") == 300
    again = queue(*command)
    assert (again.status, again.text) == (0, "")
    assert "[INFO] Stored by earlier runs: 300" in again.err.splitlines()
    assert again.err.endswith("Total: 300, success: 300, failed: 0\n")
    assert sorted(payloads(queue)) == sorted(line.encode() for line in lines)


def test_a_run_that_failed_goes_on_behind_what_is_stored(easq: Easq, serve: Serve) -> None:
    service = serve("--max-length", "120")
    (easq.home / "lines").write_text("".join(f"{number}\n" for number in range(200)))
    command = ("put", "-f", "lines", "-c", "8", "--resume", "journal", "--url", service.url(), "-o", "json")
    first = easq(*command)
    assert first.status == 10
    records = [json.loads(line) for line in first.err.splitlines()]
    (summary,) = [record["summary"] for record in records if "summary" in record]
    assert (summary["success"], summary["total"]) == (120, 200)
    assert summary["failed"] >= 1
    assert summary["failed"] + summary["remaining"] == 80
    (error,) = [record["error"] for record in records if "error" in record][-1:]
    assert error["hint"] == "repeat the command: it goes on where it stopped"
    easq("trunc", "121", "-y", "--url", service.url())
    second = easq(*command)
    assert second.status == 0
    summary = json.loads(second.err)["summary"]
    assert (summary["success"], summary["resumed"], summary["failed"], summary["remaining"]) == (
        200,
        120,
        0,
        0,
    )
    numbers = [json.loads(line)["n"] for line in second.out.splitlines()]
    assert numbers == list(range(120, 200))
    assert service.stream().length() == 80


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["-f", "lines", "--tags", "a=b"], "the journal journal belongs to another set of put options"),
        (["-f", "lines", "-k"], "the journal journal belongs to another address"),
        (["-f", "others"], "the input is not the one of the journal journal: its first "),
    ],
)
def test_a_journal_is_for_the_command_that_it_was_made_for(
    queue: Easq, lines: list[str], change: list[str], message: str
) -> None:
    (queue.home / "others").write_text("".join(f"other {line}\n" for line in lines))
    command = ["put", "--resume", "journal", "-q", "-c", "8", "-o", "none"]
    assert queue(*command, "-f", "lines").status == 0
    done = queue(*command, *change)
    assert done.status == 2
    assert message in done.err
    assert len(payloads(queue)) == 300
    assert payloads(queue, "-k") == []


@pytest.mark.usefixtures("lines")
def test_a_damaged_journal_is_refused_and_nothing_is_sent(queue: Easq) -> None:
    (queue.home / "journal").write_text("0123456789abcdef easq-journal 1 a b c\n")
    done = queue("put", "-f", "lines", "--resume", "journal")
    assert (done.status, done.out) == (2, b"")
    assert "easq: the journal journal cannot be trusted: the checksum of " in done.err
    assert payloads(queue) == []


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_what_is_in_flight_when_the_journal_is_full_is_counted(queue: Easq, on_error: str) -> None:
    (queue.home / "lines").write_text("x\n" * 3000)
    command = ("put", "-f", "lines", "-c", "8", "--resume", "journal", "-o", "json", "--on-error", on_error)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))

    # what Python compiles would be cut off as well
    environ = {**queue.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with queue.start(*command, preexec_fn=limit, env=environ) as process:
        _, err = process.communicate()
    assert process.returncode == 10
    records = [json.loads(line) for line in err.splitlines()]
    (summary,) = [record["summary"] for record in records if "summary" in record]
    error = records[-1]["error"]
    assert any(
        "cannot write the journal journal: " in record.get("error", error)["message"] for record in records
    )
    assert error["hint"] == "repeat the command: it goes on where it stopped"
    assert summary["success"] == int(queue("count").text)
    assert (summary["total"], summary["failed"]) == (3000, 0)
    assert summary["remaining"] == 3000 - summary["success"] > 0
    assert queue(*command).status == 0
    assert int(queue("count").text) == 3000


@pytest.mark.usefixtures("lines")
def test_what_is_in_flight_when_stdout_is_full_is_counted(queue: Easq) -> None:
    with (
        open("/dev/full", "wb") as full,
        queue.start("put", "-f", "lines", "-c", "32", "-o", "json", stdout=full) as process,
    ):
        _, err = process.communicate()
    assert process.returncode == 10
    first, second = [json.loads(line) for line in err.splitlines()]
    assert second["error"]["message"].startswith("cannot write to stdout: No space left on device; ")
    summary = first["summary"]
    assert summary["success"] == len(payloads(queue))
    assert (summary["total"], summary["failed"]) == (300, 0)


def test_a_literal_needs_no_journal(queue: Easq) -> None:
    done = queue("put", "-d", "x", "--resume", "journal")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("easq: --resume is for -f, PATH and stdin")
    assert not (queue.home / "journal").exists()


def test_stdin_may_be_endless_and_each_line_is_put_when_it_comes(queue: Easq) -> None:
    with queue.start("put", "-f", "-", "-c", "8", "-q", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in range(1, 4):
            process.stdin.write(b"x\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"[OK] %d\n" % number
        process.stdin.close()
        assert process.wait() == 0


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_taking_and_all_is_accounted_for(
    queue: Easq, number: signal.Signals, status: int
) -> None:
    command = ("put", "-f", "lines", "-c", "4", "--rate", "20", "-o", "json")
    with queue.start(*command) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(number)
        out, err = process.communicate()
    assert process.returncode == status
    summary = json.loads(err)["summary"]
    stored = [first, *out.splitlines()]
    assert (summary["total"], summary["success"], summary["failed"]) == (300, len(stored), 0)
    assert summary["remaining"] == 300 - len(stored)
    assert len(payloads(queue)) == len(stored) < 300


@pytest.mark.usefixtures("lines")
@pytest.mark.parametrize(
    ("args", "absent"),
    [
        (
            ["-d", "x"],
            {"aiohttp", "asyncio", "google", "pygments", "rich", "sqlite3", "websocket"},
        ),
        (["-f", "lines", "-c", "2"], {"google", "httpx", "httpcore", "rich", "sqlite3", "websocket"}),
    ],
)
def test_only_what_is_needed_is_loaded(queue: Easq, args: list[str], absent: set[str]) -> None:
    """Start-up is most of a one-shot command's time."""
    script = (
        "import sys; before = set(sys.modules); from easq.cli.main import run; status = run(sys.argv[1:]);"
        "loaded = {name for name, found in sys.modules.items() if found} - before;"
        "print(status, *sorted({name.partition('.')[0] for name in loaded}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "put", "-q", "-o", "none", *args],
        env=queue.environ,
        cwd=queue.home,
        capture_output=True,
        text=True,
        check=True,
    )
    status, *modules = done.stdout.split()
    assert status == "0"
    assert absent.intersection(modules) == set()


@pytest.mark.usefixtures("lines")
def test_a_long_run_shows_how_far_it_is_on_a_terminal_and_leaves_no_trace(queue: Easq) -> None:
    terminal = queue.terminal("put", "-f", "lines", "--rate", "200", "-o", "none")
    terminal.expect(rb"\[#+-+\] \d+% \d+ \d+/s ETA 0:0\d")
    status, rest = finish(terminal)
    assert status == 0
    assert rest.endswith("Total: 300, success: 300, failed: 0\n")
    quiet = queue.terminal("put", "-f", "lines", "--rate", "250", "-o", "none", "-q")
    assert finish(quiet) == (0, "")


def test_what_fails_many_at_once_is_said_once(easq: Easq, serve: Serve) -> None:
    url = serve(storage="memory:", token="right").url()
    done = easq("put", "-f", "-", "-c", "8", "--url", url, stdin=b"x\n" * 100, env={"EASQ_TOKEN": "wrong"})
    assert (done.status, done.out) == (7, b"")
    said = [line for line in done.err.splitlines() if line.startswith("easq: ")]
    assert len(said) == 1
    assert re.match(r"easq: line 1(?: and [0-9]+ more)?: ", said[0])


def test_what_was_answered_while_the_process_was_stopped_is_stored(easq: Easq) -> None:
    """By Ctrl-Z, for longer than an exchange may take."""
    asked, stopped, answered = threading.Event(), threading.Event(), threading.Event()

    def late(peer: Peer) -> None:
        asked.set()
        stopped.wait(DEADLINE_S)
        peer.answer(200, b"7")
        answered.set()

    with answering(late) as server:
        args = ("put", "-q", "-f", "-", "--url", server.url, "--request-timeout", "1s")
        with easq.start(*args, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write(b"x\n")
            process.stdin.close()
            process.stdin = None
            assert asked.wait(DEADLINE_S)
            began = time.monotonic()
            process.send_signal(signal.SIGSTOP)
            stopped.set()
            assert answered.wait(DEADLINE_S)
            eventually(lambda: time.monotonic() - began > 2.5)
            process.send_signal(signal.SIGCONT)
            out, err = process.communicate()
        assert (process.returncode, out, err) == (0, b"[OK] 7\n", b"")
        assert len(server.requests) == 1


def test_an_interrupt_does_not_wait_for_stdin(queue: Easq) -> None:
    with queue.start("put", "-f", "-", "-c", "4", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"[OK] 1\n"
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        assert process.stderr is not None
        err = process.stderr.read().decode()
    assert err.endswith("Total: 1, success: 1, failed: 0\n")


def test_the_items_of_a_put_are_given_up_some_seconds_after_an_interrupt_and_counted(easq: Easq) -> None:
    """A server that reads a put and never answers it does not delay the end."""
    with (
        answering(silent) as server,
        easq.start(
            "put", "-f", "-", "-c", "2", "--url", server.url, "-o", "json", stdin=subprocess.PIPE
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(b"x\ny\nz\n")
        process.stdin.close()
        process.stdin = None
        assert eventually(lambda: len(server.requests) == 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, out) == (143, b"")
    records = [json.loads(line) for line in err.splitlines()]
    (summary,) = [record["summary"] for record in records if "summary" in record]
    assert (summary["success"], summary["failed"]) == (0, 2)
    assert "whether it was stored is not known" in records[0]["error"]["message"]


@pytest.mark.parametrize("quiet", [False, True])
def test_an_item_that_waits_for_its_next_attempt_is_not_in_flight(easq: Easq, quiet: bool) -> None:
    """The message that the server is busy appears once. A signal ends the put at once, and no item is in doubt."""
    with (
        answering(reply(503, b"busy", X_Easq_Stored="no", Retry_After="20")) as server,
        easq.start(
            "put", "-f", "-", "-c", "2", "--url", server.url, *["-q"] * quiet, stdin=subprocess.PIPE
        ) as process,
    ):
        assert process.stdin is not None
        process.stdin.write(b"x\ny\nz\n")
        process.stdin.close()
        process.stdin = None
        assert eventually(lambda: len(server.requests) == 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
        assert (process.returncode, out) == (143, b"")
        assert len(server.requests) == 2
    text = err.decode()
    assert "given up" not in text
    assert "not known" not in text
    assert "easq: line 1 and 1 more: the server answered 503: busy\n" in text
    assert text.count("[INFO] the server answered 503: busy; trying again\n") == (not quiet)
    if not quiet:
        assert text.endswith("Total: 2, success: 0, failed: 2\n")


def test_what_may_be_there_twice_is_counted(easq: Easq) -> None:
    """An answer was lost, and nothing says that the service knows the key of the second attempt."""
    answers = (reply(200, b"1"), broken, reply(200, b"2"), reply(200, b"3"), reply(404))
    with answering(*answers) as server:
        done = easq("put", "-f", "-", "--url", server.url, stdin=b"x\ny\nz\n")
    assert (done.status, done.text) == (0, "[OK] 1\n[OK] 2\n[OK] 3\n")
    assert "[INFO] Possible duplicates: 1, sent again after an answer was lost" in done.err.splitlines()


@pytest.mark.parametrize(
    "told",
    [
        [reply(200, b"1"), reply(200, b"2", X_Easq_Duplicate="1")],
        [reply(200, b"1"), broken, reply(200, b"2")],
    ],
)
def test_a_service_that_knows_keys_has_nothing_twice(easq: Easq, told: list[Callable[[Peer], None]]) -> None:
    """The service has recognised a key, or its attributes show that it supports keys."""
    attributes = reply(200, b'{"meta.durability":"fsync"}', Content_Type="application/json")
    with answering(broken, *told, attributes) as server:
        done = easq("put", "-f", "-", "--url", server.url, "-o", "json", stdin=b"x\ny\n")
    assert done.status == 0
    summary = json.loads(done.err)["summary"]
    assert (summary["success"], summary["possible_duplicates"]) == (2, 0)


@pytest.mark.parametrize("command", [("put", "-d", "x"), ("delete", "-y", "1"), ("info",)])
def test_what_is_tried_again_is_said_once_on_a_terminal_and_with_v(
    easq: Easq, command: tuple[str, ...]
) -> None:
    body = b'{"stream.length":"0"}' if command[0] == "info" else b"1"
    said = "[INFO] the server answered 503: busy; trying again\n"
    for is_told, options in ((True, ()), (True, ("-v",)), (False, ()), (False, ("-q",))):
        busy = reply(503, b"busy", X_Easq_Stored="no")
        with answering(busy, busy, reply(200, body)) as server:
            args = (*command, *options, "--url", server.url)
            if options or not is_told:
                done = easq(*args)
                status, text = done.status, done.err
            else:
                status, text = finish(easq.terminal(*args))
        assert (status, text.count(said), text.count("trying again")) == (0, is_told, is_told), text


def test_a_connection_that_is_refused_is_said_to_be_tried_again(easq: Easq) -> None:
    url = f"http://127.0.0.1:{free_port()}/q"
    status, text = finish(easq.terminal("put", "-d", "x", "--url", url, "--connect-timeout", "1s"))
    assert status == 6
    refused = rf"connection to {re.escape(url)} refused"
    assert re.fullmatch(rf"\[INFO\] {refused}; trying again\neasq: {refused}\nhint: .*\n", text), text
