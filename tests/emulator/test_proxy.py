"""A model behind HTTP, called through an instance and the gateway: both directions are forwarded unchanged."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

import pytest

from tests.conftest import OpenCloud
from tests.support.http import Answer, Connection, Headers, ask
from tests.support.platform import Cloud
from tests.support.waiting import PATIENCE_S, eventually

PATH = "/api/predict/model"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND")


@dataclass
class Seen:
    """One request as the model received it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Handler(BaseHTTPRequestHandler):
    """Reads a request and calls the function of the test."""

    protocol_version = "HTTP/1.1"
    model: Model

    def handle_any(self) -> None:
        seen = Seen(self.command, self.path, list(self.headers.items()), b"")
        self.model.seen.append(seen)
        if self.model.reads:
            seen.body = b"".join(self.pieces())
        self.model.does(self)

    def pieces(self) -> Iterator[bytes]:
        """Yield the body of the request as it arrives."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            left = int(self.headers.get("Content-Length", 0))
            while left and (piece := self.rfile.read1(left)):
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def head(self, status: int, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()

    def answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        """Send a whole answer. `headers` replace the one with its length."""
        has_length = any(name in ("Content-Length", "Transfer-Encoding") for name, _ in headers)
        self.head(status, *headers, *(() if has_length else (("Content-Length", str(len(body))),)))
        if self.command != "HEAD":
            self.wfile.write(body)

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, *_: object) -> None:
        pass


for _method in (*METHODS, "TRACE"):
    setattr(Handler, f"do_{_method}", Handler.handle_any)

Does: TypeAlias = Callable[[Handler], None]


@dataclass
class Model:
    """A server of a model on a free port. `does` answers; `reads` tells whether the body is read before."""

    does: Does
    reads: bool = True
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        handler = type("Own", (Handler,), {"model": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._server.handle_error = lambda *_: None
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


Serve: TypeAlias = Callable[..., tuple[Cloud, Model]]


@pytest.fixture
def served(cloud: OpenCloud) -> Iterator[Serve]:
    """Return a factory of models behind HTTP and services in front of them: `served(does, path="/base", token="t")`."""
    models: list[Model] = []

    def start(does: Does, *, reads: bool = True, path: str = "", **options: Any) -> tuple[Cloud, Model]:
        models.append(Model(does, reads))
        return cloud(models[-1].url + path, **options), models[-1]

    yield start
    for model in models:
        model.stop()


def both(made: Cloud) -> tuple[int, int]:
    """Return the ports of the instance and of the gateway."""
    return made.ports[0], made.port


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_passed_on(served: Serve, method: str) -> None:
    """Path and query are forwarded byte for byte, after the path of the model."""
    made, model = served(lambda one: one.answer(200, b"yes"), path="/base?own=1")
    body = b"data" if method in ("POST", "PUT", "PATCH", "DELETE") else None
    for port in both(made):
        answer = (
            ask(port, method, f"{PATH}/a%20b%2Fc//d;e?x=%20+&x=2&flag", [("Content-Type", "a/b")], body)
            if (method != "HEAD")
            else head(port, f"{PATH}/a%20b%2Fc//d;e?x=%20+&x=2&flag")
        )
        assert (answer.status, answer.body) == (200, b"" if method == "HEAD" else b"yes")
        assert answer.header("Content-Length") == "3"
        assert answer.header("X-Easq-Instance") == made.addresses[0]
        seen = model.seen.pop()
        assert (seen.method, seen.target) == (method, "/base/a%20b%2Fc//d;e?own=1&x=%20+&x=2&flag")
        assert seen.body == (body or b"")
    assert model.seen == []


def head(port: int, target: str, headers: Headers = ()) -> Answer:
    """Send a HEAD. Check that another request can be sent on the connection."""
    with Connection(port) as connection:
        answer = connection.ask("HEAD", target, headers)
        assert connection.ask("GET", "/healthz").text == "ok\n"
    return answer


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (201, b"made", [("Location", "/v1/x")]),
        (202, b"", []),
        (204, b"", [("ETag", '"e"')]),
        (206, b"bc", [("Content-Range", "bytes 1-2/9"), ("Accept-Ranges", "bytes")]),
        (301, b"moved", [("Location", "http://127.0.0.1:1/elsewhere")]),
        (304, b"", [("ETag", '"e"'), ("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")]),
        (307, b"", [("Location", "/other")]),
        (404, b'{"detail":"x"}', [("Content-Type", "application/json")]),
        (418, b"teapot", []),
        (500, b"a bug", [("Content-Type", "text/plain")]),
        (503, b"loading", [("Retry-After", "5")]),
    ],
)
def test_every_status_is_forwarded(
    served: Serve, status: int, body: bytes, headers: list[tuple[str, str]]
) -> None:
    """Statuses are forwarded unchanged, and redirects are not followed."""
    made, model = served(lambda one: one.answer(status, body, *headers))
    for port in both(made):
        with Connection(port) as connection:
            answer = connection.ask("GET", PATH)
            assert (answer.status, answer.body) == (status, body)
            for name, value in headers:
                assert answer.header(name) == value
            assert connection.ask("GET", "/healthz").text == "ok\n"
    assert len(model.seen) == 2


def test_headers_go_from_end_to_end(served: Serve) -> None:
    """Repeated headers are forwarded too. Hop-by-hop headers and the token are not, in both directions."""

    def does(one: Handler) -> None:
        own = [
            ("Vary", "a"),
            ("Vary", "b"),
            ("Cache-Control", "max-age=1"),
            ("X-Model", "m"),
        ]
        hops = [
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=9"),
            ("Proxy-Authenticate", "x"),
        ]
        one.answer(200, b"x", ("Content-Type", "image/png"), *own, *hops)

    made, model = served(does, token="secret")
    sent = [
        ("Authorization", "secret"),
        *[
            ("Accept", "a/b"),
            ("Accept", "c/d"),
            ("If-None-Match", '"e"'),
            ("Range", "bytes=1-2"),
            ("X-Mine", "1"),
        ],
        *[
            ("Connection", "X-Hop, keep-alive"),
            ("X-Hop", "1"),
            ("Keep-Alive", "timeout=9"),
            ("TE", "trailers"),
        ],
        *[("Proxy-Authorization", "secret"), ("Upgrade", "h2c"), ("X-EAS-QueueService-Uid", "u")],
        ("Origin", ""),
    ]
    for port in both(made):
        sent[-1] = ("Origin", f"http://127.0.0.1:{port}")
        answer = ask(port, "GET", PATH, sent)
        assert answer.status == 200
        assert answer.all("Vary") == ["a", "b"]
        assert (answer.header("Cache-Control"), answer.header("X-Model")) == ("max-age=1", "m")
        assert answer.header("Content-Type") == "image/png"
        assert (answer.header("Server") or "").startswith("BaseHTTP")
        for name in ("X-Hop", "Keep-Alive", "Proxy-Authenticate"):
            assert answer.header(name) is None
        seen = model.seen.pop()
        assert seen.all("Accept") == ["a/b", "c/d"]
        assert (seen.all("If-None-Match"), seen.all("Range"), seen.all("X-Mine")) == (
            ['"e"'],
            ["bytes=1-2"],
            ["1"],
        )
        for name in (
            "X-Hop",
            "Keep-Alive",
            "TE",
            "Proxy-Authorization",
            "Upgrade",
            "Authorization",
            "Origin",
        ):
            assert seen.all(name) == []
        assert "secret" not in str(seen.headers)
        assert [value for value in seen.all("Host") if value != model.url.removeprefix("http://")] == []


def test_the_gateway_is_a_sandbox(served: Serve) -> None:
    """A page of the model has the queues' origin. It can neither call them nor store anything there."""
    own = [
        *[("Content-Type", "text/html"), ("Content-Security-Policy", "default-src *"), ("Set-Cookie", "a=b")],
        *[
            ("Clear-Site-Data", '"*"'),
            ("Strict-Transport-Security", "max-age=1"),
            ("x-content-type-options", "off"),
        ],
        *[("X-Accel-Redirect", "/etc/passwd"), ("X-Easq-Instance", "1.2.3.4:5")],
    ]
    made, model = served(lambda one: one.answer(200, b"<script>x</script>", *own))
    instance, gateway = both(made)
    answer = ask(gateway, "GET", PATH, [("Cookie", "other=1")])
    assert answer.all("Content-Security-Policy") == ["default-src *", "sandbox allow-scripts"]
    assert answer.header("Content-Type") == "text/html"
    for name in ("Set-Cookie", "Clear-Site-Data", "Strict-Transport-Security", "X-Accel-Redirect"):
        assert answer.header(name) is None
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert answer.header("X-Easq-Instance") == made.addresses[0]
    assert model.seen.pop().all("Cookie") == []
    # an instance has an origin of its own, which a page of the model may use
    answer = ask(instance, "GET", PATH, [("Cookie", "own=1")])
    assert (answer.header("Set-Cookie"), answer.header("Content-Type")) == ("a=b", "text/html")
    assert answer.all("Content-Security-Policy") == ["default-src *"]
    assert (answer.header("X-Content-Type-Options"), answer.header("X-Accel-Redirect")) == ("nosniff", None)
    assert model.seen.pop().all("Cookie") == []


