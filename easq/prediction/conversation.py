"""Messages to a WebSocket service: the answer to a message is the first message that comes after it.

    ask         send a message and wait for its answer; after a lost connection, send it again on a new one
    more        yield the messages after an answer, until none comes
    send        send a message, without waiting for its answer
    receive     return the next message, if there is one

Some containers close the connection after each answer (Huawei's page on WebSocket services). The next message then
opens a new connection; the closed one does not count as a failure.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from easq.errors import AuthFailed, DeadlineExceeded, EasqError, UsageError
from easq.net.failures import Closed, Unanswered, Unconnected
from easq.net.headers import request_headers
from easq.net.retry import ATTEMPT_PART, Times, pause_after
from easq.net.settings import NetworkSettings
from easq.net.url import address_of, shown
from easq.net.websocket import TICK_S, Message, WebSocket
from easq.prediction.exchanges import Served, another_may_do_better, in_time
from easq.protocol.operations import Request

#: seconds between pings; gateways drop a connection without traffic for a minute
PING_EVERY_S = 20.0
#: time to look for unrequested messages before a message is sent, in seconds
_LOOK_S = 0.001
#: close codes of a service that ended normally
_DONE = (1000, 1001, 1005)


class Conversation:
    """Messages over one connection at a time, which is opened when it is needed. Not thread-safe."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        settings: NetworkSettings,
        *,
        text: bool,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Prepare a conversation; nothing is sent yet.

        Args:
            headers: headers with credentials; the headers of `settings` replace them.
            text: send text messages; if False, binary messages.
            warn: called with a text if messages were dropped because they answer no request.

        Raises UsageError or ConfigError for a header that cannot be sent.
        """
        self._url, self._settings, self._text, self._warn = url, settings, text, warn
        self._headers = request_headers(Request("GET", headers=headers), None, settings.headers)
        self._socket: WebSocket | None = None
        self._unasked = 0
        self._unanswered: deque[tuple[bytes, float]] = (
            deque()
        )  # messages without an answer, each with the end of the wait for it
        self._failures = 0  # in a row, of `receive`
        self._trouble: EasqError | None = None  # the last of them
        self._not_before = 0.0

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def ask(self, data: bytes, *, timeout_s: float) -> Served:
        """Send `data`, and return its answer.

        After a lost connection, or status 502, 503 or 504, the data is sent again on a new connection. Raises
        UsageError for a text message that is not UTF-8, and DeadlineExceeded if no answer came in time.
        """
        self._check(data)
        began = time.monotonic()
        attempts = 0
        error: EasqError | None = None
        while True:
            attempts += 1
            times = Times(attempts=attempts)
            left_s = began + timeout_s - time.monotonic()
            try:
                answer = self._attempt(data, times, began + timeout_s)
            except EasqError as failure:
                self._drop()
                pause_s = pause_after(failure, attempts)
                if not _again(failure):
                    raise
                cut_short = isinstance(failure, Unanswered) and left_s < timeout_s / ATTEMPT_PART
                error = error if cut_short and error is not None else failure
                if time.monotonic() + pause_s >= began + timeout_s:
                    tried = f"{attempts} attempts" if attempts > 1 else ""
                    raise in_time(error, self._url, tried, self._settings, timeout_s, 0.0) from failure
                time.sleep(pause_s)
                continue
            times.total_s = time.monotonic() - began
            return Served(answer.data, address_of(self._url), times)

    def more(self, idle_s: float) -> Iterator[bytes]:
        """Yield the messages after an answer, until none came for `idle_s` or the service closed."""
        until = time.monotonic() + idle_s
        while self._socket is not None and (left_s := until - time.monotonic()) > 0:
            try:
                message = self._socket.read(min(left_s, TICK_S))
            except EasqError as error:
                self._drop()
                if isinstance(error, Closed) and error.code in _DONE:
                    return
                raise
            if message is not None:
                yield message.data
                until = time.monotonic() + idle_s

    def connect(self, *, timeout_s: float) -> None:
        """Connect. Raises the error for which that is not possible."""
        self._connection(Times(), time.monotonic() + timeout_s)

    def send(self, data: bytes, *, timeout_s: float) -> None:
        """Send `data` as soon as there is a connection. Raises UsageError for a text message that is not UTF-8."""
        self._check(data)
        self._unanswered.append((data, time.monotonic() + timeout_s))
        if self._socket is not None:
            self._over_it(lambda socket: self._send(socket, data))

    @property
    def awaits_answers(self) -> bool:
        """Whether a message that was sent has no answer yet."""
        return bool(self._unanswered)

    def receive(self) -> bytes | None:
        """Return the message that came within a tick, or None.

        Unanswered messages are sent again on a new connection. Raises DeadlineExceeded once for each message without an
        answer in time, and the error with which a new connection is refused.
        """
        if self._unanswered and time.monotonic() >= self._unanswered[0][1]:
            self._unanswered.popleft()
            why = f": {self._trouble.message}" if self._trouble else ""
            raise DeadlineExceeded(f"no answer from {shown(self._url)} in time{why}")
        if self._socket is None and (not self._unanswered or time.monotonic() < self._not_before):
            time.sleep(TICK_S)
            return None
        message = self._over_it(lambda socket: socket.read(), again=True)
        if message is not None:
            self._failures, self._trouble = 0, None
            if self._unanswered:
                self._unanswered.popleft()
        return None if message is None else message.data

    def _over_it(self, use: Callable[[WebSocket], Message | None], *, again: bool = False) -> Message | None:
        """Call `use` with the connection, and return its result; None without a connection, or if it is lost.

        With `again`, a missing connection is opened, and the unanswered messages are sent on it.
        """
        try:
            if self._socket is None and again:
                socket = self._connection(Times(), self._unanswered[0][1])
                for data, _ in self._unanswered:
                    self._send(socket, data)
            return use(self._socket) if self._socket is not None else None
        except EasqError as error:
            self._drop()
            if not _again(error):
                raise
            self._failures, self._trouble = self._failures + 1, error
            self._not_before = time.monotonic() + pause_after(error, self._failures)
            return None

    def _attempt(self, data: bytes, times: Times, until: float) -> Message:
        self._drop_unasked()
        began = time.monotonic()
        socket = self._connection(times, until)
        self._send(socket, data, within_s=until - time.monotonic())
        while (message := socket.read()) is None:
            if time.monotonic() >= until:
                text = f"no answer from {shown(self._url)} within {round(until - began, 1):g} s"
                raise Unanswered(text, hint="raise --timeout if it is slow")
        if socket.first_byte_at is not None:
            times.first_byte_s = socket.first_byte_at - began
        return message

    def _send(self, socket: WebSocket, data: bytes, within_s: float | None = None) -> None:
        limit_s = self._settings.request_timeout_s
        socket.send(data, text=self._text, within_s=max(0.001, min(within_s or limit_s, limit_s)))

    def _connection(self, times: Times, until: float) -> WebSocket:
        if self._socket is None:
            began = time.monotonic()
            left_s = max(0.001, until - began)
            settings = replace(
                self._settings,
                connect_timeout_s=min(self._settings.connect_timeout_s, left_s),
                request_timeout_s=min(self._settings.request_timeout_s, left_s),
            )
            try:
                self._socket = WebSocket(
                    self._url,
                    self._headers,
                    settings,
                    max_message_bytes=settings.max_answer_bytes,
                    ping_every_s=PING_EVERY_S,
                )
            except AuthFailed as error:
                error.hint = "check the credentials: --token-file, or a header such as 'X-Apig-AppCode: CODE'"
                raise
            times.connect_s = time.monotonic() - began
        return self._socket

    def _drop_unasked(self) -> None:
        """Drop the messages that came since the last answer, and a connection that ended meanwhile."""
        try:
            while self._socket is not None and self._socket.read(_LOOK_S) is not None:
                self._unasked += 1
                if self._unasked == 1:
                    self._warn("messages that nothing asked for are dropped; --idle-timeout shows them")
        except EasqError:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.abort()
            self._socket = None

    def _check(self, data: bytes) -> None:
        if self._text:
            try:
                data.decode("utf-8")
            except UnicodeDecodeError as error:
                text = f"not UTF-8 at byte {error.start}, which no text message may carry"
                raise UsageError(text, hint="--binary sends it as it is") from error


class ConversationPool:
    """Connections to one service, as many as are used at once. Thread-safe; a context manager."""

    def __init__(self, make: Callable[[], Conversation]) -> None:
        self._make = make
        self._idle: queue.LifoQueue[Conversation] = queue.LifoQueue()

    def __enter__(self) -> ConversationPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while not self._idle.empty():
            self._idle.get().close()

    def ask(self, data: bytes, *, timeout_s: float) -> Served:
        """Return the answer to `data`, as `Conversation.ask` does, over a connection that is not in use."""
        try:
            conversation = self._idle.get_nowait()
        except queue.Empty:
            conversation = self._make()
        try:
            return conversation.ask(data, timeout_s=timeout_s)
        finally:
            self._idle.put(conversation)


def _again(error: EasqError) -> bool:
    """Whether a new connection may help."""
    return another_may_do_better(error) and not (isinstance(error, Unconnected) and error.lasting)
