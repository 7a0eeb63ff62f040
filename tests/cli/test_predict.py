"""easq predict: through the queue and its sink, and through the gateway."""

from __future__ import annotations

import json
import re
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from tests.cli.conftest import Easq, finish
from tests.client.servers import answering, free_port, silent
from tests.support.waiting import eventually


def answer(queue: Easq, count: int, *tags: str, data: str = "") -> None:
    """Act as the engine: take `count` items and put their data, in capitals, into the sink."""
    done = queue("watch", "--commit", "output", "-n", str(count), "-o", "json", "-q", "--user", "engine")
    assert done.status == 0
    for line in done.out.splitlines():
        record = json.loads(line)
        result = data or record["data"].upper()
        more = [part for tag in tags for part in ("--tags", tag)]
        put = queue("put", "-k", "-d", result, "--tags", f"requestId={record['request_id']}", *more)
        assert put.status == 0


def sink_length(queue: Easq) -> str:
    return queue("info", "-k", "--field", "stream.length").text


def test_the_result_alone_is_printed_and_then_deleted(queue: Easq) -> None:
    with queue.start("predict", "-d", "abc") as process:
        answer(queue, 1)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"ABC", b"")
    assert sink_length(queue) == "0\n"


def test_what_could_not_be_printed_is_not_deleted(queue: Easq) -> None:
    with open("/dev/full", "wb") as full, queue.start("predict", "-d", "abc", stdout=full) as process:
        answer(queue, 1)
        assert process.wait() == 74
    assert sink_length(queue) == "1\n"


def test_many_results_are_in_the_order_of_the_requests(queue: Easq) -> None:
    (queue.home / "in").write_bytes(b"a\nb\nc\nd\n")
    with queue.start("predict", "-f", "in", "-c", "4", "-q") as process:
        answer(queue, 4)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, b"A\nB\nC\nD\n", b"")


def test_json_is_the_frame_of_the_result(queue: Easq) -> None:
    with queue.start("predict", "-d", "abc", "-o", "json", "--tags", "task=7") as process:
        answer(queue, 1)
        record = json.loads(process.communicate()[0])
    assert (record["index"], record["data"]) == ("1", "ABC")


@pytest.mark.parametrize(("code", "status"), [("404", 4), ("503", 5), ("Engine", 5), ("200", 0)])
def test_a_failure_of_the_model_shows_what_it_answered(queue: Easq, code: str, status: int) -> None:
    with queue.start("predict", "-d", "abc") as process:
        answer(queue, 1, f"lastCode={code}", "lastReason=no \x1b[2J", data="the body")
        out, err = process.communicate()
    assert (process.returncode, out) == (status, b"the body")
    expected = f"easq: the model answered {code}: no \\x1b[2J\n" if status else ""
    assert err.decode() == expected
    assert sink_length(queue) == "0\n"


def test_a_result_that_does_not_come_is_a_deadline_that_names_the_request(queue: Easq) -> None:
    done = queue("predict", "-d", "abc", "--timeout", "10ms")
    request_id = json.loads(queue("get", "-o", "json").out)["request_id"]
    assert (done.status, done.out) == (9, b"")
    assert request_id in done.err
    assert f"easq get -k --request-id {request_id}" in done.err


def test_every_literal_and_file_is_a_request_in_the_order_given(easq: Easq, gateway: str) -> None:
    (easq.home / "in").write_text("f1\nf2\n")
    done = easq("predict", "--via", "gateway", "--url", gateway, "-d", "ab", "-f", "in", "-d", "cd")
    assert (done.status, done.text) == (0, "ba\n1f\n2f\ndc\n")


def test_nothing_to_send(queue: Easq) -> None:
    assert queue("predict").status == 2
    assert queue("predict", "-f", "missing").err == "easq: cannot read missing: No such file or directory\n"


