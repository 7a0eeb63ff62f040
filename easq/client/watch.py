"""A watch in a thread, over WebSocket or an endless HTTP response, with reconnects.

The thread reads frames, sends pings and answers pings. It does this also while the caller works on a frame: the service
takes a silent consumer for lost.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from easq.client.watch_rules import CLOSE_S, PING_EVERY_S, SILENT_AFTER_S, Reconnecting, WatchFrames
from easq.errors import (
    EasqError,
    StreamEnded,
)
from easq.model import Frame
from easq.net.failures import Closed
from easq.net.headers import request_headers
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.net.websocket import TICK_S, WebSocket
from easq.protocol.frames import MAX_FRAME_BYTES
from easq.protocol.operations import Caller, Watch, to_request

#: maximum number and bytes of the frames that are read ahead of the caller
_MAX_HELD = 100
_MAX_HELD_BYTES = 32 * 1024 * 1024
#: minimum time to wait for the answer to a close frame, in seconds, also when the time of the watch is over
_LEAST_CLOSE_S = 0.1
#: time to wait for the thread of the watch to end, after the wait for the close frame, in seconds
_FAREWELL_S = 0.2


class Watcher:
    """A watch of a stream: an iterator of the frames that the service pushes, and a context manager.

    Entering the context connects, or raises the error for which the stream cannot be watched. Iteration without a
    context connects at its begin and closes at its end. `next` returns one frame.

    When the connection ends for any reason, the watcher connects again. Frames that were read ahead are then dropped,
    because the service pushes them again. With auto-commit it does not, and the frames stay. `epoch` counts the
    connections.

    `on_notice` is called in the watcher's thread with a line of text for the user.
    """

    def __init__(
        self,
        url: str,
        caller: Caller,
        operation: Watch,
        settings: NetworkSettings,
        *,
        on_notice: Callable[[str], None] | None = None,
        reconnect_for_s: float = 60.0,
        until: float | None = None,
        ping_every_s: float = PING_EVERY_S,
        silent_after_s: float = SILENT_AFTER_S,
    ) -> None:
        """Prepare a watch; nothing is sent yet.

        Args:
            until: the latest time for connecting and for closing, on the monotonic clock.
        """
        self.epoch = 0
        self._had_frames = False  # on the present connection
        self._until = math.inf if until is None else until
        # identifies this watcher when it reconnects: the service then leaves its items with it
        operation = self._operation = replace(operation, process=os.urandom(16).hex())
        self._rules = Reconnecting(
            url,
            settings,
            reconnect_for_s=reconnect_for_s,
            until=self._until,
            notice=on_notice or (lambda _: None),
        )
        if operation.upgrade:
            self._open: Callable[[NetworkSettings], _Link] = lambda settings: WebSocketLink(
                url, caller, operation, settings, ping_every_s, silent_after_s
            )
        else:
            self._open = lambda settings: _StreamLink(url, caller, operation, settings)
        self._link: _Link | None = None
        self._held: deque[Frame] = deque()
        self._held_bytes = 0
        self._changed = threading.Condition()
        self._over = False
        self._outcome: Exception | None = None
        self._stop = threading.Event()
        self._aborted = False
        self._thread = threading.Thread(target=self._run, name="easq-watch", daemon=True)

    @property
    def lost(self) -> EasqError | None:
        """The reason why there is no connection; None while connected."""
        return self._rules.error

    def __enter__(self) -> Watcher:
        while self._link is None:
            try:
                self._link = self._connect()
            except EasqError as error:
                time.sleep(self._rules.start_failed(error, time.monotonic()))
        self._rules.started()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """Yield frames until the stream has ended or the watch is closed. Raises the errors of `next`."""
        with ExitStack() as at_end:
            if self._thread.ident is None and not self._stop.is_set():
                at_end.enter_context(self)
            while True:
                try:
                    frame = self.next()
                except StreamEnded:
                    return
                if frame is None:
                    return
                yield frame

    def next(self, timeout_s: float | None = None) -> Frame | None:
        """Return the next frame; None if there was no frame within `timeout_s`, or the watcher is closed.

        Raises StreamEnded at the end of the stream, Unreachable if the watcher could not reconnect in time, and the
        error with which the service refused a new connection.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._held or self._over, timeout_s):
                return None
            if self._held:
                frame = self._held.popleft()
                self._held_bytes -= len(frame.data)
                self._changed.notify_all()
                return frame
        if self._outcome is not None:
            raise self._outcome
        return None

    def close(self) -> None:
        """End the watch with a close frame: the service delivers uncommitted items again at once."""
        self._finish(abort=False)

    def abort(self) -> None:
        """Drop the connection, as a crash would."""
        self._finish(abort=True)

    def _finish(self, *, abort: bool) -> None:
        self._aborted = self._aborted or abort
        self._stop.set()
        link = self._link
        if link is not None:
            link.wake(abort=abort)
        with self._changed:
            self._over = self._over or self._thread.ident is None  # it was never entered
            self._changed.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            # while the thread still connects, it has no items and need not be waited for: it ends after the attempt
            self._thread.join(_FAREWELL_S if link is None else CLOSE_S + _FAREWELL_S)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                link = self._link
                if link is None:
                    break
                self._had_frames = False
                try:
                    self._pump(link)
                except StreamEnded:
                    raise
                except EasqError as lost:
                    if self._stop.is_set():
                        break
                    link.abort()
                    self._connect_again(lost)
        except Exception as over:
            # an error of ours is the outcome; a bug surfaces where the frames are taken
            self._outcome = over
        finally:
            self._let_go()

    def _pump(self, link: _Link) -> None:
        """Read frames ahead until the watcher is to stop. Raises the error with which the connection is lost."""
        while not self._stop.is_set():
            for frame in link.read():
                self._had_frames = True
                while not self._offer(frame):
                    if self._stop.is_set():
                        return
                    link.tick()

    def _offer(self, frame: Frame) -> bool:
        """Add `frame` to the frames read ahead. Return False if there is no room within a tick."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: (
                    len(self._held) < _MAX_HELD and (not self._held or self._held_bytes < _MAX_HELD_BYTES)
                ),
                TICK_S,
            ):
                return False
            self._held.append(frame)
            self._held_bytes += len(frame.data)
            self._changed.notify_all()
            return True

    def _connect_again(self, lost: EasqError) -> None:
        """Connect again after `lost`, unless the watcher stops. Raises an error after which no attempt is made."""
        self._link = None
        if not self._operation.auto_commit:
            with self._changed:
                self._held.clear()
                self._held_bytes = 0
        self._rules.lost(lost, time.monotonic(), had_frames=self._had_frames)
        while not self._stop.wait(self._rules.pause_s(time.monotonic())):
            try:
                self._link = self._connect()
            except EasqError as error:
                self._rules.failed(error)
            else:
                self._rules.connected()
                return

    def _connect(self) -> _Link:
        """Return a new connection, at least CONNECT_SPACING_S after the last attempt."""
        self._stop.wait(self._rules.spacing_s(time.monotonic()))
        link = self._open(self._rules.begin(time.monotonic()))
        self.epoch += 1
        return link

    def _let_go(self) -> None:
        link = self._link
        if link is not None:
            if self._aborted:
                link.abort()
            else:
                link.close(min(CLOSE_S, max(self._until - time.monotonic(), _LEAST_CLOSE_S)))
        with self._changed:
            self._over = True
            self._changed.notify_all()


class _Link(Protocol):
    """One connection of a watch."""

    def read(self) -> list[Frame]:
        """Return the frames that came within a tick.

        Raises StreamEnded, and another EasqError when the connection is lost.
        """

    def tick(self) -> None:
        """Keep the connection alive while nothing is read."""

    def wake(self, *, abort: bool) -> None:
        """End a `read` that waits; called from another thread."""

    def close(self, within_s: float) -> None:
        """Close the connection; the other side has `within_s` seconds to answer the close frame."""

    def abort(self) -> None:
        """Drop the connection."""


class WebSocketLink:
    """One connection of a watch over WebSocket."""

    def __init__(
        self,
        url: str,
        caller: Caller,
        operation: Watch,
        settings: NetworkSettings,
        ping_every_s: float,
        silent_after_s: float,
    ) -> None:
        self._frames = WatchFrames(url, operation.codec)
        request = to_request(operation)
        self._socket = WebSocket(
            url,
            request_headers(request, caller, settings.headers),
            settings,
            query=request.query,
            max_message_bytes=MAX_FRAME_BYTES,
            ping_every_s=ping_every_s,
            silent_after_s=silent_after_s,
            otherwise=", or use --transport http",
        )
        self.tick = self._socket.idle
        self.close = self._socket.close
        self.abort = self._socket.abort

    def read(self) -> list[Frame]:
        try:
            message = self._socket.read()
        except Closed as closed:
            raise self._frames.ended(closed) from closed.__cause__
        return [] if message is None else self._frames.of_message(message.data, is_text=message.text)

    def wake(self, *, abort: bool) -> None:
        if abort:
            self._socket.wake()


class _StreamLink:
    """One connection of a watch over an endless HTTP response. It has no pings; TCP keep-alive detects a lost host."""

    def __init__(self, url: str, caller: Caller, operation: Watch, settings: NetworkSettings) -> None:
        self._transport = Transport(settings)
        try:
            self._stream = self._transport.open(url, to_request(operation), caller)
        except BaseException:
            self._transport.close()
            raise
        self._frames = WatchFrames(url, operation.codec)

    def read(self) -> list[Frame]:
        return self._frames.of_chunk(b"" if self._frames.is_complete else self._stream.read())

    def tick(self) -> None:
        pass

    def wake(self, *, abort: bool) -> None:  # noqa: ARG002 - there is no close frame to wait for
        self._stream.abort()

    def close(self, within_s: float = 0.0) -> None:  # noqa: ARG002 - there is no close frame to wait for
        self._stream.close()
        self._transport.close()

    def abort(self) -> None:
        self.close()