def test_answers_of_other_models_are_in_the_sandbox_too(cloud: OpenCloud) -> None:
    made = cloud("echo")
    assert (
        ask(made.port, "POST", PATH, body=b"x").header("Content-Security-Policy") == "sandbox allow-scripts"
    )


def test_events_pass_one_by_one(served: Serve) -> None:
    """With server-sent events, the model sends the next one after the caller has read the one before."""
    read = threading.Semaphore(0)

    def does(one: Handler) -> None:
        one.head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
        for number in range(5):
            one.chunk(b"data: %d\n\n" % number)
            assert read.acquire(timeout=PATIENCE_S)
        one.wfile.write(b"0\r\n\r\n")

    made, _ = served(does)
    for port in both(made):
        with Connection(port) as connection:
            connection.send_request("GET", f"{PATH}/events")
            status, headers = connection.read_head()
            assert (status, dict(headers)["Content-Type"]) == (200, "text/event-stream")
            assert ("X-Accel-Buffering", "no") in headers
            assert ("Cache-Control", "no-cache, no-transform") in headers
            for number in range(5):
                event = b"data: %d\n\n" % number
                assert connection.read(len(b"a\r\n") + len(event) + 2) == b"%x\r\n%b\r\n" % (
                    len(event),
                    event,
                )
                read.release()
            assert connection.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"
            assert connection.ask("GET", "/healthz").text == "ok\n"


