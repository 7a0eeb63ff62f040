"""Models are run as they are meant: by real commands and against a real server on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import pytest

from easq.errors import ChildFailed, UsageError
from easq.models.base import Answer, BlockingModel, Call, Model, ModelFailed
from easq.models.command import Exec
from easq.models.http import Http
from easq.models.open import Echo, parse_model
from easq.models.threads import Threaded
from tests.client.servers import secured
from tests.support.waiting import PATIENCE_S, eventually

T = TypeVar("T")
Reply: TypeAlias = Callable[["Handler"], None]


@dataclass
class Seen:
    """What a server was asked: each request's line, headers and body; and the ports it was asked from."""

    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Answers as the test says."""

    protocol_version = "HTTP/1.1"
    reply: Reply
    seen: Seen

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.requests.append((self.path, dict(self.headers), body))
        self.seen.ports.append(self.client_address[1])
        type(self).reply(self)

    def answer(self, body: bytes, *headers: tuple[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Upstream:
    """A model's server, on a port of its own."""

    def __init__(self, reply: Reply) -> None:
        self.seen = Seen()
        handler = type("Own", (Handler,), {"reply": staticmethod(reply), "seen": self.seen})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def upstream() -> Iterator[Callable[[Reply], Upstream]]:
    running: list[Upstream] = []

    def start(reply: Reply) -> Upstream:
        running.append(Upstream(reply))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def model() -> Iterator[Callable[[str], Model]]:
    """Models that are closed after the test."""
    made: list[Model] = []

    def make(text: str) -> Model:
        made.append(parse_model(text))
        return made[-1]

    yield make
    for one in made:
        close(one)


def script(folder: Path, source: str) -> Exec:
    """A command that runs `source`."""
    file = folder / "model.py"
    file.write_text(source, encoding="utf-8")
    return Exec([sys.executable, "-I", str(file)])


class Loop:
    """An event loop in a thread of its own, on which models are called."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, steps: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result()

    def call(self, function: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(function)


@cache
def loop() -> Loop:
    """The loop of all tests of this process."""
    return Loop()


def ask(model: Model | BlockingModel, call: Call, *, timeout_s: float = PATIENCE_S) -> Answer:
    if isinstance(model, Exec):
        return model.run(call, timeout_s=timeout_s)
    return loop().run(cast(Model, model).answer(call, timeout_s=timeout_s))


def close(model: Model | BlockingModel) -> None:
    if isinstance(model, Exec):
        model.close()
    else:
        loop().run(cast(Model, model).close())


def failure(
    model: Model | BlockingModel, call: Call | None = None, *, timeout_s: float = PATIENCE_S
) -> ModelFailed:
    with pytest.raises(ModelFailed) as caught:
        ask(model, call or Call(b"x"), timeout_s=timeout_s)
    return caught.value


def alive(pid: int) -> bool:
    """Whether the process runs: one that nobody waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# which model


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("echo", Echo),
        ("exec:cat", Threaded),
        ("exec: sh -c 'tr a b'", Threaded),
        ("http:http://127.0.0.1:1/p", Http),
        ("http://127.0.0.1:1/p?a=b", Http),
        ("http:https://h/x", Http),
        ("https://h", Http),
        ("http://[::1]:80/", Http),
    ],
)
def test_a_model_is_named_by_text(text: str, kind: type[Model]) -> None:
    """The three kinds, and the plain address."""
    assert type(parse_model(text)) is kind


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not known"),
        ("ech", "not known"),
        ("echo:x", "not known"),
        ("exec", "not known"),
        ("exec:", "no command"),
        ("exec:''", "no command"),
        ("exec:sh -c 'x", "no closing quotation"),
        ("http:", "no http or https address"),
        ("http:ftp://h/x", "no http or https address"),
        ("http://", "no http or https address"),
        ("http://h:99999/", "no http or https address"),
        ("http://h:0/", "no http or https address"),
        ("http://h/a b", "no http or https address"),
        ("http://u:secret@h/", "the url holds a user, a password or a fragment"),
        ("http://h/#x", "the url holds a user, a password or a fragment"),
    ],
)
def test_what_is_no_model_is_refused(text: str, complaint: str) -> None:
    """One line that names it, with a hint, and without a password."""
    with pytest.raises(UsageError) as caught:
        parse_model(text)
    assert complaint in caught.value.message
    assert caught.value.hint
    assert "secret" not in caught.value.message


