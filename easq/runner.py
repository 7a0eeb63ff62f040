"""Run a model: echo, a command, or a service behind HTTP.

    Model.run(Call) -> Answer, or ModelFailed with what is known of the failure

A model is used from many threads at once; each call has a time limit of its own, and `cancel` ends whatever runs.
A command gets the data on stdin and answers on stdout; it is never run by a shell, leads a process group of its own,
and sees no token of ours. A service gets the call at its own address alone: neither a redirect nor anything in the
call leads elsewhere, and no proxy is asked.
"""

from __future__ import annotations

import errno
import http.client
import io
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from easq.errors import ChildFailed, ServerError, UsageError
from easq.wire.hops import end_to_end

#: a call may take so long unless it is told otherwise, in seconds
DEFAULT_TIMEOUT_S = 60.0
#: an answer has at most so many bytes
MAX_ANSWER = 64 * 1024**2
#: the code of a failure that has no HTTP status
ENGINE_ERROR = "EngineError"
#: the code of a call that was cancelled because we stop: as a negative it is no failed delivery
SHUTDOWN = "Shutdown"

#: never in the environment of a command
_SECRETS = ("EASQ_TOKEN", "EASQ_TOKEN_FILE")
#: of what a command says on stderr, so much is kept in bytes; a reason has so many characters
_MAX_STDERR, _MAX_REASON = 64 * 1024, 300
#: read and written at a time, in bytes
_PIECE = 64 * 1024
#: a command whose children keep its stdout open is found to have ended after so many seconds
_POLL_S = 0.05
#: a command that closed its output is about to end: so often is looked whether it has, in seconds
_ENDING_S = 0.002
#: a pipe holds 64 KiB, or up to 1 MiB where it was told to
_MAX_PIECES_LEFT = 32
#: servers drop idle connections, uvicorn after 5 s: one idle for longer than this is not used again, in seconds
_MAX_IDLE_S = 2.0
#: the system has no room for one more process, or this call's environment is too large: no fault of the command
_NOT_NOW = {errno.E2BIG, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_URL_SAFE = "/%:@!$&'()*+,;=~"
_HINT = "write it as echo, exec:COMMAND or http://HOST:PORT/PATH"


@dataclass(frozen=True, slots=True)
class Call:
    """One inference: the data, and what came with it.

    `path` is as it stands in a URL (in percent encoding), from the first `/`; it follows the model's own. A command
    finds path, query and content type in its environment as EASQ_PATH, EASQ_QUERY and EASQ_CONTENT_TYPE, beside
    what `environ` names.
    """

    data: bytes = b""
    method: str = "POST"
    path: str = ""
    query: Sequence[tuple[str, str]] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, its bytes untouched. Headers are those of the content, not of the connection."""

    data: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = ()

    @property
    def content_type(self) -> str:
        """What the model says its answer is; empty when it does not say."""
        return next((value for name, value in self.headers if name.lower() == "content-type"), "")


class ModelFailed(ServerError):
    """The model gave no result.

    `status` is what a caller over HTTP is answered: the model's own 4xx or 5xx, 500 for a command, 502 without a
    usable answer, 504 without one in time, 503 when it was cancelled. `code` is the same as text, or a word:
    `EngineError`, `Shutdown`. `data` is what the model said, if anything.
    """

    kind = "model_failed"

    def __init__(self, reason: str, *, status: int, code: str = "", answer: Answer | None = None) -> None:
        super().__init__(reason, status=status)
        self.code = code or str(status)
        self.answer = answer or Answer(b"", status)

    @property
    def data(self) -> bytes:
        """The body of a refusal, or what a command had written; empty when there was nothing."""
        return self.answer.data


class Model(Protocol):
    """Something that answers calls, from many threads at once."""

    #: whether a call waits for something, so that an event loop leaves it to a thread
    waits: bool

    def check(self) -> None:
        """Raises ChildFailed for a command that is not there, before there is a call."""

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """The answer, within `timeout_s` in total.

        Raises ModelFailed; ChildFailed when the command cannot be started at all.
        """

    def cancel(self) -> None:
        """Calls under way fail with the code `Shutdown`; a command is killed with all of its process group."""

    def close(self) -> None:
        """Calls under way are cancelled, connections closed; there are no calls after it."""


def parse_model(text: str) -> Model:
    """The model that `text` names: `echo`, `exec:CMD ARG...` (split as a shell would, run without one), or
    `http:URL`, also as the plain URL.

    Raises UsageError.
    """
    kind, colon, rest = text.partition(":")
    if text == "echo":
        return Echo()
    if kind == "exec" and colon:
        try:
            argv = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"model {text!r}: {str(error).lower()}", hint=_HINT) from error
        if not argv or not argv[0]:
            raise UsageError(f"model {text!r}: no command", hint="write it as exec:COMMAND ARG...")
        return Exec(argv)
    if kind in ("http", "https") and colon:
        return Http(text if rest.startswith("//") else rest)
    raise UsageError(f"model {text!r}: not known", hint=_HINT)


class Echo:
    """Answers each call with its own data, as the type it came as."""

    waits = False

    def check(self) -> None:
        """There is nothing that could be missing."""

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:  # noqa: ARG002
        """The data of the call."""
        return Answer(
            call.data, headers=(("Content-Type", _content_type(call)),) if _content_type(call) else ()
        )

    def cancel(self) -> None:
        """Nothing is ever under way."""

    def close(self) -> None:
        """Nothing is held."""


class Exec:
    """Runs a command for each call: data on stdin, answer on stdout.

    A status other than 0 is a failure, and the last line on stderr its reason. What the command leaves running in
    the background lives on, and is not waited for.
    """

    waits = True

    def __init__(self, argv: Sequence[str], *, max_answer: int = MAX_ANSWER) -> None:
        self._argv = tuple(argv)
        self._max_answer = max_answer
        self._lock = threading.Lock()
        self._running: dict[subprocess.Popen[bytes], bool] = {}  # -> whether it was cancelled
        self._closed = False

    def check(self) -> None:
        """Raises ChildFailed unless the command is there and may be run."""
        if shutil.which(self._argv[0]) is None:
            raise ChildFailed(f"{self._argv[0]} cannot be started: no such command")

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """What the command wrote on stdout; see `Model.run`."""
        deadline = time.monotonic() + timeout_s
        process = self._start(call)
        pipes = _Pipes(process, call.data, self._max_answer)
        try:
            code = self._finish(process, pipes, deadline)
        finally:
            with self._lock:
                _kill_group(process)
                cancelled = self._running.pop(process) or self._closed
            pipes.close()
            process.wait()
        answer = Answer(bytes(pipes.out))
        if pipes.is_full:
            raise ModelFailed(f"the answer is above {self._max_answer} bytes", status=502)
        if code is None:
            raise ModelFailed(f"no answer within {timeout_s:g} s", status=504)
        if code != 0 and cancelled:
            raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN)
        if code != 0:
            reason = _last_line(bytes(pipes.err)) or _ended_how(code)
            raise ModelFailed(reason, status=500, code=ENGINE_ERROR, answer=answer)
        return answer

    def cancel(self) -> None:
        """The commands under way are killed, each with its process group."""
        with self._lock:
            for process in self._running:
                self._running[process] = True
                _kill_group(process)

    def close(self) -> None:
        """As `cancel`; none is started after it."""
        with self._lock:
            self._closed = True
        self.cancel()

    def _start(self, call: Call) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        environ = _environ(call)
        with self._lock:
            if self._closed:
                raise ModelFailed("the model is closed", status=503, code=SHUTDOWN)
        try:
            process = subprocess.Popen(
                self._argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=environ,
                start_new_session=True,
                bufsize=0,
            )
        except OSError as error:
            reason = f"{self._argv[0]} cannot be started: {error.strerror}"
            if error.errno in _NOT_NOW:
                raise ModelFailed(reason, status=500, code=ENGINE_ERROR) from error
            raise ChildFailed(reason) from error
        except ValueError as error:  # a NUL in the environment
            raise ModelFailed(f"{self._argv[0]} cannot be started: {error}", status=400) from error
        with self._lock:
            self._running[process] = False
            if self._closed:
                _kill_group(process)
        return process

    def _finish(self, process: subprocess.Popen[bytes], pipes: _Pipes, deadline: float) -> int | None:
        """The command's status once it ended and all of its output was read; None at the deadline."""
        while (left_s := deadline - time.monotonic()) > 0 and not pipes.is_full:
            with self._lock:  # a process that was waited for must not be killed any more: its number is free
                code = process.poll()
            if code is not None:
                pipes.drain()
                return code
            if pipes.is_open:
                pipes.move(min(left_s, _POLL_S))
            else:
                time.sleep(min(left_s, _ENDING_S))
        return None


class Http:
    """Calls a service at one address, over connections that are kept and used again."""

    waits = True

    def __init__(self, url: str, *, max_answer: int = MAX_ANSWER) -> None:
        """Raises UsageError for what is no plain http or https address."""
        self._address = _address(url)
        self._max_answer = max_answer
        self._lock = threading.Lock()
        self._free: list[tuple[float, _Deadlined]] = []  # since when idle
        self._busy: set[_Deadlined] = set()
        self._closed = False

    def check(self) -> None:
        """The service may come later than we do."""

    def run(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:
        """The service's answer with 2xx; see `Model.run`. A call that failed may have taken effect.

        It is sent once, or, where a connection from before ended without a word, again on a new one: the server
        was about to close it.
        """
        target, headers = self._target(call), _sent_headers(call)
        deadline = time.monotonic() + timeout_s
        with _translated(timeout_s):
            try:
                answer = self._exchange(call, target, headers, deadline, fresh=False)
            except _Stale:
                answer = self._exchange(call, target, headers, deadline, fresh=True)
        return _judged(answer)

    def _exchange(
        self, call: Call, target: str, headers: Mapping[str, bytes], deadline: float, *, fresh: bool
    ) -> Answer:
        connection = self._take(fresh=fresh)
        was_used = connection.sock is not None
        connection.deadline = deadline
        keep = False
        try:
            try:
                connection.request(call.method, target, call.data, headers)
                response = connection.getresponse()
            except (BrokenPipeError, ConnectionResetError) as error:  # the end without a byte is among these
                if was_used and not connection.aborted:
                    raise _Stale from error
                raise
            with response:
                answer = _read(response, self._max_answer)
            keep = connection.sock is not None
        except (OSError, http.client.HTTPException, ModelFailed) as error:
            if connection.aborted:
                raise ModelFailed("the call was cancelled", status=503, code=SHUTDOWN) from error
            raise
        finally:
            self._give_back(connection, keep=keep)
        return answer

    def cancel(self) -> None:
        """Calls under way have lost their connection."""
        with self._lock:
            for connection in self._busy:
                connection.abort()

    def close(self) -> None:
        """As `cancel`; no connection is open or opened."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for _, connection in free:
            connection.close()
        self.cancel()

    def _target(self, call: Call) -> str:
        """The request target: the address's own path and query, followed by the call's."""
        if any(part in (".", "..") for part in unquote(call.path).replace("\\", "/").split("/")):
            raise ModelFailed("the path leads out of the model's address", status=400)
        own = self._address.path.rstrip("/") if call.path else self._address.path
        slash = "/" if call.path and not call.path.startswith("/") else ""
        queries = filter(None, (self._address.query, urlencode(call.query)))
        path = quote(own + slash + call.path, safe=_URL_SAFE) or "/"
        return "?".join(filter(None, (path, "&".join(queries))))

    def _take(self, *, fresh: bool) -> _Deadlined:
        """A connection of ours alone: the one that was last used, while it seems alive, or a new one."""
        oldest = time.monotonic() - _MAX_IDLE_S
        stale = []
        with self._lock:
            if self._closed:
                raise ModelFailed("the model is closed", status=503, code=SHUTDOWN)
            found = None
            while self._free and found is None and not fresh:
                since, connection = self._free.pop()
                if since > oldest and not connection.has_ended():
                    found = connection
                else:
                    stale.append(connection)
            taken = found or _connection(self._address)
            self._busy.add(taken)
        for connection in stale:
            connection.close()
        return taken

    def _give_back(self, connection: _Deadlined, *, keep: bool) -> None:
        with self._lock:
            self._busy.remove(connection)
            keep = keep and not connection.aborted and not self._closed
            if keep:
                self._free.append((time.monotonic(), connection))
        if not keep:
            connection.close()


class _Stale(Exception):
    """A connection that was used before ended without an answer."""


class _Timed:
    """The socket of a connection: whatever waits on it, waits until the deadline of the connection's call."""

    def __init__(self, plain: socket.socket, left_s: Callable[[], float]) -> None:
        self.plain, self.left_s = plain, left_s

    def sendall(self, data: bytes) -> None:
        self.plain.settimeout(self.left_s())
        self.plain.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002
        return io.BufferedReader(_TimedReader(self))

    def fileno(self) -> int:
        return self.plain.fileno()

    def close(self) -> None:
        self.plain.close()


class _TimedReader(io.RawIOBase):
    """What comes on a socket; a server that drips its answer gains no time by it."""

    def __init__(self, timed: _Timed) -> None:
        # it keeps the socket open for an answer that is read after the connection let go of it
        self._timed, self._raw = timed, timed.plain.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._timed.plain.settimeout(self._timed.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Deadlined(http.client.HTTPConnection):
    """Everything on it ends at `deadline`, which each call sets anew; another thread may abort it."""

    deadline = 0.0
    aborted = False

    def left_s(self) -> float:
        """Seconds until the deadline. Raises TimeoutError after it, and ConnectionAbortedError once aborted."""
        if self.aborted:
            raise ConnectionAbortedError("aborted")
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def connect(self) -> None:
        self.timeout = self.left_s()
        super().connect()
        self.sock = _Timed(self.sock, self.left_s)
        self.left_s()

    def abort(self) -> None:
        """Whoever waits on it fails."""
        self.aborted = True
        if isinstance(timed := self.sock, _Timed):
            try:
                socket.socket.shutdown(timed.plain, socket.SHUT_RDWR)
            except OSError:
                pass

    def has_ended(self) -> bool:
        """Whether the server closed it while it was idle, or said something that nobody asked for."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.sock.fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))


class _Tls(_Deadlined, http.client.HTTPSConnection):
    """The same over TLS, with certificate and name checked."""


def _connection(address: SplitResult) -> _Deadlined:
    kind = _Tls if address.scheme == "https" else _Deadlined
    return kind(address.hostname or "", address.port)


def _address(url: str) -> SplitResult:
    """`url` taken apart. Raises UsageError for what is no plain http or https address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        shown = url.rpartition("@")[2]
        raise UsageError(
            f"model {shown!r}: no http or https address", hint="write it as http://HOST:PORT/PATH"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UsageError("model: the url holds a user, a password or a fragment", hint="leave it out")
    return parts


def _sent_headers(call: Call) -> dict[str, bytes]:
    """The call's headers but for those of its connection. They are sent as UTF-8.

    Raises ModelFailed for one that would break the request.
    """
    sent: dict[str, bytes] = {}
    for name, value in end_to_end(call.headers.items()):
        if not _NAME.fullmatch(name) or {"\r", "\n", "\0"} & set(value):
            raise ModelFailed(f"the header {name[:40]!r} cannot be sent", status=400)
        sent[name] = value.strip().encode("utf-8", "surrogateescape")
    return sent


def _read(response: http.client.HTTPResponse, limit: int) -> Answer:
    """The answer, whole. Raises ModelFailed for one above `limit` bytes, and for one that broke off."""
    too_large = ModelFailed(f"the answer is above {limit} bytes", status=502)
    if (response.length or 0) > limit:
        raise too_large
    data = bytearray()
    while piece := response.read(_PIECE):
        data += piece
        if len(data) > limit:
            raise too_large
    if response.length:
        raise ModelFailed("the answer broke off", status=502)
    return Answer(bytes(data), response.status, end_to_end(response.getheaders()))


def _judged(answer: Answer) -> Answer:
    """The answer of a success. Raises ModelFailed for all others."""
    if 200 <= answer.status < 300:
        return answer
    if not 400 <= answer.status < 600:
        raise ModelFailed(f"the model answered {answer.status}, which is not followed", status=502)
    reason = _last_line(answer.data) if answer.content_type.startswith("text/plain") else ""
    reason = reason or f"the model answered {answer.status}"
    raise ModelFailed(reason, status=answer.status, answer=answer)


@contextmanager
def _translated(timeout_s: float) -> Iterator[None]:
    """What goes wrong on a connection is a ModelFailed."""
    try:
        yield
    except TimeoutError as error:
        raise ModelFailed(f"no answer within {timeout_s:g} s", status=504) from error
    except ConnectionRefusedError as error:
        raise ModelFailed("the model cannot be reached: connection refused", status=502) from error
    except http.client.IncompleteRead as error:
        raise ModelFailed("the answer broke off", status=502) from error
    except (http.client.RemoteDisconnected, ConnectionError) as error:
        raise ModelFailed("the connection to the model was lost", status=502) from error
    except http.client.HTTPException as error:
        raise ModelFailed("the model's answer is no HTTP", status=502) from error
    except OSError as error:
        raise ModelFailed(f"the model cannot be reached: {error.strerror or error}", status=502) from error


class _Pipes:
    """The three pipes of a process: what is to be said goes in, what it says is kept, up to a limit."""

    def __init__(self, process: subprocess.Popen[bytes], data: bytes, limit: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._unsent = memoryview(data)
        self._limit = limit
        self.out, self.err = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        self._selector.register(process.stdout, selectors.EVENT_READ, self.out)
        self._selector.register(process.stderr, selectors.EVENT_READ, self.err)
        if data:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()

    @property
    def is_open(self) -> bool:
        """Whether anything may still come."""
        return bool(self._selector.get_map())

    @property
    def is_full(self) -> bool:
        """Whether more came on stdout than may."""
        return len(self.out) > self._limit

    def move(self, wait_s: float) -> bool:
        """A piece went through each pipe that was ready, or became so within `wait_s`; whether any was."""
        ready = self._selector.select(wait_s) if self.is_open else []
        for key, _ in ready:
            if key.data is None:
                self._write(key.fd)
            elif piece := os.read(key.fd, _PIECE):
                key.data.extend(piece)
            else:
                self._selector.unregister(key.fileobj)
        del self.err[:-_MAX_STDERR]
        return bool(ready)

    def drain(self) -> None:
        """What the process left in its pipes was read; not all that others, who hold them too, may add for ever."""
        for _ in range(_MAX_PIECES_LEFT):
            if self.is_full or not self.move(0.0):
                break

    def _write(self, fd: int) -> None:
        assert self._process.stdin is not None
        try:
            self._unsent = self._unsent[os.write(fd, self._unsent[:_PIECE]) :]
        except BrokenPipeError:  # it wants no more, which is its own business
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._selector.unregister(self._process.stdin)
            self._process.stdin.close()

    def close(self) -> None:
        """All three are closed."""
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """The process, unless it was waited for, and all of its group have got SIGKILL."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def _environ(call: Call) -> dict[str, str]:
    """Our environment without what is secret, and what the call gives."""
    ours = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    given = {
        "EASQ_PATH": call.path,
        "EASQ_QUERY": urlencode(call.query),
        "EASQ_CONTENT_TYPE": _content_type(call),
    }
    return ours | {name: value for name, value in given.items() if value} | dict(call.environ)


def _content_type(call: Call) -> str:
    return next((value for name, value in call.headers.items() if name.lower() == "content-type"), "")


def _last_line(said: bytes) -> str:
    """The last line that is not blank, for people: printable, of bounded length."""
    lines = said[-_MAX_STDERR:].decode("utf-8", "replace").split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")[:_MAX_REASON]
    return "".join(letter if letter.isprintable() else " " for letter in line)


def _ended_how(code: int) -> str:
    return f"exit status {code}" if code > 0 else f"killed by signal {-code}"