class _Model(BaseHTTPRequestHandler):
    """A gateway: answers a POST with its body reversed, or refuses it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = body == b"bad"
        answer = b"no \x1b]0;x\x07\r\n" if refused else body[::-1]
        self.send_response(400 if refused else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("X-Path", self.path)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Model) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api/predict/model"
        server.shutdown()
        thread.join()


def test_the_gateways_answer_is_untouched(easq: Easq, gateway: str) -> None:
    done = easq("predict", "--via", "gateway", "--url", gateway, stdin=b"\n\xff\x00a")
    assert (done.status, done.out, done.err) == (0, b"a\x00\xff\n", "")
    (easq.home / "in").write_bytes(b"ab\ncd\n")
    done = easq("predict", "--via", "gateway", "--url", gateway, "-f", "in", "-o", "json", "-q")
    assert [json.loads(line)["data"] for line in done.out.splitlines()] == ["ba", "dc"]


def test_a_refusal_of_the_gateway_is_refused_and_cannot_drive_the_terminal(easq: Easq, gateway: str) -> None:
    args = ["predict", "--via", "gateway", "--url", gateway, "-d", "bad"]
    assert easq(*args).status == 4
    status, text = finish(easq.terminal(*args))
    assert status == 4
    assert text.startswith("easq: ")
    assert all(c == "\n" or c.isprintable() for c in text)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_some_answered_and_some_not_is_partial(easq: Easq, gateway: str, workers: str) -> None:
    options = ("--via", "gateway", "--url", gateway, "-f", "-", "-c", workers)
    done = easq("predict", *options, stdin=b"ab\nbad\ncd\n")
    assert (done.status, done.out) == (10, b"ba\ndc\n")
    assert "easq: line 2: " in done.err
    assert done.err.endswith("easq: 2 answered, 1 failed\n")


@pytest.mark.parametrize("workers", ["1", "4"])
def test_none_is_begun_once_one_failed_as_all_would(easq: Easq, workers: str) -> None:
    (easq.home / "in").write_bytes(b"x\n" * 1000)
    url = f"http://127.0.0.1:{free_port()}/api/predict/model"
    done = easq(
        "predict", "--via", "gateway", "--url", url, "-f", "in", "-c", workers, "--timeout", "50ms", "-q"
    )
    assert (done.status, done.out) == (6, b"")
    assert done.err.splitlines()[0].startswith("easq: line 1 of in: connection to ")
    assert 1 <= done.err.count("line ") <= 2 * 4 + 16


@pytest.mark.parametrize("workers", ["1", "4"])
def test_an_interrupt_waits_for_no_answer(easq: Easq, workers: str) -> None:
    (easq.home / "in").write_bytes(b"x\n" * 1000)
    with answering(silent) as server:
        options = ("--via", "gateway", "--url", server.url, "-f", "in", "-c", workers, "-q")
        with easq.start("predict", *options) as process:
            eventually(lambda: len(server.requests) == int(workers))
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        server.stop.set()
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_tells_how_the_results_are_fetched_later(
    queue: Easq, workers: str, number: signal.Signals
) -> None:
    lines = [b"%d\n" % n for n in range(int(workers) + 1)]
    (queue.home / "in").write_bytes(b"".join(lines))
    with queue.start("predict", "-f", "in", "-c", workers, "-q") as process:
        eventually(lambda: queue("info", "--field", "stream.length").text == f"{workers}\n")
        time.sleep(0.2)  # until the answer to the last put was read
        process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out) == (128 + number, b"")
    answer(queue, int(workers))
    told = re.findall("request (.*) is in the queue; fetch its result with: (.*)", err.decode())
    assert len(told) == int(workers), err
    assert len(err.splitlines()) == int(workers)
    for request_id, command in told:
        assert command == f"easq get -k --request-id {request_id}"
        assert queue(*command.split()[1:]).status == 0


def test_an_interrupt_of_a_put_without_an_answer_tells_the_request_id(easq: Easq) -> None:
    with answering(silent) as server, easq.start("predict", "-d", "x", "--url", server.url) as process:
        eventually(lambda: server.requests)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        server.stop.set()
    (own_id,) = re.findall(r"requestId=([0-9a-f-]{36})", server.requests[0][0])
    assert (process.returncode, out) == (130, b"")
    fetch = f"fetch its result with: easq get -k --request-id {own_id}"
    assert err.decode() == f"easq: warning: request {own_id} may be in the queue; {fetch}\n"


def test_a_profile_says_which_way(easq: Easq, gateway: str) -> None:
    easq("config", "--url", gateway)
    easq("config", "set", "via", "gateway")
    assert easq("predict", "-d", "ab").out == b"ba"
    easq.config.write_text(easq.config.read_text().replace('"gateway"', '"pigeon"'))
    done = easq("predict", "-d", "ab")
    assert (done.status, done.err) == (
        13,
        "easq: via 'pigeon' is not one of queue, gateway, direct, modelarts, websocket (profile default)\n",
    )


def test_who_answered_is_shown_for_the_gateway_and_not_for_the_queue(easq: Easq, gateway: str) -> None:
    args = ["predict", "--via", "gateway", "--url", gateway, "-d", "ab", "--show-instance"]
    done = easq(*args)
    address = gateway.split("/")[2]
    time = r"[0-9]+\.[0-9] ms"
    assert (done.status, done.out) == (0, b"ba")
    pattern = rf"\[INFO\] {address} attempt 1: connect {time}, first byte {time}, total {time}\n"
    assert re.fullmatch(pattern, done.err)
    shown = json.loads(easq(*args, "-o", "json").out)["instance"]
    assert (shown["address"], shown["attempt"]) == (address, 1)
    assert 0 < shown["connect_ms"] < shown["first_byte_ms"] <= shown["total_ms"]
    done = easq("predict", "--url", gateway, "-d", "ab", "--show-instance")
    assert (done.status, done.err) == (
        2,
        "easq: --show-instance is only for --via gateway, direct, modelarts and websocket\n",
    )


def test_a_token_that_goes_to_a_public_gateway_in_the_clear_is_warned_about(easq: Easq) -> None:
    args = [
        "predict",
        "--via",
        "gateway",
        "--url",
        "http://gone.example.invalid/q",
        "-d",
        "x",
        "--timeout",
        "300ms",
    ]
    warning = "easq: warning: the token travels unencrypted, over http and beyond this network\n"
    assert easq(*args, env={"EASQ_TOKEN": "canary-token-canary"}).err.startswith(warning)
    assert warning not in easq(*args, "--sign", "hmac", env={"EASQ_TOKEN": "canary-token-canary"}).err


def test_tags_go_with_the_queue_only(easq: Easq, gateway: str) -> None:
    done = easq("predict", "--via", "gateway", "--url", gateway, "-d", "x", "--tags", "a=b")
    assert (done.status, done.err) == (2, "easq: --tags is only for --via queue\n")


def test_a_sink_is_no_queue_to_ask(queue: Easq, url: str) -> None:
    """A request that is put into the sink would be returned as its own result."""
    done = queue("predict", "-d", "x", "--url", f"{url}/sink")
    assert (done.status, done.out) == (13, b"")
    assert done.err == (
        f"easq: the url {url}/sink is a sink's: what is put there would be taken again\n"
        "hint: give the queue's own, without /sink\n"
    )
    assert queue("count", "-k").text == "0\n"