# echo


def test_echo_answers_the_data_as_it_came() -> None:
    """Bytes and type are the call's."""
    answer = ask(Echo(), Call(b"\x00\xff", headers={"content-type": "image/png"}))
    assert answer == Answer(b"\x00\xff", 200, (("Content-Type", "image/png"),))
    assert answer.content_type == "image/png"
    assert ask(Echo(), Call()).content_type == ""


# a command


def test_a_command_reads_stdin_and_answers_on_stdout(model: Callable[[str], Model]) -> None:
    """Every byte, also of more than pipes hold, and of nothing."""
    data = os.urandom(3_000_000)
    assert ask(model("exec:cat"), Call(data)).data == data
    assert ask(model("exec:cat"), Call()).data == b""


def test_a_command_that_does_not_read_is_no_failure(model: Callable[[str], Model]) -> None:
    """Data that nobody wants is dropped."""
    assert ask(model("exec:echo hi"), Call(b"x" * 3_000_000)).data == b"hi\n"


def test_a_command_gets_its_words_and_no_shell() -> None:
    """What stands in the arguments or the data is text."""
    show = "import sys; sys.stdout.write(repr(sys.argv[1:]) + sys.stdin.read())"
    model = Exec([sys.executable, "-I", "-c", show, "$(touch x)", "a b", ";"])
    assert ask(model, Call(b"$(touch y)")).data == b"['$(touch x)', 'a b', ';']$(touch y)"


def test_a_command_knows_its_call_and_not_our_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is ours and the call's, without token."""
    monkeypatch.setenv("EASQ_TOKEN", "canary")
    monkeypatch.setenv("EASQ_TOKEN_FILE", "canary")
    monkeypatch.setenv("OURS", "1")
    model = script(tmp_path, "import os, json; print(json.dumps(dict(os.environ)))")
    call = Call(
        path="/v1/x",
        query=(("a", "b c"),),
        headers={"Content-Type": "text/plain"},
        environ={"EASQ_INDEX": "7"},
    )
    environ = json.loads(ask(model, call).data)
    assert {name: environ[name] for name in environ if name.startswith(("EASQ_", "OURS"))} == {
        "OURS": "1",
        "EASQ_INDEX": "7",
        "EASQ_PATH": "/v1/x",
        "EASQ_QUERY": "a=b+c",
        "EASQ_CONTENT_TYPE": "text/plain",
    }
    assert "canary" not in environ.values()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import sys; sys.exit('first\\n\\x1b[31mno such file \\n\\n')", " [31mno such file"),
        ("import sys; sys.exit(3)", "exit status 3"),
        ("import os; os.kill(os.getpid(), 15)", "killed by signal 15"),
        ("import sys; sys.stderr.write('x' * 10**6 + 'end'); sys.exit(1)", "x" * 300),
        ("import sys; sys.stderr.buffer.write(b'\\xff'); sys.exit(1)", "\ufffd"),
    ],
)
def test_a_status_other_than_0_is_a_failure(tmp_path: Path, source: str, reason: str) -> None:
    """Its reason is the last line on stderr, safe to show; else how it ended."""
    error = failure(script(tmp_path, source))
    assert (error.message, error.code, error.status) == (reason, "EngineError", 500)


def test_what_a_failed_command_wrote_is_kept(tmp_path: Path) -> None:
    """It is the failure's data."""
    assert failure(script(tmp_path, "print('half'); raise SystemExit(1)")).data == b"half\n"


