"""easq wait: each condition, the deadline, and a service that does not answer."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from easq.cli.wait import ComparisonType
from tests.cli.conftest import Easq
from tests.client.servers import Peer, Server, answering, reply
from tests.conftest import Serve
from tests.support.waiting import eventually

DESCRIBED = reply(200, b'{"meta.state":"Normal","stream.length":"0"}')


def told(process: subprocess.Popen[bytes], start: str) -> str:
    """Return the next line of -v with this beginning: the process has reached that point."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.decode().startswith(start):
            return line.decode()
    raise AssertionError(f"it ended without a line {start!r}")


@pytest.mark.parametrize(
    ("args", "condition", "value"),
    [
        (["--length", "=2"], "length = 2", 2),
        (["--length", "> 0", "--timeout", "1h"], "length > 0", 2),
        (["--empty", "-k"], "empty", 0),
        (["--consumers", "<= 0"], "consumers <= 0", 0),
        (["--result", "r-1"], "result r-1", "1"),
        (["--result", "r-1", "-k"], "result r-1", "1"),
        (["--ready"], "ready", "Normal"),
    ],
)
def test_what_holds_is_not_waited_for(queue: Easq, args: list[str], condition: str, value: int | str) -> None:
    queue("put", "-q", "-f", "-", stdin=b"1\n2\n")
    if "--result" in args:
        queue("put", "-q", "-k", "-d", "result", "--tags", "requestId=r-1")
    done = queue("wait", *args)
    assert (done.status, done.out, done.err) == (0, b"", "")
    done = queue("wait", *args, "-o", "json")
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == {"condition": condition, "held": True, "value": value}


@pytest.mark.parametrize(
    ("args", "seen"),
    [
        (["--empty"], "empty: the length is 2"),
        (["--length", "<2"], "length < 2: the length is 2"),
        (["--result", "r-1"], "result r-1: the sink does not hold it"),
        (["--consumers", ">=1"], "consumers >= 1: there are 0"),
    ],
)
def test_what_does_not_hold_in_time_is_a_deadline(queue: Easq, args: list[str], seen: str) -> None:
    queue("put", "-q", "-f", "-", stdin=b"1\n2\n")
    for timeout, shown in (("0", "0s"), ("300ms", "300ms")):
        done = queue("wait", *args, "--timeout", timeout)
        assert (done.status, done.out) == (9, b"")
        assert done.err == f"easq: waited {shown} in vain for {seen}\n"
    done = queue("wait", *args, "--timeout", "0", "-o", "json")
    assert (done.status, done.out) == (9, b"")
    assert json.loads(done.err)["error"]["kind"] == "deadline"


@pytest.mark.parametrize("args", [[], ["--empty", "--ready"], ["--length", "> 1", "--consumers", "> 1"]])
def test_exactly_one_condition_is_needed(queue: Easq, args: list[str]) -> None:
    done = queue("wait", *args)
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        "easq: exactly one of --empty, --length, --result, --consumers and --ready is needed\n"
        "hint: easq wait --help\n"
    )


@pytest.mark.parametrize("text", ["3", "=> 3", "> -1", "> 1.5", "> x", ">", "", "> 1 2", "!3"])
def test_a_comparison_that_is_none_is_refused(queue: Easq, text: str) -> None:
    done = queue("wait", "--length", text)
    assert (done.status, done.out) == (2, b"")
    assert f"{text!r} is no comparison such as '>= 10'" in done.err


def test_a_request_id_that_is_empty_is_refused(queue: Easq) -> None:
    done = queue("wait", "--result", "")
    assert (done.status, done.err) == (
        2,
        "easq: --result is empty; leave it out, or give a value\nhint: easq wait --help\n",
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("< 2", [True, False, False]),
        ("<=2", [True, True, False]),
        ("= 2", [False, True, False]),
        ("==2", [False, True, False]),
        (" != 2 ", [True, False, True]),
        (">=2", [False, True, True]),
        ("> 2", [False, False, True]),
    ],
)
def test_the_operators(text: str, holds: list[bool]) -> None:
    comparison = ComparisonType().convert(text, None, None)
    assert [comparison.holds(value) for value in (1, 2, 3)] == holds


