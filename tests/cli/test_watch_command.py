"""easq watch -- CMD: input of the command, effect of its exit status on the item, and end of the watch."""

from __future__ import annotations

import json
import signal

import pytest

from tests.cli.conftest import Easq, finish
from tests.cli.test_watch import fill, left, pending, redeliveries
from tests.conftest import Serve
from tests.support.waiting import eventually

#: fails on 2 and answers all others
PICKY = ("sh", "-c", 'x=$(cat); [ "$x" = 2 ] && { echo no two >&2; exit 3; }; echo "got $x"')


def test_what_it_exits_with_0_on_is_committed(queue: Easq) -> None:
    """The output of the command is the output of the watch, byte for byte."""
    fill(queue, 3)
    done = queue("watch", "-q", "-n", "3", "--", "sh", "-c", "cat; printf '|'")
    assert (done.status, done.text, done.err) == (0, "1|2|3|", "")
    assert left(queue) == []


def test_its_output_cannot_drive_a_terminal(queue: Easq) -> None:
    fill(queue, 3)
    script = "printf '\\033[2Jx\\r'; [ $EASQ_INDEX = 2 ] && echo; [ $EASQ_INDEX = 3 ] && printf '\\377'; true"
    status, text = finish(queue.terminal("watch", "-q", "-n", "3", "--", "sh", "-c", script))
    assert (status, text) == (0, "\\x1b[2Jx\\r\n\\x1b[2Jx\\r\n<binary 7 B, use -o raw>\n")
    assert left(queue) == []


def test_it_gets_the_payload_as_data_and_never_the_token(serve: Serve, easq: Easq) -> None:
    """No shell reads the payload, and no word of it becomes an argument."""
    service = serve(storage="memory:", token="very-secret")
    easq("config", "--url", service.url())
    secret = {"EASQ_TOKEN": "very-secret"}
    payload = "$(touch x); `touch y`"
    easq("put", "-q", "-d", payload, "--tags", "requestId=r-1", "--tags", "task=7", env=secret)
    done = easq("watch", "-q", "-n", "1", "--", "sh", "-c", "cat; echo; env", env=secret)
    first, *environ = done.text.splitlines()
    assert (done.status, first) == (0, payload)
    assert {"EASQ_INDEX=1", "EASQ_REQUEST_ID=r-1", "EASQ_ATTEMPT=1"} <= set(environ)
    (tags,) = [line.partition("=")[2] for line in environ if line.startswith("EASQ_TAGS_JSON=")]
    assert json.loads(tags)["task"] == "7"
    assert "very-secret" not in done.text


def test_a_failure_is_delivered_again_until_the_service_gives_it_up(queue: Easq) -> None:
    """--on-fail negative is the default: after five failures the item is in the rear store."""
    fill(queue, 3)
    done = queue("watch", "--idle-timeout", "3s", "--", *PICKY)
    assert (done.status, done.text) == (0, "got 1\ngot 3\n")
    failures = [line for line in done.err.splitlines() if "failed" in line]
    assert failures == [f"[INFO] item 2 failed, attempt {n}: EngineError no two" for n in range(1, 6)]
    assert left(queue) == []
    assert queue("get", "--rear", "-o", "raw").text == "2"


def test_attempts_are_made_before_an_item_has_failed(queue: Easq) -> None:
    """With --max-attempts the command runs again on the same delivery, with the number of the attempt in its
    environment.
    """
    fill(queue, 1)
    script = "echo $EASQ_ATTEMPT >> attempts; [ $EASQ_ATTEMPT = 3 ] && cat"
    done = queue("watch", "-q", "-n", "1", "--max-attempts", "3", "-o", "json", "--", "sh", "-c", script)
    assert (queue.home / "attempts").read_text() == "1\n2\n3\n"
    record = json.loads(done.out)
    assert (record["outcome"], record["attempt"], record["data"]) == ("done", 3, "1")
    assert left(queue) == []


def test_what_is_left_stays_pending_and_comes_back_uncounted(queue: Easq) -> None:
    fill(queue, 3)
    done = queue("watch", "-q", "-n", "3", "--on-fail", "leave", "--", *PICKY)
    assert (done.status, done.text) == (0, "got 1\ngot 3\n")
    assert left(queue) == ["2"]
    assert redeliveries(queue, 1) == [("2", "2")]


def test_a_window_full_of_what_is_left_ends_the_watch(queue: Easq) -> None:
    """No further item would be delivered."""
    fill(queue, 5)
    done = queue("watch", "-q", "--window", "2", "--on-fail", "leave", "--", "false")
    assert (done.status, done.out) == (12, b"")
    assert done.err.splitlines()[0] == (
        "easq: the command failed on 2 items, which stay pending: the window is full"
    )
    assert left(queue) == ["1", "2", "3", "4", "5"]