def test_a_command_that_cannot_start_is_an_error_of_its_own(tmp_path: Path) -> None:
    """It is not the item's fault, so it is no ModelFailed."""
    (tmp_path / "plain").write_text("not executable")
    for argv in (["no-such-command"], [str(tmp_path / "plain")]):
        with pytest.raises(ChildFailed, match=r"cannot be started: (No such file|Permission denied)"):
            Exec(argv).run(Call())


def test_a_command_that_is_not_there_is_known_before(tmp_path: Path) -> None:
    """Without a call."""
    for text in ("exec:cat", "exec:/bin/cat -", "echo", "http://127.0.0.1:1/"):
        parse_model(text).check()
    with pytest.raises(ChildFailed, match="no-such-command cannot be started: no such command"):
        parse_model("exec:no-such-command x").check()
    (tmp_path / "plain").write_text("not executable")
    with pytest.raises(ChildFailed):
        Exec([str(tmp_path / "plain")]).check()


def test_an_environment_that_cannot_be_given_is_the_calls_failure() -> None:
    """The command is not to blame for an item's tags."""
    assert failure(Exec(["cat"]), Call(environ={"A": "x\0y"})).status == 400
    assert failure(Exec(["cat"]), Call(environ={"A": "x" * 10_000_000})).code == "EngineError"


def test_a_command_out_of_time_is_killed_with_its_group(tmp_path: Path) -> None:
    """Also what it started itself."""
    pids = tmp_path / "pids"
    source = f"""
import os, subprocess, time
child = subprocess.Popen(["sleep", "1000"])
with open({str(pids)!r} + ".new", "w") as f: f.write(f"{{os.getpid()}} {{child.pid}}")
os.rename({str(pids)!r} + ".new", {str(pids)!r})
time.sleep(1000)
"""
    model = script(tmp_path, source)
    with ThreadPoolExecutor(1) as pool:
        # cancelled only once both run: a limit in seconds would race with the start of an interpreter
        call = pool.submit(failure, model)
        eventually(pids.exists)
        loop().call(model.cancel)
        error = call.result(PATIENCE_S)
    assert (error.code, error.status) == ("Shutdown", 503)
    for pid in map(int, pids.read_text().split()):
        eventually(lambda pid=pid: not alive(pid))


def test_a_command_has_a_time_limit() -> None:
    """At it the call fails with 504."""
    error = failure(Exec(["sleep", "1000"]), timeout_s=0.05)
    assert (error.message, error.code, error.status) == ("no answer within 0.05 s", "504", 504)


def test_a_command_that_closed_its_output_is_still_waited_for(tmp_path: Path) -> None:
    """Its status is what counts."""
    source = "import os, sys; os.close(1); os.close(2); sys.stdin.read(); os._exit(4)"
    assert failure(script(tmp_path, source)).message == "exit status 4"


def test_what_runs_on_in_the_background_is_not_waited_for() -> None:
    """The answer is there when the command has ended, whoever still holds its stdout."""
    answer = Exec(["sh", "-c", "sleep 1000 & echo $!"]).run(Call(), timeout_s=PATIENCE_S)
    pid = int(answer.data)
    assert alive(pid)
    os.kill(pid, 9)


def test_an_answer_of_a_command_is_bounded() -> None:
    """One that never ends is stopped at the limit."""
    error = failure(Exec(["yes"], max_answer=1000))
    assert (error.message, error.status) == ("the answer is above 1000 bytes", 502)


def test_a_command_that_never_stops_talking_is_stopped() -> None:
    """On stderr there is no limit to what it may say, but the one of time."""
    assert failure(Exec(["sh", "-c", "yes >&2"]), timeout_s=0.3).status == 504
    answer = Exec(["sh", "-c", "yes >&2 & echo $!"]).run(Call(), timeout_s=PATIENCE_S)
    eventually(lambda: not alive(int(answer.data)))  # nobody reads its pipe any more


def test_commands_run_side_by_side() -> None:
    """Each call gets its own answer."""
    model = Exec(["cat"])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: ask(model, Call(b"%d" % n)).data, range(40)))
    assert answers == [b"%d" % n for n in range(40)]