def test_a_length_is_waited_for(queue: Easq) -> None:
    with queue.start("wait", "--length", ">= 2", "-v") as waiting:
        for number in "12":
            told(waiting, "< 200")
            assert waiting.poll() is None
            queue("put", "-q", "-d", number)
        assert waiting.wait() == 0
        assert waiting.communicate()[0] == b""


def test_a_result_is_waited_for_and_stays(queue: Easq) -> None:
    with queue.start("wait", "--result", "r-1", "-o", "json", "-v") as waiting:
        assert "/sink?_index_=0&" in told(waiting, "> GET")
        queue("put", "-q", "-k", "-d", "other", "--tags", "requestId=r-2")
        queue("put", "-q", "-k", "-d", "result", "--tags", "requestId=r-1")
        out = waiting.communicate()[0]
    assert (waiting.returncode, json.loads(out)["value"]) == (0, "2")
    assert queue("get", "-k", "-l", "9", "-o", "raw").text == "other\nresult\n"


def test_consumers_are_those_that_are_connected(queue: Easq) -> None:
    with queue.start("watch", "--commit", "none", "-q", "--group", "g") as watching:
        assert queue("wait", "--consumers", "= 1").status == 0
        watching.terminate()
        assert watching.wait() == 143
        watching.communicate()
    assert queue("wait", "--consumers", "= 0").status == 0
    assert queue("info", "--field", "consumers.stats.total").text == "1\n"


def test_a_service_that_starts_is_waited_for(serve: Serve, easq: Easq) -> None:
    service = serve(storage="memory:")
    url, service.wanted_port = service.url(), service.port
    service.kill()
    with easq.start("wait", "--ready", "--url", url, "-v") as waiting:
        assert "refused" in told(waiting, "< ")
        service.start()
        assert waiting.wait() == 0
        waiting.communicate()


def test_a_service_that_is_restarted_meanwhile_is_waited_for(serve: Serve, easq: Easq) -> None:
    service = serve()
    easq("config", "--url", service.url())
    with easq.start("wait", "--length", ">= 1", "-v") as waiting:
        told(waiting, "< 200")
        service.wanted_port = service.port
        service.kill()
        eventually(lambda: "connection" in told(waiting, "< "))
        service.start()
        told(waiting, "< 200")
        easq("put", "-q", "-d", "x")
        assert waiting.wait() == 0
        waiting.communicate()


def test_a_gateway_whose_service_starts_is_waited_for(easq: Easq) -> None:
    with answering(reply(503), reply(502, b"<html>"), reply(429), DESCRIBED) as server:
        done = easq("wait", "--ready", "--url", server.url)
    assert (done.status, done.out, done.err) == (0, b"", "")
    assert len(server.requests) == 4


def done_and_looked(easq: Easq) -> None:
    """An engine commits an item and leaves while a watch is connected; then the watch leaves too."""
    easq("put", "-q", "-d", "x", "--tags", "user=a")
    with easq.start("watch", "--group", "looked", "--tags", "user=a", "--commit", "none") as looks:
        eventually(lambda: easq("wait", "--consumers", ">= 1", "--timeout", "0").status == 0)
        done = easq("watch", "--group", "engine", "--commit", "output", "-n", "1", "-o", "raw")
        assert (done.status, done.out) == (0, b"x\n")
        done = easq("wait", "--empty", "--timeout", "0")
        looks.terminate()
        looks.communicate()
    assert done.status == 9
    assert done.err.endswith("the length is 1; group looked has not committed items with user=a\n")


