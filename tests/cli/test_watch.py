"""easq watch: commit policies, ends and signals, and the items that are pending afterwards."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.cli.conftest import Easq, finish
from tests.conftest import Serve
from tests.support.waiting import eventually

NOTE = "[INFO] Start to watch: index: 0, indexOnly: false, autoCommit: false, window: 10\n"


def fill(queue: Easq, count: int, *args: str) -> None:
    lines = b"".join(b"%d\n" % number for number in range(1, count + 1))
    assert queue("put", "-f", "-", "-q", *args, stdin=lines).status == 0


def left(queue: Easq) -> list[str]:
    done = queue("get", "-l", "999", "--allow-empty", "-o", "raw")
    assert done.status == 0, done.err
    return done.text.split()


def pending(queue: Easq, user: str = "default_user") -> int:
    """Return how many items are pending at the consumer, by the attributes of the queue."""
    for line in queue("info").text.splitlines():
        found = re.search(rf"Id: default_group\.{user}, .*Pending: (\d+), Status: Running", line)
        if found:
            return int(found[1])
    return -1


def redeliveries(queue: Easq, count: int) -> list[tuple[str, str]]:
    """Return the items of the next consumer of the group: each payload with its deliveryCount."""
    done = queue("watch", "--commit", "output", "-n", str(count), "-o", "json", "-q", "--user", "next")
    assert done.status == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    return [(record["data"], record["tags"].get("deliveryCount", "1")) for record in records]


def read_lines(process: subprocess.Popen[bytes], count: int) -> list[str]:
    assert process.stdout is not None
    return [process.stdout.readline().decode().rstrip("\n") for _ in range(count)]


def test_without_a_terminal_a_policy_is_needed(queue: Easq) -> None:
    done = queue("watch")
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        "easq: no commit policy, and no terminal to ask on\n"
        "hint: give one of --auto-commit, --commit output, --commit none, -- CMD\n"
    )
    done = queue("watch", "--commit", "ask")
    assert (done.status, done.err) == (2, "easq: --commit ask needs a terminal to ask on\n")
    assert finish(queue.terminal("watch", "--no-input"))[0] == 2


def test_policies_that_cannot_work_are_refused(queue: Easq) -> None:
    done = queue("watch", "--commit", "none", "-n", "11")
    assert (done.status, done.out) == (2, b"")
    assert done.err == ("easq: -n 11 with --commit none needs --window 11: no more than that is pushed\n")
    assert queue("watch", "--auto-commit", "--commit", "output").status == 2
    assert queue("watch", "--auto-commit", "--commit", "ask").status == 2


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_output_commits_what_was_written(queue: Easq, transport: str) -> None:
    fill(queue, 30)
    done = queue("watch", "--commit", "output", "-n", "25", "-o", "raw", "--transport", transport)
    assert (done.status, done.text.split(), done.err) == (0, [str(n) for n in range(1, 26)], NOTE)
    assert left(queue) == ["26", "27", "28", "29", "30"]
    assert redeliveries(queue, 5)[0][0] == "26"


def test_what_was_pushed_and_not_taken_does_not_count_as_a_failure(serve: Serve, easq: Easq) -> None:
    """Returned more often than the limit of failures, the items are still present."""
    easq("config", "--url", serve(storage="memory:").url())
    fill(easq, 3)
    for _ in range(7):
        assert easq("watch", "--commit", "none", "-n", "1", "-o", "raw").text == "1\n"
    assert left(easq) == ["1", "2", "3"]
    assert [data for data, _ in redeliveries(easq, 3)] == ["1", "2", "3"]


def test_none_commits_nothing_and_hands_back(queue: Easq) -> None:
    fill(queue, 3)
    assert queue("watch", "--commit", "none", "-n", "2", "-o", "raw").text == "1\n2\n"
    assert left(queue) == ["1", "2", "3"]
    assert [data for data, _ in redeliveries(queue, 3)] == ["1", "2", "3"]


def test_auto_commit_leaves_nothing(queue: Easq) -> None:
    fill(queue, 3)
    done = queue("watch", "--auto-commit", "-n", "3", "-o", "raw")
    assert (done.status, done.text) == (0, "1\n2\n3\n")
    assert left(queue) == []


def test_fewer_than_asked_for_is_no_data(queue: Easq) -> None:
    fill(queue, 2)
    for option in ("--timeout", "--idle-timeout"):
        done = queue("watch", "--commit", "none", "-n", "3", option, "500ms", "-o", "raw", "-q")
        assert (done.status, done.text, done.err) == (3, "1\n2\n", "easq: 2 of 3 items came\n")
    assert queue("watch", "--commit", "none", "-n", "3", "--timeout", "1ms", "--allow-empty").status == 0
    assert queue("watch", "--commit", "output", "--idle-timeout", "500ms", "-o", "raw").text == "1\n2\n"
    assert left(queue) == []


def test_a_start_is_an_index_or_the_newest(queue: Easq) -> None:
    fill(queue, 3)
    assert queue("watch", "--commit", "none", "--index", "3", "-n", "1", "-o", "raw").text == "3\n"
    for start in ("abc", "1.5", "18446744073709551616", "-1"):
        done = queue("watch", "--commit", "none", "--index", start)
        assert (done.status, done.out) == (2, b"")
        assert f"{start!r} is not an index" in done.err
    with queue.start("watch", "--commit", "output", "--index", "newest", "-n", "1", "-o", "raw") as watching:
        eventually(lambda: pending(queue) == 0)
        queue("put", "-d", "new")
        assert watching.communicate()[0] == b"new\n"


def test_tags_choose_and_index_only_leaves_the_payload_out(queue: Easq) -> None:
    fill(queue, 2)
    fill(queue, 1, "--tags", "run=7")
    done = queue("watch", "--commit", "output", "-n", "1", "--tags", "run=7", "--index-only", "-o", "json")
    record = json.loads(done.out)
    assert (record["index"], record["size"], record["tags"]["run"]) == ("3", 0, "7")
    assert done.err == NOTE.replace("indexOnly: false", "indexOnly: true") or done.err == ""


def test_the_form_of_lines_in_a_pipe(queue: Easq) -> None:
    (queue.home / "evil").write_bytes(b"\x1b[2J\xff")
    queue("put", "evil", "--tags", "requestId=r")
    done = queue("watch", "--commit", "none", "-n", "1")
    assert re.fullmatch(rb"\[OK\] \[0 - 1\] tags\[.*requestId=r .*\] \x1b\[2J\xff\n", done.out)
    table = queue("watch", "--commit", "none", "-n", "1", "-o", "table").text.splitlines()
    assert table[0] == "n\tindex\trequest_id\ttags\tsize\tdata"
    assert table[1].split("\t")[:3] == ["0", "1", "r"]


def test_two_times_no_leaves_the_item_until_the_watch_ends(queue: Easq) -> None:
    fill(queue, 2)
    terminal = queue.terminal("watch", "-n", "2", "-q")
    terminal.expect_exact("commit: 1 ? [Y/n]")
    terminal.sendline("n")
    terminal.expect_exact("negative: 1 ? [Y/n]")
    terminal.sendline("n")
    terminal.expect_exact("commit: 2 ? [Y/n]")
    terminal.sendline("x")
    terminal.expect_exact("commit: 2 ? [Y/n]")
    terminal.sendline("y")
    assert finish(terminal) == (0, "y\n")
    assert left(queue) == ["1"]
    assert [data for data, _ in redeliveries(queue, 1)] == ["1"]


def test_yes_answers_every_question(queue: Easq) -> None:
    fill(queue, 2)
    status, text = finish(queue.terminal("watch", "-n", "2", "-y", "-o", "raw", "-q"))
    assert (status, text) == (0, "1\n2\n")
    assert left(queue) == []


def test_end_of_input_at_a_later_prompt_tells_what_was_committed(queue: Easq) -> None:
    fill(queue, 3)
    terminal = queue.terminal("watch", "-q")
    terminal.expect_exact("commit: 1 ? [Y/n]")
    terminal.sendline("y")
    terminal.expect_exact("commit: 2 ? [Y/n]")
    terminal.sendeof()
    message = "easq: no answer: end of input at the prompt; committed before that: 1"
    status, text = finish(terminal)
    assert (status, text.splitlines()[-1]) == (10, message)
    assert left(queue) == ["2", "3"]


def test_end_of_input_at_the_prompt_hands_back(queue: Easq) -> None:
    fill(queue, 3)
    terminal = queue.terminal("watch", "-q")
    terminal.expect_exact("commit: 1 ? [Y/n]")
    terminal.sendeof()
    assert finish(terminal) == (2, "\neasq: no answer: end of input at the prompt\n")
    assert left(queue) == ["1", "2", "3"]
    assert [data for data, _ in redeliveries(queue, 3)] == ["1", "2", "3"]


def test_a_payload_cannot_drive_the_terminal(queue: Easq) -> None:
    queue("put", "-d", "\x1b]0;t\x07a\rb\u202e", "--tags", "k=\x1b[2J")
    terminal = queue.terminal("watch", "-n", "1", "-q")
    terminal.expect_exact("\\x1b]0;t\\x07a\\rb\\u202e\r\ncommit: 1 ? [Y/n]")
    assert b"\x1b" not in terminal.before
    terminal.sendline("")
    assert finish(terminal)[0] == 0


def test_ctrl_c_at_a_prompt_hands_the_window_back_at_once(queue: Easq) -> None:
    fill(queue, 3)
    terminal = queue.terminal("watch", "-q")
    terminal.expect_exact("commit: 1 ? [Y/n]")
    terminal.sendline("y")
    terminal.expect_exact("commit: 2 ? [Y/n]")
    terminal.sendintr()
    assert finish(terminal)[0] == 130
    assert left(queue) == ["2", "3"]
    assert [data for data, _ in redeliveries(queue, 2)] == ["2", "3"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_watch_in_good_order(queue: Easq, number: signal.Signals, status: int) -> None:
    fill(queue, 3)
    with queue.start("watch", "--commit", "output", "-o", "raw", "-q") as watching:
        assert read_lines(watching, 3) == ["1", "2", "3"]
        eventually(lambda: left(queue) == [])
        watching.send_signal(number)
        out, err = watching.communicate()
    assert (watching.returncode, out, err) == (status, b"", b"")


def test_a_signal_hands_back_what_was_not_committed(queue: Easq) -> None:
    fill(queue, 3)
    with queue.start("watch", "--commit", "none", "-o", "raw", "-q") as watching:
        assert read_lines(watching, 3) == ["1", "2", "3"]
        assert pending(queue) == 3
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 130
        watching.communicate()
    assert [data for data, _ in redeliveries(queue, 3)] == ["1", "2", "3"]


def test_a_reader_that_goes_away_ends_the_watch_quietly_and_what_it_missed_is_not_committed(
    queue: Easq,
) -> None:
    size = 200_000  # more than a pipe holds, so that each write waits for the reader
    (queue.home / "big").write_bytes(b"x" * size)
    queue("put", "big", "big", "big")
    read, write = os.pipe()
    with queue.start("watch", "--commit", "output", "-o", "raw", "-q", stdout=write) as watching:
        os.close(write)
        taken = 0
        while taken < size + 1:
            taken += len(os.read(read, size + 1 - taken))
        eventually(lambda: len(left(queue)) == 2)
        os.close(read)
        assert watching.stderr is not None
        assert (watching.wait(), watching.stderr.read()) == (141, b"")
    assert len(left(queue)) == 2


def test_head_takes_what_it_wants(queue: Easq) -> None:
    """The reader leaves: exit code 141, no message, and items that did not fit into the pipe are not committed."""
    lines = [f"{n:04}" + "x" * 4000 for n in range(200)]
    assert queue("put", "-q", "-f", "-", stdin="".join(f"{line}\n" for line in lines).encode()).status == 0
    command = f'"{sys.executable}" -m easq watch --commit output -o raw -q -n 200 | head -5'
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], env=queue.environ, capture_output=True, check=False
    )
    assert done.stdout.decode().splitlines() == lines[:5]
    assert done.stderr == b""
    assert done.returncode == 141
    rest = queue("get", "-l", "200", "-o", "raw").text.splitlines()
    assert rest == lines[len(lines) - len(rest) :]
    # a pipe holds 64 KiB, and head reads a little ahead
    assert 150 < len(rest) <= 195


def test_a_stdout_that_is_full_stops_the_watch_and_commits_nothing(queue: Easq) -> None:
    fill(queue, 3)
    with open("/dev/full", "wb") as full, queue.start("watch", "--commit", "output", stdout=full) as watching:
        assert watching.wait() == 74
    assert left(queue) == ["1", "2", "3"]
    assert [data for data, _ in redeliveries(queue, 3)] == ["1", "2", "3"]


def test_a_second_watcher_of_the_same_name_is_refused(queue: Easq) -> None:
    with queue.start("watch", "--commit", "none", "-q") as first:
        eventually(lambda: pending(queue) == 0)
        done = queue("watch", "--commit", "none", "-q")
        assert (done.status, done.out) == (4, b"")
        assert "--user NAME" in done.err
        assert queue("watch", "--commit", "none", "-n", "1", "--timeout", "1ms", "--user", "u2").status == 3
        first.terminate()
        assert first.wait() == 143
        first.communicate()


GOOD_END = "hint: with --until-end this is a good end\n"
NOTHING_LEFT = f"easq: the stream has ended, and nothing in it is left for this group\n{GOOD_END}"
#: what an open watch says when the stream ends; over HTTP only the next connect tells why the answer ended
ENDED = {"ws": f"easq: the stream has ended\n{GOOD_END}", "http": NOTHING_LEFT}


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_an_ended_stream_ends_an_open_watch(queue: Easq, transport: str) -> None:
    for more, status, said in ((["--until-end"], 0, ""), ([], 4, ENDED[transport])):
        fill(queue, 2)
        args = ["--commit", "output", "-o", "raw", "-q", "--transport", transport, *more]
        with queue.start("watch", *args) as watching:
            assert read_lines(watching, 2) == ["1", "2"]
            assert queue("end", "-y").status == 0
            out, err = watching.communicate()
        assert (watching.returncode, out, err.decode()) == (status, b"", said)
        queue("end", "--undo")


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_a_watch_of_a_stream_with_nothing_left_does_not_begin(queue: Easq, transport: str) -> None:
    queue("end", "-y")
    args = ["watch", "--commit", "output", "-q", "--transport", transport]
    done = queue(*args)
    assert (done.status, done.out, done.err) == (4, b"", NOTHING_LEFT)
    done = queue(*args, "--until-end")
    assert (done.status, done.out, done.err) == (0, b"", "")
    done = queue(*args, "--until-end", "-n", "1")
    assert (done.status, done.out, done.err) == (3, b"", "easq: 0 of 1 items came\n")


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_what_is_there_at_the_end_is_still_delivered(queue: Easq, transport: str) -> None:
    fill(queue, 3)
    queue("end", "-y")
    done = queue("watch", "--commit", "output", "-o", "raw", "-q", "--until-end", "--transport", transport)
    assert (done.status, done.text, done.err) == (0, "1\n2\n3\n", "")
    assert left(queue) == []


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_the_end_has_come_once_the_own_group_is_done(queue: Easq, transport: str) -> None:
    """Items that only another group retains do not keep a watch open; items that its own group retains do."""
    fill(queue, 2)
    other = ["watch", "--commit", "none", "-o", "raw", "-q", "--group", "other"]
    mine = ["watch", "--commit", "none", "-o", "raw", "-q", "--until-end", "--transport", transport]
    with queue.start(*other) as slow, queue.start(*mine) as watching:
        assert read_lines(slow, 2) == read_lines(watching, 2) == ["1", "2"]
        queue("end", "-y")
        queue("commit", "1")
        assert watching.poll() is None
        queue("commit", "2")
        out, err = watching.communicate()
        assert (watching.returncode, out, err) == (0, b"", b"")
        assert (left(queue), slow.poll()) == (["1", "2"], None)
        slow.terminate()
        assert slow.wait() == 143
        slow.communicate()


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_a_forced_end_takes_what_a_watch_has_in_hand(queue: Easq, transport: str) -> None:
    fill(queue, 2)
    args = ["--commit", "none", "-o", "raw", "-q", "--until-end", "--transport", transport]
    with queue.start("watch", *args) as watching:
        assert read_lines(watching, 2) == ["1", "2"]
        queue("end", "--force", "-y")
        out, err = watching.communicate()
    assert (watching.returncode, out, err) == (0, b"", b"")
    assert left(queue) == []


def test_a_restarted_service_is_watched_on_and_nobody_sees_an_item_twice(serve: Serve, easq: Easq) -> None:
    """Committed items are not delivered again, other items are shown again, and the watch continues."""
    service = serve()
    easq("config", "--url", service.url())
    fill(easq, 3)
    with easq.start("watch", "--commit", "output", "-o", "raw") as watching:
        assert read_lines(watching, 3) == ["1", "2", "3"]
        eventually(lambda: left(easq) == [])
        service.wanted_port = service.port
        service.restart()
        fill(easq, 2)
        assert read_lines(watching, 2) == ["1", "2"]
        eventually(lambda: left(easq) == [])
        watching.terminate()
        out, err = watching.communicate()
    assert (watching.returncode, out) == (143, b"")
    assert "connecting again" in err.decode()


def test_a_watch_whose_service_died_does_not_end_as_if_the_queue_were_empty(serve: Serve, easq: Easq) -> None:
    """Exit code 6 at whatever bound ends it, and with -n unless enough items came."""
    service = serve()
    easq("config", "--url", service.url())
    fill(easq, 1)
    ends = (
        ("--idle-timeout", "3s"),
        ("--idle-timeout", "3s", "--transport", "http"),
        ("--timeout", "5s"),
        ("--idle-timeout", "3s", "--until-end"),
        ("--idle-timeout", "3s", "-n", "2", "--allow-empty"),
    )
    watches = [
        easq.start("watch", "--commit", "none", "-o", "raw", "--group", f"g{number}", *end)
        for number, end in enumerate(ends)
    ]
    assert [read_lines(watching, 1) for watching in watches] == [["1"]] * len(ends)
    service.kill()
    for watching in watches:
        out, err = watching.communicate()
        assert (watching.returncode, out) == (6, b""), err
        assert b"; not connected again when the time was over\n" in err
