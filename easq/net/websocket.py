"""One WebSocket connection, with websocket-client: handshake, messages, pings and close. Raises errors of easq."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

import websocket

from easq.errors import EasqError, NotAQueueService, Unreachable
from easq.net.connection import open_connection
from easq.net.failures import Closed, Unanswered, lost, not_upgraded
from easq.net.settings import NetworkSettings
from easq.net.trace import Tracer, hidden, hide_in, secrets_of
from easq.net.url import proxy_for, shown
from easq.protocol.replies import Reply, read_error

#: longest single wait for bytes, in seconds; pings and stops are delayed by up to this time
TICK_S = 0.1
#: limit of the answer to a handshake, in bytes
_MAX_HANDSHAKE_BYTES = 256 * 1024
#: bytes of a ping or pong in addition to its payload
_CONTROL_HEAD = 2


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the other side."""

    data: bytes
    text: bool


class WebSocket:
    """A connection after its handshake. One thread reads and writes, since a TLS connection takes only one."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        settings: NetworkSettings,
        *,
        query: Sequence[tuple[str, str]] = (),
        max_message_bytes: int,
        ping_every_s: float,
        silent_after_s: float | None = None,
        otherwise: str = "",
    ) -> None:
        """Connect to `url`, and complete the handshake with `headers` and no others.

        Raises Unconnected if nothing of the request was sent, and the error of an answer other than 101.

        Args:
            url: http and https stand for ws and wss.
            ping_every_s: seconds between two pings.
            silent_after_s: time without a byte after which the connection is lost, in seconds; None for no limit.
            otherwise: added to the hint if a proxy seems not to support WebSocket.
        """
        self._address = shown(url)
        self._max_bytes = max_message_bytes
        self._ping_every_s, self._silent_after_s = ping_every_s, silent_after_s
        secrets = secrets_of(headers, proxy_for(url, settings.environ))
        tracer = Tracer(settings.trace, secrets)
        tracer.sent("GET", url, query, headers)
        began = time.monotonic()
        try:
            self._connection = open_connection(url, settings)
            self._ws = _ClosingWebSocket(skip_utf8_validation=True)
            self._handshake(url, urlencode(query), headers, settings, secrets, otherwise)
        except EasqError as error:
            tracer.answer(hidden(error, secrets).message, time.monotonic() - began)
            raise
        tracer.answer("101", time.monotonic() - began)
        self._tracer = tracer
        self._pinged_at = time.monotonic()
        self._heard_at, self._looked_s = self._pinged_at, 0.0
        self._connection.budget = max_message_bytes

    def read(self, within_s: float = TICK_S) -> Message | None:
        """Return the next message; None if none was complete within `within_s` seconds.

        Raises Closed, Unreachable for a lost connection, and NotAQueueService for a violation of the protocol.
        """
        self._ping()
        self._connection.until = time.monotonic() + within_s  # a message may come byte by byte
        try:
            self._ws.settimeout(within_s)
            opcode, frame = self._ws.recv_data_frame(control_frame=True)
        except websocket.WebSocketTimeoutException:
            self._check_silence(within_s)
            return None
        except websocket.WebSocketConnectionClosedException as error:
            raise Unreachable(f"connection to {self._address} lost") from error
        except (websocket.WebSocketException, ValueError) as error:
            raise NotAQueueService(f"{self._address} breaks the WebSocket protocol: {error}") from error
        except OSError as error:
            raise Unreachable(f"connection to {self._address} lost") from error
        finally:
            self._connection.until = None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            raise self._closed(frame.data)
        if opcode not in (websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY):
            # control frames between the fragments of a message: only their own size is added to the budget, so that
            # the limit of the message stays
            self._connection.budget += len(frame.data) + _CONTROL_HEAD
            return None
        self._connection.budget = self._max_bytes
        self._tracer.body("<", frame.data)
        return Message(frame.data, opcode == websocket.ABNF.OPCODE_TEXT)

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte came after the last message was sent, on the monotonic clock."""
        return self._connection.first_byte_at

    def send(self, data: bytes, *, text: bool, within_s: float) -> None:
        """Send `data` as one message. Raises Unreachable unless all of it was sent in time."""
        self._tracer.body(">", data)
        opcode = websocket.ABNF.OPCODE_TEXT if text else websocket.ABNF.OPCODE_BINARY
        self._connection.until = time.monotonic() + within_s
        self._connection.first_byte_at = None
        self._ws.settimeout(within_s)
        try:
            self._ws.send(data, opcode)
        except (OSError, websocket.WebSocketException) as error:
            raise lost(self._address, "the message went out") from error
        finally:
            self._connection.until = None

    def idle(self) -> None:
        """Send pings while the caller does not read. This time does not count as silence of the server."""
        self._ping()
        self._connection.heard_at = time.monotonic()

    def wake(self) -> None:
        """End a `read` that waits in another thread, by dropping the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self, within_s: float = 1.0) -> None:
        """Close the connection; the other side has `within_s` seconds to answer the close frame."""
        self._connection.until = time.monotonic() + within_s
        with contextlib.suppress(OSError, websocket.WebSocketException, ValueError, EasqError):
            self._ws.close(websocket.STATUS_NORMAL, timeout=within_s)
        self._connection.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._connection.close()

    def _handshake(
        self,
        url: str,
        query: str,
        headers: Mapping[str, str],
        settings: NetworkSettings,
        secrets: list[str],
        otherwise: str,
    ) -> None:
        # the library adds Upgrade itself
        lines = [f"{name}: {value}" for name, value in headers.items() if name.lower() != "upgrade"]
        self._connection.until = time.monotonic() + settings.request_timeout_s
        self._connection.budget = _MAX_HANDSHAKE_BYTES
        target = url.replace("http", "ws", 1) if url.startswith("http") else url
        if query:
            target = f"{target}?{query}"
        error: Exception | None = None
        try:
            self._ws.connect(
                target, socket=self._connection, header=lines, suppress_origin=True, redirect_limit=0
            )
        except Exception as raised:
            error = raised
        failure = self._refusal(error, settings, secrets, otherwise) or error
        if failure is not None:
            self._connection.close()
            raise failure from (error if failure is not error else error.__cause__)
        self._connection.until = None

    def _refusal(
        self, error: Exception | None, settings: NetworkSettings, secrets: list[str], otherwise: str
    ) -> EasqError | None:
        """Return the EasqError for a failed handshake; None if it succeeded, or if `error` is an EasqError."""
        shaken = self._ws.handshake_response
        if (
            shaken is not None and shaken.status != 101
        ):  # a redirect: the library raises, or goes on, by its version
            return read_error(hide_in(Reply(shaken.status, shaken.headers), secrets))
        if isinstance(error, websocket.WebSocketBadStatusException) and error.status_code:
            reply = Reply(error.status_code, error.resp_headers or {}, error.resp_body or b"")
            return not_upgraded(hide_in(reply, secrets), self._address, otherwise)
        if isinstance(error, websocket.WebSocketTimeoutException):
            return Unanswered(f"{self._address} did not answer within {settings.request_timeout_s:g} s")
        if isinstance(error, websocket.WebSocketConnectionClosedException | OSError):
            return lost(self._address, "the handshake was done")
        if isinstance(error, websocket.WebSocketException | ValueError | LookupError):
            # the library raises the latter two on an answer that is not HTTP
            return NotAQueueService(
                f"{self._address} does not answer as a WebSocket service: {str(error)[:200]!a}",
                hint="check host and port, and whether it speaks TLS",
            )
        return None

    def _closed(self, data: bytes) -> Closed:
        code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
        return Closed(self._address, code, data[2:].decode(errors="replace"))

    def _check_silence(self, looked_s: float) -> None:
        """Add up the duration of reads without a byte. Raises Unreachable above `silent_after_s`.

        Wall time would be wrong: a process that was suspended has not read.
        """
        if self._connection.heard_at > self._heard_at:
            self._heard_at, self._looked_s = self._connection.heard_at, 0.0
            return
        self._looked_s += looked_s
        if self._silent_after_s is not None and self._looked_s > self._silent_after_s:
            raise Unreachable(f"nothing was heard from {self._address} for {self._silent_after_s:g} s")

    def _ping(self) -> None:
        now = time.monotonic()
        if now - self._pinged_at < self._ping_every_s:
            return
        self._pinged_at = now
        try:
            self._ws.ping(b"easq")
        except (OSError, websocket.WebSocketException) as error:
            raise Unreachable(f"connection to {self._address} lost") from error


class _ClosingWebSocket(websocket.WebSocket):
    """A WebSocket that ignores an error when it answers a close frame: the connection is closed in any case."""

    def send_close(self, status: int = websocket.STATUS_NORMAL, reason: str | bytes = b"") -> None:
        with contextlib.suppress(OSError, websocket.WebSocketException):
            super().send_close(status, reason)