@pytest.mark.parametrize("text", ["exec:cat", "http://127.0.0.1:9/"])
def test_a_closed_model_runs_nothing(text: str) -> None:
    """A call after the end is refused as one that was cancelled."""
    model = parse_model(text)
    close(model)
    assert failure(model).code == "Shutdown"


# a service


def test_a_service_gets_the_call_and_its_answer_is_untouched(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model]
) -> None:
    """Path and query follow the address's own; headers of the connection stay behind, on both ways."""
    body = bytes(range(256))

    def reply(handler: Handler) -> None:
        handler.answer(body, ("Content-Type", "image/png"), ("Content-Encoding", "gzip"), ("X-Own", "é"))

    server = upstream(reply)
    call = Call(
        body[::-1],
        path="/v1/a%2Fb é",
        query=(("task", "1 2"), ("task", "ü")),
        headers={
            "Content-Type": "text/plain",
            "X-Trace": "1",
            "Connection": "X-Drop, close",
            "X-Drop": "1",
            "Host": "evil.test",
            "Transfer-Encoding": "chunked",
            "Content-Length": "7",
        },
    )
    answer = ask(model(f"http:{server.url}/base/?own=1"), call)
    assert (answer.data, answer.status) == (body, 200)
    assert answer.content_type == "image/png"
    assert {name for name, _ in answer.headers} == {
        "Server",
        "Date",
        "Content-Type",
        "Content-Encoding",
        "X-Own",
    }
    ((target, headers, sent),) = server.seen.requests
    assert target == "/base/v1/a%2Fb%20%C3%A9?own=1&task=1+2&task=%C3%BC"
    assert sent == body[::-1]
    assert headers == {
        "Host": server.url.removeprefix("http://"),
        "Accept-Encoding": "identity",
        "Content-Length": "256",
        "Content-Type": "text/plain",
        "X-Trace": "1",
    }


@pytest.mark.parametrize(
    ("url", "path", "target"),
    [
        ("", "", "/"),
        ("/p", "", "/p"),
        ("/p/", "", "/p/"),
        ("/p/", "x", "/p/x"),
        ("", "//evil.test/x", "/evil.test/x"),
    ],
)
def test_a_path_is_appended(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model], url: str, path: str, target: str
) -> None:
    """With one slash between, and always at the model's own server (which reads two slashes as one)."""
    server = upstream(lambda handler: handler.answer(b"ok"))
    assert ask(model(server.url + url), Call(path=path)).data == b"ok"
    assert server.seen.requests[0][0] == target


@pytest.mark.parametrize("path", ["/../admin", "/a/%2e%2E/b", "/./x", "/..\\x", "/a/.."])
def test_a_path_that_leads_out_is_not_sent(upstream: Callable[[Reply], Upstream], path: str) -> None:
    """What stands in an item cannot reach another part of the model's server."""
    server = upstream(lambda handler: handler.answer(b"ok"))
    assert failure(parse_model(server.url + "/only/here"), Call(path=path)).status == 400
    assert server.seen.requests == []


@pytest.mark.parametrize(
    "header", [("A", "b\r\nC: d"), ("A\r\nB", "c"), ("A", "\0"), ("ü", "x"), ("A B", "x")]
)
def test_a_header_that_would_break_the_request_is_not_sent(
    upstream: Callable[[Reply], Upstream], header: tuple[str, str]
) -> None:
    """No request is made of it."""
    server = upstream(lambda handler: handler.answer(b"ok"))
    assert failure(parse_model(server.url), Call(headers=dict([header]))).status == 400
    assert server.seen.requests == []


