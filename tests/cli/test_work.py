"""easq work: its output in each format, and its end."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.cli.conftest import Easq, finish
from tests.client.servers import answering, reply, silent
from tests.support.waiting import eventually

#: fails on `bad`, has nothing to say on `quiet`, and answers all others
MODEL = ("sh", "-c", 'x=$(cat); case $x in bad) echo no luck >&2; exit 3;; quiet) ;; *) printf "R-$x";; esac')


def work(queue: Easq, *args: str, until: str = "0", send: int = signal.SIGTERM) -> tuple[int, str, str]:
    """A run of `easq work` until the input has that length: its exit status, stdout and stderr."""
    with queue.start("work", *args) as process:
        eventually(lambda: queue("info", "--field", "stream.length").text == f"{until}\n")
        process.send_signal(send)
        out, err = process.communicate()
    return process.returncode, out.decode(), err.decode()


def test_one_object_for_each_delivery_and_one_for_all(queue: Easq) -> None:
    """The outcome of each item is on stdout, the totals are on stderr."""
    queue("put", "-q", "-d", "a", "--tags", "requestId=r-a")
    queue("put", "-q", "-d", "quiet", "--tags", "requestId=r-q")
    status, out, err = work(queue, "--window", "1", "-o", "json", "--", *MODEL)
    assert status == 0
    first, second = [json.loads(line) for line in out.splitlines()]
    assert first.pop("seconds") > 0
    assert first == {
        "n": 0,
        "index": "1",
        "request_id": "r-a",
        "outcome": "answered",
        "code": None,
        "reason": None,
        "attempt": 1,
        "size": 3,
    }
    assert (second["outcome"], second["request_id"], second["size"]) == ("empty", "r-q", 0)
    (summary,) = [json.loads(line)["summary"] for line in err.splitlines()]
    assert summary["p50"] <= summary["p99"] <= summary["seconds"]
    counts = {name: value for name, value in summary.items() if name not in ("p50", "p99", "seconds")}
    assert counts == {
        "done": 2,
        "answered": 1,
        "empty": 1,
        "too_large": 0,
        "failed": 0,
        "busy": 0,
        "returned": 0,
    }
    assert queue("get", "-k", "-o", "raw").text == "R-a"


def test_failures_are_said_and_the_service_answers_in_the_end(queue: Easq) -> None:
    queue("put", "-q", "-d", "bad", "--tags", "requestId=r")
    status, out, err = work(queue, "--", *MODEL)
    assert (status, out) == (0, "")
    said = [line for line in err.splitlines() if "item" in line]
    assert said.pop(2) == "[INFO] the model fails, calling it for one item at a time: no luck"
    assert said == [f"[INFO] item 1 failed, attempt {n}: EngineError no luck" for n in range(1, 6)]
    assert err.startswith("[INFO] Start to work: window: 5, jobs: 5\n")
    totals = r"Total: 5, answered: 0, empty: 0, too large: 0, failed: 5, busy: 0, returned: 0\n$"
    assert re.search(r"\[INFO\] Work done.\nTotal time cost: \S+s, p50 \d+ms, p99 \d+ms\n" + totals, err)
    result = json.loads(queue("get", "-k", "-o", "json").text)
    assert (result["data"], result["tags"]["lastCode"]) == ("no luck", "500")


def test_a_table_has_a_row_for_each(queue: Easq) -> None:
    queue("put", "-q", "-d", "a", "--tags", "requestId=r")
    status, out, _ = work(queue, "-o", "table", "-q", "--", *MODEL)
    header, row = [line.split("\t") for line in out.splitlines()]
    assert status == 0
    assert header == ["n", "index", "request_id", "outcome", "code", "attempt", "size", "seconds"]
    assert row[:-1] == ["0", "1", "r", "answered", "", "1", "3"]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)]
)
def test_what_runs_is_finished_within_the_grace(queue: Easq, number: int, status: int) -> None:
    """After a signal the worker finishes the running calls and returns the other items."""
    for data in "abc":
        queue("put", "-q", "-d", data)
    script = "touch begun; while [ ! -e go ]; do sleep 0.02; done; cat"
    args = ("--jobs", "1", "--window", "2", "--grace", "60s", "--", "sh", "-c", script)
    with queue.start("work", *args) as process:
        eventually((queue.home / "begun").exists)
        process.send_signal(number)
        assert process.stderr is not None
        eventually(lambda: b"stopping; 1 under way" in process.stderr.readline())
        (queue.home / "go").touch()
        process.communicate()
    assert process.returncode == status
    assert queue("get", "-k", "-l", "9", "-o", "raw").text == "a\n"
    assert queue("get", "-l", "9", "-o", "raw").text == "b\nc\n"


def test_what_outlasts_the_grace_is_handed_back(queue: Easq) -> None:
    queue("put", "-q", "-d", "a")
    script = "touch begun; sleep 60"
    with queue.start("work", "--grace", "100ms", "-o", "json", "--", "sh", "-c", script) as process:
        eventually((queue.home / "begun").exists)
        process.terminate()
        out, _ = process.communicate()
    assert (process.returncode, json.loads(out)["outcome"]) == (0, "returned")
    assert queue("get", "-o", "raw").text == "a"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_second_signal_leaves_at_once(queue: Easq, number: int, status: int) -> None:
    queue("put", "-q", "-d", "a")
    script = "touch begun; sleep 60"
    with queue.start("work", "--grace", "1h", "--", "sh", "-c", script) as process:
        eventually((queue.home / "begun").exists)
        process.terminate()
        assert process.stderr is not None
        eventually(lambda: b"stopping" in process.stderr.readline())
        process.send_signal(number)
        process.communicate()
    assert process.returncode == status
    assert queue("get", "-o", "raw").text == "a"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
@pytest.mark.parametrize("answered", [0, 1], ids=["attributes", "handshake"])
def test_a_signal_ends_it_also_while_it_connects(easq: Easq, answered: int, number: int, status: int) -> None:
    """The worker does not wait for a service that accepts the connection and does not answer."""
    described = reply(200, b'{"meta.name":"q"}')
    with answering(*[described] * answered, silent) as server:
        with easq.start("work", "--request-timeout", "1h", "--url", server.url, "--", "cat") as process:
            eventually(lambda: len(server.requests) > answered)
            process.send_signal(number)
            process.communicate()
    assert process.returncode == status


def test_a_command_that_cannot_start_is_12(queue: Easq) -> None:
    """Once, not in a loop, and the item is as it was."""
    queue("put", "-q", "-d", "a")
    done = queue("work", "-q", "--", "/no/such/command")
    assert (done.status, done.out) == (12, b"")
    assert done.err == "easq: /no/such/command cannot be started: No such file or directory\n"
    assert queue("get", "-o", "raw").text == "a"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "no model\nhint: --forward URL, or -- CMD ARG...\n"),
        (("--forward", "http://127.0.0.1:1/", "--", "cat"), "--forward and -- CMD exclude each other\n"),
        (("--jobs", "3", "--window", "2", "--", "cat"), "--jobs 3 is above --window 2: "),
        (("--forward", "ftp://x/"), "model 'ftp://x/': no http or https address\n"),
        (("--item-timeout", "0", "--", "cat"), "--item-timeout 0s leaves no time for a call\n"),
        (("--window", "0", "--", "cat"), "invalid value for '--window'"),
    ],
)
def test_what_cannot_work_is_refused(queue: Easq, args: tuple[str, ...], said: str) -> None:
    done = queue("work", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {said}")


def test_the_address_of_a_sink_is_refused(queue: Easq, url: str) -> None:
    """The worker would process its own results."""
    done = queue("work", "--url", f"{url}/sink", "--", "cat")
    assert (done.status, done.out) == (13, b"")
    said = f"easq: the url {url}/sink is a sink's: what is put there would be taken again\n"
    assert done.err == f"{said}hint: give the queue's own, without /sink\n"


def test_a_reader_that_leaves_ends_it_quietly(queue: Easq) -> None:
    """stdout is closed: running calls are finished, and no message is printed."""
    for _ in range(3):
        queue("put", "-q", "-d", "a")
    with queue.start("work", "-o", "json", "-q", "--", *MODEL) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_the_group_is_the_queues_name_unless_it_is_given(queue: Easq, url: str) -> None:
    """As with search; a group in the profile is for watches."""
    queue("config", "--group", "mine")
    name = url.rpartition("/")[2]
    for args, group, user in (((), name, r"\S+-\d+"), (("--group", "g", "--user", "u"), "g", "u")):
        with queue.start("work", *args, "--", "cat") as process:
            eventually(lambda: re.search(rf"Id: {group}\.{user}, .*Status: Running", queue("info").text))  # noqa: B023
            process.terminate()
            process.communicate()
        assert process.returncode == 0


def test_on_a_terminal_it_shows_how_it_goes(queue: Easq) -> None:
    """One changing line, which is cleared before other output; the totals are printed at the end."""
    for data in ("a", "bad", "quiet"):
        queue("put", "-q", "-d", data)
    terminal = queue.terminal("work", "--", *MODEL)
    terminal.expect_exact("item 2 failed, attempt 5: EngineError no luck")
    terminal.expect(r"\r\x1b\[K2 done 5 failed held [\d.]+/s \d+ left")
    terminal.sendintr()
    status, rest = finish(terminal)
    assert status == 130
    assert "[INFO] stopping; 0 under way" in rest
    assert rest.endswith("Total: 7, answered: 1, empty: 1, too large: 0, failed: 5, busy: 0, returned: 0\n")
    quiet = queue.terminal("work", "-q", "--", *MODEL)
    eventually(lambda: "Status: Running" in queue("info").text)
    quiet.sendintr()
    assert finish(quiet) == (130, "^C")
