"""A service behind HTTP that answers, over connections that are kept and used again.

It gets the call at its own address alone: neither a redirect nor anything in the call leads elsewhere, and no proxy is
asked.
"""

from __future__ import annotations

import http.client
import io
import re
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlencode, urlsplit

from easq.errors import UsageError
from easq.models.base import (
    DEFAULT_TIMEOUT_S,
    MAX_ANSWER,
    NO_ROOM,
    Answer,
    Call,
    ModelFailed,
    last_line,
)
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.operations import SHUTDOWN
from easq.protocol.replies import Reply, retry_after_s

#: read and written at a time, in bytes
_PIECE = 64 * 1024
#: servers drop idle connections, uvicorn after 5 s: one idle for longer than this is not used again, in seconds
MAX_IDLE_S = 2.0
#: statuses of a busy service; 450 is EAS's full queue
_BUSY = frozenset((429, 450, 502, 503, 504))
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")
_URL_SAFE = "/%:@!$&'()*+,;=~"


class Http:
    """Calls a service at one address, over connections that are kept and used again."""

    waits = True

    def __init__(self, url: str, *, max_answer: int = MAX_ANSWER) -> None:
        """Raises UsageError for what is no plain http or https address."""
        self._address = _address(url)
        self.max_answer = max_answer
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
        target, headers = self._target(call.path, urlencode(call.query)), sent_headers(call)
        deadline = time.monotonic() + timeout_s
        with _translated(timeout_s):
            try:
                answer = self._exchange(call, target, headers, deadline, fresh=False)
            except _Stale:
                answer = self._exchange(call, target, headers, deadline, fresh=True)
        return judged(answer)

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
                answer = _read(response, self.max_answer)
            keep = connection.sock is not None
        except (OSError, http.client.HTTPException, _Unconnected, ModelFailed) as error:
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

    def url(self, path: str, query: str) -> str:
        """Return the URL of a call: the model's address, followed by `path` and `query`, both percent-encoded already.

        Raises ModelFailed for a path that leads out of the model's address.
        """
        return f"{self._address.scheme}://{self._address.netloc}{self._target(path, query)}"

    def _target(self, path: str, query: str) -> str:
        """The request target: the address's own path and query, followed by the call's."""
        if any(part in (".", "..") for part in unquote(path).replace("\\", "/").split("/")):
            raise ModelFailed("the path leads out of the model's address", status=400)
        own = self._address.path.rstrip("/") if path else self._address.path
        slash = "/" if path and not path.startswith("/") else ""
        queries = "&".join(filter(None, (self._address.query, quote(query, safe=_URL_SAFE + "?"))))
        return "?".join(filter(None, (quote(own + slash + path, safe=_URL_SAFE) or "/", queries)))

    def _take(self, *, fresh: bool) -> _Deadlined:
        """A connection of ours alone: the one that was last used, while it seems alive, or a new one."""
        oldest = time.monotonic() - MAX_IDLE_S
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


class _Unconnected(Exception):
    """No connection could be opened: the service has not seen the call."""


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
        try:
            super().connect()
        except OSError as error:
            if isinstance(error, ssl.SSLError | TimeoutError) or self.aborted:
                raise
            reason = "connection refused" if isinstance(error, ConnectionRefusedError) else error.strerror
            raise _Unconnected(reason or str(error)) from error
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
    if address.scheme != "https":
        return _Deadlined(address.hostname or "", address.port)
    context = ssl.create_default_context()
    # as in the client: Python 3.13 sets this flag, and then refuses private CAs without key usage; curl accepts them
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return _Tls(address.hostname or "", address.port, context=context)


def _address(url: str) -> SplitResult:
    """`url` taken apart. Raises UsageError for what is no plain http or https address."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        shown = re.split("[?#]", url.rpartition("@")[2], maxsplit=1)[0]
        raise UsageError(
            f"model {shown!r}: no http or https address", hint="write it as http://HOST:PORT/PATH"
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise UsageError("model: the url holds a user, a password or a fragment", hint="leave it out")
    return parts


def sent_headers(call: Call) -> dict[str, bytes]:
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


def judged(answer: Answer) -> Answer:
    """The answer of a success. Raises ModelFailed for all others."""
    if 200 <= answer.status < 300:
        return answer
    if not 400 <= answer.status < 600:
        raise ModelFailed(f"the model answered {answer.status}, which is not followed", status=502)
    reason = last_line(answer.data) if answer.content_type.startswith("text/plain") else ""
    reason = reason or f"the model answered {answer.status}"
    asked_s = retry_after_s(Reply(answer.status, dict(answer.headers)))
    busy = asked_s is not None or answer.status in _BUSY
    raise ModelFailed(reason, status=answer.status, answer=answer, busy=busy, retry_after_s=asked_s)


@contextmanager
def _translated(timeout_s: float) -> Iterator[None]:
    """What goes wrong on a connection is a ModelFailed."""
    try:
        yield
    except TimeoutError as error:
        raise ModelFailed(f"no answer within {timeout_s:g} s", status=504) from error
    except _Unconnected as error:
        raise ModelFailed(f"the model cannot be reached: {error}", status=502, busy=True) from error
    except http.client.IncompleteRead as error:
        raise ModelFailed("the answer broke off", status=502) from error
    except (http.client.RemoteDisconnected, ConnectionError) as error:
        raise ModelFailed("the connection to the model was lost", status=502) from error
    except http.client.HTTPException as error:
        raise ModelFailed("the model's answer is no HTTP", status=502) from error
    except OSError as error:
        reason = f"the model cannot be reached: {error.strerror or error}"
        raise ModelFailed(reason, status=502, busy=error.errno in NO_ROOM) from error