@pytest.mark.parametrize("chunked", [True, False], ids=["in chunks", "of known length"])
def test_an_upload_is_streamed(served: Serve, chunked: bool) -> None:
    """The model has the first part before the caller sends the second."""
    came = threading.Semaphore(0)
    sizes: list[int] = []

    def does(one: Handler) -> None:
        total = 0
        for piece in one.pieces():
            total += len(piece)
            if total >= size and not sizes:
                sizes.append(total)
                came.release()
        one.answer(200, b"%d" % total)

    size = 100_000
    made, model = served(does, reads=False)
    for port in both(made):
        sizes.clear()
        with Connection(port) as connection:
            framing = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(2 * size))
            connection.send_request("PUT", PATH, [framing])
            for part in range(2):
                data = b"x" * size
                connection.send(b"%x\r\n%b\r\n" % (size, data) if chunked else data)
                if part == 0:
                    assert came.acquire(timeout=PATIENCE_S)
            if chunked:
                connection.send(b"0\r\n\r\n")
            answer = connection.read_answer()
        assert (answer.status, answer.body, sizes) == (200, b"%d" % (2 * size), [size])
        assert model.seen[-1].all("Content-Length") == ([] if chunked else [str(2 * size)])


def test_an_upload_above_the_limit_is_413(served: Serve) -> None:
    """Without a declared length, the model sees an incomplete request, never a shorter one."""
    ended: list[str] = []

    def does(one: Handler) -> None:
        try:
            for _ in one.pieces():
                pass
            ended.append("whole")
        except ValueError:
            ended.append("broken off")
        one.close_connection = True

    made, _ = served(does, reads=False, max_payload=1_000_000)
    for port in both(made):
        ended.clear()
        with Connection(port) as connection:
            connection.send_request("POST", PATH, [("Transfer-Encoding", "chunked")])
            for _ in range(11):
                connection.send(b"%x\r\n%b\r\n" % (100_000, b"x" * 100_000))
            answer = connection.read_answer()
            assert answer.status == 413
            assert answer.text.endswith(" bytes, 1000000 are allowed")
            connection.send(b"0\r\n\r\n")
            eventually(connection.is_over)
        eventually(lambda: ended == ["broken off"])