@pytest.mark.parametrize("status", [400, 404, 422, 450, 500, 503])
def test_a_refusal_is_a_failure_with_its_status(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model], status: int
) -> None:
    """Code and body are the model's; the reason is its last line when that is text."""
    kind = ("Content-Type", "text/plain; charset=utf-8")
    server = upstream(lambda handler: handler.answer(b"at fault\n", kind, status=status))
    error = failure(model(server.url))
    assert (error.message, error.code, error.status) == ("at fault", str(status), status)
    assert (error.data, error.answer.content_type) == (b"at fault\n", kind[1])
    json_server = upstream(lambda handler: handler.answer(b"{}", status=status))
    assert failure(model(json_server.url)).message == f"the model answered {status}"


def test_a_redirect_is_not_followed(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model]
) -> None:
    """Nobody else sees the data."""
    other = upstream(lambda handler: handler.answer(b"stolen"))
    server = upstream(lambda handler: handler.answer(b"", ("Location", other.url), status=307))
    error = failure(model(server.url))
    assert (error.message, error.status) == ("the model answered 307, which is not followed", 502)
    assert other.seen.requests == []


def test_connections_are_used_again(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model]
) -> None:
    """One after the other on one connection; after an answer that closes it, on a new one."""
    server = upstream(lambda handler: handler.answer(b"ok"))
    one = model(server.url)
    for _ in range(3):
        ask(one, Call())
    assert len(set(server.seen.ports)) == 1
    closing = upstream(lambda handler: handler.answer(b"ok", ("Connection", "close")))
    two = model(closing.url)
    for _ in range(3):
        assert ask(two, Call()).data == b"ok"
    assert len(set(closing.seen.ports)) == 3


def test_a_connection_that_the_server_closed_is_not_used_again(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model]
) -> None:
    """Without a word in the answer, as servers do with idle ones."""

    def reply(handler: Handler) -> None:
        handler.answer(b"ok")
        handler.connection.shutdown(socket.SHUT_WR)

    server = upstream(reply)
    one = model(server.url)
    for _ in range(5):
        assert ask(one, Call()).data == b"ok"


def test_services_are_called_side_by_side(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model]
) -> None:
    """Calls under way at once have connections of their own."""
    together = threading.Barrier(4)

    def reply(handler: Handler) -> None:
        together.wait(PATIENCE_S)
        handler.answer(handler.path.encode())

    server = upstream(reply)
    one = model(server.url)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: ask(one, Call(path=f"/{n}")).data, range(8)))
    assert answers == [b"/%d" % n for n in range(8)]
    assert len(set(server.seen.ports)) == 4


def raw(data: bytes, *, hold: threading.Event | None = None) -> Reply:
    """These bytes, then the end of the connection, or silence."""

    def reply(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.wfile.flush()
        if hold is not None:
            hold.wait(PATIENCE_S)
        handler.close_connection = True

    return reply


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the connection to the model was lost"),
        (b"hello\r\n\r\n", "the model's answer is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "the answer broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhal", "the answer broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "the answer is above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1001, "the answer is above 1000 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", "the model's answer is no HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the model answered 101, which is not followed"),
    ],
)
def test_an_answer_that_is_none_is_502(
    upstream: Callable[[Reply], Upstream], data: bytes, reason: str
) -> None:
    """Lost, broken off, too long, or no HTTP."""
    model = Http(upstream(raw(data)).url, max_answer=1000)
    error = failure(model)
    assert (error.message, error.status, error.code) == (reason, 502, "502")
    close(model)


