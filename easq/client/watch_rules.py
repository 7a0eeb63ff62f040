"""The rules of a watch: when it reconnects, and how its messages become frames. No I/O, threads or clocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from easq.errors import (
    AnotherWatcher,
    EasqError,
    NotAQueueService,
    QueueFull,
    ServerError,
    StreamEnded,
    Unreachable,
)
from easq.model import Frame
from easq.net.failures import Closed, Unconnected, last_known
from easq.net.retry import LEAST_S, pause_after
from easq.net.settings import NetworkSettings
from easq.net.url import shown
from easq.protocol.frames import Undelimiter, decode_frame
from easq.protocol.operations import Codec

#: seconds between two pings
PING_EVERY_S = 2.0
#: a connection on which no byte came for this long is lost, in seconds; the answer to a ping counts
SILENT_AFTER_S = 10.0
#: close reason that says that the stream ended
END_REASON = "eos"
#: seconds to wait for the answer to a close frame
CLOSE_S = 1.0
#: minimum time between two connection attempts, in seconds
CONNECT_SPACING_S = 0.1
#: a connection that lasted this long, or brought a frame, resets the back-off, in seconds
GOOD_AFTER_S = 5.0


class Reconnecting:
    """The connection attempts of one watch. `now` is the time on the monotonic clock, in seconds.

    Before the first connection, attempts are repeated until the time limit of a request. After that, a lost connection
    is retried for `reconnect_for_s`.
    """

    def __init__(
        self,
        url: str,
        settings: NetworkSettings,
        *,
        reconnect_for_s: float,
        until: float = math.inf,
        notice: Callable[[str], None],
    ) -> None:
        """Prepare the first attempt.

        Args:
            until: the latest time for an attempt.
            notice: called with a line of text for the user.
        """
        self._url, self._settings, self._until = url, settings, until
        self._reconnect_for_s, self._notice = reconnect_for_s, notice
        #: the reason why there is no connection; None while connected, and before the first connection
        self.error: EasqError | None = None
        self._before: EasqError | None = None  # the failure before the last one, at the start
        self._began: float | None = None
        self._failures = 0
        self._since: float | None = None  # when the first of a series of bad connections was lost
        self._attempt_at = -math.inf

    def spacing_s(self, now: float) -> float:
        """Return how many seconds to wait before the next attempt, at least 0."""
        return max(self._attempt_at + CONNECT_SPACING_S - now, 0.0)

    def begin(self, now: float) -> NetworkSettings:
        """Begin an attempt. Return its settings, with timeouts that do not exceed the time of the watch."""
        self._attempt_at = now
        if self._began is None:
            self._began = now
        left_s = max(self._until - now, LEAST_S)
        return replace(
            self._settings,
            connect_timeout_s=min(self._settings.connect_timeout_s, left_s),
            request_timeout_s=min(self._settings.request_timeout_s, left_s),
        )

    def start_failed(self, error: EasqError, now: float) -> float:
        """Return the pause before the next attempt to begin the watch, in seconds.

        Raises `error` if there is no further attempt.
        """
        if isinstance(error, AnotherWatcher):
            error.hint = error.hint or "watch under another name: --user NAME"
        if isinstance(error, NotAQueueService) or not isinstance(
            error, Unreachable | ServerError | QueueFull
        ):
            raise error
        self._failures += 1
        pause_s = pause_after(error, self._failures)
        began = now if self._began is None else self._began
        if now + pause_s >= min(began + self._patience_s(error), self._until):
            raise last_known(error, self._before) from error
        self._before = error
        if self._failures == 1 and not isinstance(error, Unreachable):
            self._notice(f"{error.message}; trying again")
        return pause_s

    def _patience_s(self, error: EasqError) -> float:
        """Return for how many seconds attempts are repeated after `error`, before the first connection."""
        if isinstance(error, Unconnected) and error.lasting:
            return 0.0
        if isinstance(error, Unreachable):
            return min(self._settings.connect_timeout_s, self._settings.request_timeout_s)
        return self._settings.request_timeout_s

    def started(self) -> None:
        """Note the first connection."""
        self._failures = 0

    def lost(self, error: EasqError, now: float, *, had_frames: bool) -> None:
        """Note that the connection was lost with `error`, and whether a frame had come on it."""
        if had_frames or now - self._attempt_at >= GOOD_AFTER_S:
            self._failures, self._since = 0, None
        self._since = now if self._since is None else self._since
        self.error = error
        self._notice(f"{error.message}; connecting again")

    def pause_s(self, now: float) -> float:
        """Return the pause before the next attempt, in seconds. Raises Unreachable if there is no further attempt."""
        assert self.error is not None
        assert self._since is not None
        end = self._since + self._reconnect_for_s
        if now >= end:
            text = f"{self.error.message}; no lasting connection for {self._reconnect_for_s:g} s"
            raise Unreachable(text, hint=self.error.hint) from self.error
        self._failures += 1
        return min(pause_after(self.error, self._failures), end - now)

    def failed(self, error: EasqError) -> None:
        """Note that an attempt to connect again failed. Raises `error` if another attempt cannot help."""
        if not isinstance(error, Unreachable | ServerError | QueueFull | AnotherWatcher):
            raise error
        self.error = last_known(error, self.error)

    def connected(self) -> None:
        """Note a new connection."""
        self.error = None
        self._notice(f"connected to {shown(self._url)} again")


class WatchFrames:
    """The decoder of one connection of a watch: from messages or chunks to frames, without I/O."""

    def __init__(self, url: str, codec: Codec) -> None:
        self._address, self._codec = shown(url), codec
        self._pieces = Undelimiter()
        #: whether the service has ended the HTTP answer
        self.is_complete = False

    def of_message(self, data: bytes, *, is_text: bool) -> list[Frame]:
        """Return the frame in a WebSocket message, if there is one. Raises NotAQueueService."""
        return [self._decoded(data, Codec.JSON if is_text else self._codec)] if data else []

    def of_chunk(self, chunk: bytes) -> list[Frame]:
        """Return the frames that are complete with this chunk of the HTTP response; an empty chunk is its end.

        Raises Unreachable at the end, and NotAQueueService for a chunk that is not of frames.
        """
        if not chunk:
            raise Unreachable(f"{self._address} ended the connection")
        try:
            pieces = self._pieces.feed(chunk)
        except ValueError as error:
            raise NotAQueueService(f"{self._address} sends no frames: {error}") from error
        if b"" in pieces:
            self.is_complete = True
            pieces = pieces[: pieces.index(b"")]
        return [self._decoded(piece, self._codec) for piece in pieces]

    @staticmethod
    def ended(error: EasqError) -> EasqError:
        """Return StreamEnded if `error` is a close frame with that reason; otherwise return `error`."""
        if isinstance(error, Closed) and error.reason == END_REASON:
            return StreamEnded("the stream has ended")
        return error

    def _decoded(self, data: bytes, codec: Codec) -> Frame:
        try:
            return decode_frame(data, codec)
        except ValueError as error:
            raise NotAQueueService(f"{self._address} sent what is no frame: {error}") from error