def test_an_unread_answer_is_not_buffered(served: Serve) -> None:
    """The model waits until the caller reads."""
    sent = [0]
    piece = b"x" * 65536

    def does(one: Handler) -> None:
        sent[0] = 0
        one.head(200, ("Content-Length", str(1000 * len(piece))))
        for _ in range(1000):
            one.wfile.write(piece)
            sent[0] += 1

    made, _ = served(does)
    for port in both(made):
        with Connection(port) as connection:
            connection.send_request("GET", PATH)
            connection.read_head()
            before = -1
            while before != sent[0]:  # until nothing more is taken
                before = sent[0]
                threading.Event().wait(0.3)
            assert sent[0] * len(piece) < 32 * 1024**2
            left = 1000 * len(piece) - before * len(piece)
            while left > 0:
                left -= len(connection.socket.recv(1 << 20))
            eventually(lambda: sent[0] > before)  # noqa: B023 - it is called here
            connection.reset()


def test_an_incomplete_answer_is_not_taken_for_a_complete_one(served: Serve) -> None:
    """The connection is aborted if the answer has begun. A short answer is replaced by 502."""

    def does(one: Handler) -> None:
        one.close_connection = True
        if one.path == "/short":
            one.head(200, ("Content-Length", "100"))
        elif one.path == "/long":
            one.head(200, ("Content-Length", "100000000"))
        else:
            one.head(200, ("Transfer-Encoding", "chunked"))
            one.wfile.write(b"5\r\n")
        one.wfile.write(b"begun")

    made, _ = served(does)
    for port in both(made):
        answer = ask(port, "GET", f"{PATH}/short")
        assert (answer.status, answer.text) == (502, "the answer broke off")
        for path in ("/long", "/chunks"):
            with Connection(port) as connection:
                connection.send_request("GET", PATH + path)
                assert connection.read_head()[0] == 200
                with pytest.raises((EOFError, ConnectionResetError)):
                    connection.read(1000)


def test_a_caller_that_leaves_ends_the_stream(served: Serve) -> None:
    """The connection to the model ends as well."""
    gone = threading.Event()

    def does(one: Handler) -> None:
        one.head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
        try:
            while True:
                one.chunk(b"data: x\n\n")
                threading.Event().wait(0.02)
        except OSError:
            gone.set()

    made, _ = served(does, weights=(1, 1))
    for port in both(made):
        gone.clear()
        with Connection(port) as connection:
            connection.send_request("GET", PATH)
            connection.read_head()
            connection.reset()
        assert gone.wait(PATIENCE_S)
    # this was not the instance's fault, so it is called again
    before = made.counts()
    for _ in range(4):
        with Connection(made.port) as connection:
            connection.send_request("GET", PATH)
            connection.read_head()
    assert [after - count for after, count in zip(made.counts(), before, strict=True)] == [2, 2]


def test_a_connection_that_the_model_dropped_is_no_failure(served: Serve) -> None:
    """If the model closes an idle connection while it is reused, the request is sent again on a new one."""

    def does(one: Handler) -> None:
        if drops and one.client_address == drops[0]:
            one.connection.shutdown(socket.SHUT_RDWR)
            one.close_connection = True
        else:
            drops[:] = [one.client_address]
            one.answer(200, b"yes")

    drops: list[object] = []
    made, model = served(does)
    for number in range(4):
        assert ask(made.ports[0], "POST", PATH, body=b"%d" % number).body == b"yes"
    assert len(model.seen) > 4