def test_a_failure_can_stop_the_watch(queue: Easq) -> None:
    """Exit code 12; processed items are committed, and the other items are unchanged."""
    fill(queue, 3)
    done = queue("watch", "-q", "--on-fail", "stop", "--", *PICKY)
    assert (done.status, done.text, done.err) == (12, "got 1\n", "easq: the command failed: no two\n")
    assert left(queue) == ["2", "3"]
    assert [data for data, _ in redeliveries(queue, 2)] == ["2", "3"]


def test_a_command_that_cannot_start_is_12(queue: Easq) -> None:
    """Once, not in a loop."""
    fill(queue, 3)
    done = queue("watch", "-q", "--", "/no/such/command")
    assert (done.status, done.out) == (12, b"")
    assert done.err == "easq: /no/such/command cannot be started: No such file or directory\n"
    assert left(queue) == ["1", "2", "3"]


def test_each_run_is_an_object(queue: Easq) -> None:
    queue("put", "-q", "-d", "1", "--tags", "requestId=r-1")
    queue("put", "-q", "-d", "2", "--tags", "requestId=r-2")
    done = queue("watch", "-n", "2", "--on-fail", "leave", "-o", "json", "--", *PICKY)
    first, second = [json.loads(line) for line in done.out.splitlines()]
    assert first == {
        "n": 0,
        "index": "1",
        "request_id": "r-1",
        "outcome": "done",
        "code": None,
        "reason": None,
        "attempt": 1,
        "size": 6,
        "encoding": "utf8",
        "data": "got 1\n",
    }
    assert (second["outcome"], second["code"], second["reason"]) == ("failed", "EngineError", "no two")
    assert done.err == ""
    fill(queue, 1)
    table = queue("watch", "-q", "-n", "1", "-o", "table", "--", "cat")
    assert table.text.splitlines()[0] == "n\tindex\trequest_id\toutcome\tattempt\tsize\tdata"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_what_runs_is_finished_within_the_grace(queue: Easq, number: int, status: int) -> None:
    fill(queue, 3)
    script = "touch begun; while [ ! -e go ]; do sleep 0.02; done; cat"
    with queue.start("watch", "--grace", "60s", "--", "sh", "-c", script) as watching:
        eventually((queue.home / "begun").exists)
        watching.send_signal(number)
        assert watching.stderr is not None
        eventually(lambda: b"stopping; item 1 is under way" in watching.stderr.readline())
        (queue.home / "go").touch()
        out, _ = watching.communicate()
    assert (watching.returncode, out) == (status, b"1")
    assert left(queue) == ["2", "3"]
    assert [data for data, _ in redeliveries(queue, 2)] == ["2", "3"]


@pytest.mark.parametrize("signals", [1, 2])
def test_what_does_not_end_is_cut_off_and_handed_back(queue: Easq, signals: int) -> None:
    """After the grace, or at a second signal; the command is gone."""
    fill(queue, 1)
    grace = "100ms" if signals == 1 else "1h"
    script = "touch begun; sleep 60; touch survived"
    with queue.start("watch", "--grace", grace, "--", "sh", "-c", script) as watching:
        eventually((queue.home / "begun").exists)
        watching.terminate()
        assert watching.stderr is not None
        eventually(lambda: b"stopping" in watching.stderr.readline())
        if signals == 2:
            watching.terminate()
        watching.communicate()
    assert watching.returncode == 143
    assert left(queue) == ["1"]
    assert not (queue.home / "survived").exists()


def test_a_command_that_takes_long_keeps_the_watch(serve: Serve, easq: Easq) -> None:
    """Longer than the service waits for a silent connection."""
    service = serve("--silent-after", "4s", storage="memory:")
    easq("config", "--url", service.url())
    fill(easq, 1)
    with easq.start("watch", "-q", "-n", "1", "--", "sh", "-c", "sleep 4.5; cat") as watching:
        eventually(lambda: pending(easq) == 1)
        out, err = watching.communicate()
    assert (watching.returncode, out, err) == (0, b"1", b"")
    assert left(easq) == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--commit", "output", "--", "cat"), "with -- CMD its exit status decides the commit"),
        (("--auto-commit", "--", "cat"), "with -- CMD its exit status decides the commit"),
        (("--commit", "output", "--on-fail", "stop"), "--on-fail needs a command\nhint: -- CMD ARG..."),
        (("--commit", "output", "--max-attempts", "2"), "--max-attempts needs a command\n"),
        (("--commit", "output", "--grace", "2s"), "--grace needs a command\n"),
    ],
)
def test_what_cannot_work_is_refused(queue: Easq, args: tuple[str, ...], said: str) -> None:
    done = queue("watch", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {said}")


def test_a_command_without_time_has_the_item_again_later(serve: Serve, easq: Easq) -> None:
    """Exit status 75 (EX_TEMPFAIL) is no failure."""
    service = serve("--max-delivery", "1", storage="memory:")
    easq("config", "--url", service.url())
    fill(easq, 1)
    script = "[ -e tried ] && exec cat; touch tried; exit 75"
    done = easq("watch", "-q", "-n", "2", "--", "sh", "-c", script)
    assert (done.status, done.out) == (0, b"1")
    assert left(easq) == []