def test_who_holds_what_is_told(queue: Easq) -> None:
    done_and_looked(queue)
    done = queue("wait", "--empty", "--timeout", "0")
    assert done.status == 9
    told = "group looked left and holds items with user=a for another (1m0|[0-9]+)s"
    assert re.fullmatch(f"easq: waited 0s in vain for empty: the length is 1; {told}\n", done.err)


@pytest.mark.long
def test_what_a_group_that_left_holds_leaves_by_itself(serve: Serve, easq: Easq) -> None:
    easq("config", "--url", serve("--group-retention", "3s").url())
    done_and_looked(easq)
    done = easq("wait", "--empty", "--timeout", "60s")
    assert (done.status, done.out) == (0, b"")


@pytest.mark.long
def test_a_wait_without_end_tells_once_what_it_waits_for(easq: Easq) -> None:
    held = b'{"stream.length":"2","groups.held.[0]":"Id: g, Items: 2"}'
    with answering(*[reply(200, held)] * 7, reply(200, b'{"stream.length":"0"}')) as server:
        done = easq("wait", "--empty", "--url", server.url)
    assert (done.status, done.out) == (0, b"")
    assert done.err == "[INFO] waiting for empty: the length is 2; group g has not committed 2\n"


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, b"", 7),
        (403, b"", 7),
        (404, b"", 8),
        (400, b"", 4),
        (200, b"<html>hello</html>", 5),
        (302, b"", 5),
    ],
)
def test_what_waiting_cannot_help_ends_it_at_once(easq: Easq, status: int, body: bytes, code: int) -> None:
    for condition in (["--ready"], ["--empty"]):
        with answering(reply(status, body)) as server:
            done = easq("wait", *condition, "--url", server.url)
        assert (done.status, done.out) == (code, b"")
        assert len(server.requests) == 1


@pytest.mark.parametrize("timeout", ["0s", "300ms"])
def test_nothing_there_is_unreachable(easq: Easq, timeout: str) -> None:
    url = "http://127.0.0.1:1/q"
    refused = f"connection to {url} refused"
    for args in (["--ready"], ["--length", "<= 1"]):
        done = easq("wait", *args, "--url", url, "--timeout", timeout)
        assert (done.status, done.out) == (6, b"")
        assert done.err == (
            f"easq: waited {timeout} in vain for {' '.join(args).removeprefix('--')}: {refused}\n"
            "hint: is the service running there, and is the port right?\n"
        )
    done = easq("wait", "--empty", "--url", url, "--connect-timeout", "100ms", "--timeout", "1h")
    assert (done.status, done.out) == (6, b"")
    assert done.err.startswith(f"easq: {refused}\n")


def test_a_server_that_never_answers_does_not_hold_up_the_deadline(easq: Easq) -> None:
    def silent(_server: Server, peer: Peer) -> None:
        while peer.read_request()[0]:
            pass

    for condition in (["--empty"], ["--result", "r"], ["--ready"]):
        with Server(silent) as server:
            args = ["--timeout", "100ms", "--request-timeout", "1h", "--url", server.url]
            done = easq("wait", *condition, *args)
        assert (done.status, done.out) == (6, b"")
        assert f": no complete answer from {server.url}" in done.err


def test_ctrl_c_ends_the_wait(queue: Easq) -> None:
    import signal

    with queue.start("wait", "--length", "> 0", "-v") as waiting:
        told(waiting, "< 200")
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait() == 130
        assert waiting.communicate()[0] == b""


def test_an_endless_answer_is_no_queue_service(easq: Easq) -> None:
    """It is read once, and no hint about items is given: none were asked for."""

    def endless(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        peer.flood()

    with answering(endless) as server:
        for args in (("wait", "--empty"), ("info",)):
            done = easq(*args, "--url", server.url)
            assert (done.status, done.out) == (5, b"")
            assert "is above the limit of 67108864 bytes" in done.err
            assert "hint" not in done.err