def test_requests_in_flight_end_when_the_service_stops(
    served: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a grace period a call gets an error, and an endless answer is aborted."""
    monkeypatch.setattr("easq.emulator.instance._GRACE_S", 0.3)
    stopped = threading.Event()

    def does(one: Handler) -> None:
        if one.path != "/waits":
            one.head(200, ("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked"))
            one.chunk(b"data: x\n\n")
        stopped.wait(PATIENCE_S)

    made, model = served(does)
    streams = [Connection(port) for port in both(made)]
    calls = [Connection(port) for port in both(made)]
    for stream in streams:
        stream.send_request("GET", PATH)
        assert stream.read_head()[0] == 200
    for call in calls:
        call.send_request("GET", f"{PATH}/waits")
    eventually(lambda: len(model.seen) == 4)
    made.request_stop()
    for call in calls:
        answer = call.read_answer()
        assert (answer.status, answer.text) == (503, "the call was cancelled")
    for stream in streams:
        assert stream.read_until(b"data: x\n\n\r\n")
        with pytest.raises((EOFError, ConnectionResetError)):
            stream.read(1)
    stopped.set()
    for connection in (*streams, *calls):
        connection.close()


def test_a_stripped_handshake_is_426(cloud: OpenCloud) -> None:
    """A handshake whose Upgrade a proxy removed is not passed to the model as a GET."""
    made = cloud("echo")
    for port in both(made):
        answer = ask(port, "GET", PATH, [("Sec-WebSocket-Key", "x"), ("Sec-WebSocket-Version", "13")])
        assert (answer.status, answer.header("Upgrade")) == (426, "websocket")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("TRACE", PATH, 405), ("GET", f"{PATH}/../admin", 400), ("GET", f"{PATH}/%2e%2e/admin", 400)],
)
def test_trace_and_connect_are_not_forwarded(served: Serve, method: str, target: str, status: int) -> None:
    """TRACE echoes headers, and CONNECT opens a tunnel to other addresses."""
    made, model = served(lambda one: one.answer(200, b"x"), path="/base")
    for port in both(made):
        assert ask(port, method, target).status == status
    assert model.seen == []


def test_a_signature_is_accepted_only_for_a_post(served: Serve) -> None:
    """It does not cover the method."""
    from easq.protocol.signatures import sign

    made, model = served(lambda one: one.answer(200, b"x"), token="t")
    headers = list(
        sign("t", b"", content_type="a/b", date="Mon, 02 Jan 2006 15:04:05 GMT", path=PATH).items()
    )
    for port in both(made):
        assert ask(port, "POST", PATH, headers, b"").status == 200
        assert ask(port, "DELETE", PATH, headers).status == 401
        assert ask(port, "GET", PATH, [("Authorization", "t")]).status == 200
    assert [one.method for one in model.seen] == ["POST", "GET"] * 2


def test_expect_100_continue_is_answered_and_not_forwarded(served: Serve) -> None:
    """curl sends `Expect: 100-continue` with a large body."""
    made, model = served(lambda one: one.answer(200, b"yes"))
    for port in both(made):
        with Connection(port) as connection:
            expecting = [("Expect", "100-continue"), ("Content-Length", "200000")]
            connection.send_request("POST", PATH, expecting)
            assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.send(b"x" * 200_000)
            assert connection.read_answer().body == b"yes"
        seen = model.seen.pop()
        assert (len(seen.body), seen.all("Expect")) == (200_000, [])


def test_a_model_without_an_answer_is_504(served: Serve) -> None:
    """The time limit covers the wait for the head and for each part after it."""
    stop = threading.Event()

    def does(one: Handler) -> None:
        if one.path == "/begun":
            one.head(200, ("Transfer-Encoding", "chunked"))
            one.chunk(b"begun")
        stop.wait(PATIENCE_S)

    made, _ = served(does, timeout_s=0.3)
    try:
        answer = ask(made.ports[0], "GET", PATH)
        assert (answer.status, answer.text) == (504, "no answer within 0.3 s")
        with Connection(made.ports[0]) as connection:
            connection.send_request("GET", f"{PATH}/begun")
            assert connection.read_head()[0] == 200
            assert connection.read(10) == b"5\r\nbegun\r\n"
            with pytest.raises((EOFError, ConnectionResetError)):
                connection.read(1)
    finally:
        stop.set()