def test_nobody_there_is_502() -> None:
    """Nothing was sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    model = parse_model(f"http://127.0.0.1:{port}/")
    error = failure(model)
    close(model)
    assert (error.message, error.status) == ("the model cannot be reached: connection refused", 502)
    assert error.busy


@pytest.mark.parametrize(
    ("status", "headers", "busy", "asked_s"),
    [
        (429, [], True, None),
        (450, [], True, None),
        (502, [], True, None),
        (503, [("Retry-After", "7")], True, 7.0),
        (504, [], True, None),
        (500, [("Retry-After", "2")], True, 2.0),
        (500, [], False, None),
        (404, [], False, None),
        (422, [("Retry-After", "soon")], False, None),
    ],
)
def test_a_service_says_that_it_is_busy(
    upstream: Callable[[Reply], Upstream],
    status: int,
    headers: list[tuple[str, str]],
    busy: bool,
    asked_s: float | None,
) -> None:
    model = Http(upstream(lambda handler: handler.answer(b"", *headers, status=status)).url)
    error = failure(model)
    assert (error.status, error.busy, error.retry_after_s) == (status, busy, asked_s)
    close(model)


def test_a_call_that_may_have_been_seen_is_a_failure(upstream: Callable[[Reply], Upstream]) -> None:
    """A model that the call killed is not busy."""
    model = Http(upstream(raw(b"")).url)
    assert not failure(model).busy
    close(model)


def test_a_command_says_that_it_is_busy() -> None:
    error = failure(Exec(["sh", "-c", "echo loading >&2; exit 75"]))
    assert (error.message, error.status, error.busy) == ("loading", 503, True)
    assert not failure(Exec(["sh", "-c", "exit 74"])).busy


@pytest.mark.skipif(sys.platform != "linux", reason="counts what is open in /proc")
@pytest.mark.parametrize(("kind", "rooms"), [("a command", 10), ("a service", 1)])
def test_a_process_without_room_for_more_files_is_busy(kind: str, rooms: int) -> None:
    """Wherever on the way a file is one too many. Nothing stays open."""
    model: Model = Exec(["cat"]) if kind == "a command" else Http("http://127.0.0.1:9/")
    if kind == "a command":
        ask(model, Call(b"x"))
    taken: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    failures: list[tuple[bool, str]] = []
    for room in range(rooms):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 20, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for fd in taken[:room]:
                os.close(fd)
            del taken[:room]
            try:
                ask(model, Call(b"x"), timeout_s=5.0)
            except ModelFailed as error:
                failures.append((error.busy, error.message))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in taken:
                os.close(fd)
            taken.clear()
    close(model)
    assert failures
    assert all(busy for busy, _ in failures), failures
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_time_limit_is_over_all(upstream: Callable[[Reply], Upstream]) -> None:
    """A server that drips its answer gains no time by it, whether in its headers or its body."""
    for head in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"):
        over = threading.Event()

        def drip(handler: Handler, head: bytes = head, over: threading.Event = over) -> None:
            handler.wfile.write(head)
            while not over.wait(0.01):
                handler.wfile.write(b"x")
            handler.close_connection = True

        model = parse_model(upstream(drip).url)
        error = failure(model, timeout_s=0.2)
        over.set()
        close(model)
        assert (error.message, error.status) == ("no answer within 0.2 s", 504)


def test_a_call_to_a_service_is_cancelled(upstream: Callable[[Reply], Upstream]) -> None:
    """It ends at once, as Shutdown, and the model can be used again."""
    hold = threading.Event()
    server = upstream(
        lambda handler: raw(b"", hold=hold)(handler) if handler.path == "/" else handler.answer(b"ok")
    )
    model = parse_model(server.url)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(failure, model)
        eventually(lambda: len(server.seen.requests) == 1)
        loop().call(model.cancel)
        error = call.result(PATIENCE_S)
    assert (error.code, error.status) == ("Shutdown", 503)
    assert ask(model, Call(path="/again")).data == b"ok"
    hold.set()
    close(model)


def test_no_proxy_is_asked(
    upstream: Callable[[Reply], Upstream], model: Callable[[str], Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says."""
    proxy = upstream(lambda handler: handler.answer(b"proxied"))
    server = upstream(lambda handler: handler.answer(b"direct"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    assert ask(model(server.url), Call()).data == b"direct"


def test_a_model_behind_a_private_ca_is_trusted(
    private_ca: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says no more than that it is a CA, which Python 3.13 refuses by default."""
    ca, certificate = private_ca
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    with secured(certificate) as server:
        model = Http(f"https://127.0.0.1:{server.port}/")
        assert ask(model, Call(b"x"), timeout_s=30).data == b"safe"
        close(model)
