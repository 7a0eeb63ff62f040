"""A watch on an event loop, over WebSocket or an endless HTTP response, with reconnects."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from easq.client.consumer import Deliveries
from easq.client.watch_rules import CLOSE_S, PING_EVERY_S, SILENT_AFTER_S, Reconnecting, WatchFrames
from easq.errors import EasqError, StreamEnded
from easq.model import Frame
from easq.net.aio_watch import AsyncByteStream, AsyncWebSocket
from easq.net.headers import request_headers
from easq.net.settings import NetworkSettings
from easq.net.url import is_encrypted, proxy_for
from easq.protocol.frames import MAX_FRAME_BYTES
from easq.protocol.operations import Caller, Watch, to_request

if TYPE_CHECKING:
    from easq.client.watch import WebSocketLink
Note = TypeVar("Note")


class AsyncWatcher:
    """A watch that passes each frame to a callback.

    `connect` begins the watch. `run` reads until it is cancelled or the watch ends. Call `close` or `abort` afterwards.
    When the connection ends for any reason, `run` connects again. `epoch` counts the connections.
    """

    def __init__(
        self,
        url: str,
        caller: Caller,
        operation: Watch,
        settings: NetworkSettings,
        *,
        on_frame: Callable[[Frame], None],
        on_notice: Callable[[str], None] | None = None,
        reconnect_for_s: float = 60.0,
        ping_every_s: float = PING_EVERY_S,
        silent_after_s: float = SILENT_AFTER_S,
    ) -> None:
        """Prepare a watch; nothing is sent yet.

        Args:
            on_frame: called with each frame, on the event loop.
            on_notice: called with a line of text for the user, on the event loop.
            reconnect_for_s: time for which a lost connection is retried, in seconds.
            ping_every_s: time between two pings, in seconds.
            silent_after_s: a connection on which no byte came for this long is lost, in seconds.
        """
        self.epoch = 0
        self._url, self._caller = url, caller
        # identifies this watcher when it reconnects: the service then leaves its items with it
        self._operation = replace(operation, process=os.urandom(16).hex())
        self._on_frame = on_frame
        self._ping_every_s, self._silent_after_s = ping_every_s, silent_after_s
        self._rules = Reconnecting(
            url, settings, reconnect_for_s=reconnect_for_s, notice=on_notice or (lambda _: None)
        )
        self._link: _AsyncWebSocketLink | _AsyncStreamLink | _ThreadLink | None = None

    async def connect(self) -> None:
        """Begin the watch. Raises the error of the last attempt if the service cannot be watched."""
        while self._link is None:
            try:
                await self._connect()
            except EasqError as error:
                await asyncio.sleep(self._rules.start_failed(error, time.monotonic()))
        self._rules.started()

    async def run(self) -> None:
        """Read frames until cancelled.

        Raises StreamEnded at the end of the stream, Unreachable if the watcher could not reconnect in time, and the
        error with which the service refused a new connection.
        """
        while True:
            assert self._link is not None
            had_frames = False
            try:
                while True:
                    for frame in await self._link.read():
                        had_frames = True
                        self._on_frame(frame)
            except StreamEnded:
                raise
            except EasqError as error:
                await self.abort()
                self._rules.lost(error, time.monotonic(), had_frames=had_frames)
            while self._link is None:
                await asyncio.sleep(self._rules.pause_s(time.monotonic()))
                try:
                    await self._connect()
                except EasqError as error:
                    self._rules.failed(error)
            self._rules.connected()

    async def close(self) -> None:
        """End the watch with a close frame: the service delivers uncommitted items again at once."""
        link, self._link = self._link, None
        if link is not None:
            await link.close(CLOSE_S)

    async def abort(self) -> None:
        """Drop the connection, as a crash would."""
        link, self._link = self._link, None
        if link is not None:
            await link.abort()

    async def _connect(self) -> None:
        """Open a new connection, at least CONNECT_SPACING_S after the last attempt."""
        await asyncio.sleep(self._rules.spacing_s(time.monotonic()))
        settings = self._rules.begin(time.monotonic())
        operation, url = self._operation, self._url
        request = to_request(operation)
        headers = request_headers(request, self._caller, settings.headers)
        frames = WatchFrames(url, operation.codec)
        if not operation.upgrade:
            stream = AsyncByteStream(url, request, headers, settings)
            await stream.open()
            self._link = _AsyncStreamLink(stream, frames)
        elif proxy_for(url, settings.environ) and not is_encrypted(url.partition(":")[0]):
            # aiohttp opens a tunnel through a proxy only for TLS, and most proxies do not forward Upgrade
            from easq.client.watch import WebSocketLink

            self._link = await _ThreadLink.open(
                lambda: WebSocketLink(
                    url, self._caller, operation, settings, self._ping_every_s, self._silent_after_s
                )
            )
        else:
            socket = AsyncWebSocket(
                url,
                request,
                headers,
                settings,
                ping_every_s=self._ping_every_s,
                silent_after_s=self._silent_after_s,
                otherwise=", or use --transport http",
            )
            await socket.open(MAX_FRAME_BYTES)
            self._link = _AsyncWebSocketLink(socket, frames)
        self.epoch += 1


async def commit_batches(
    items: Deliveries[Note], has_done: asyncio.Event, commit: Callable[[list[int]], Awaitable[None]]
) -> None:
    """Commit finished items until cancelled. Items that finish during one commit are in the next one.

    Args:
        has_done: set by the caller after each finished item.
        commit: sends one commit, and then calls `items.committed`.
    """
    while True:
        while batch := items.batch():
            await commit(batch)
        has_done.clear()
        await has_done.wait()


class _AsyncWebSocketLink:
    """One connection of a watch over WebSocket."""

    def __init__(self, socket: AsyncWebSocket, frames: WatchFrames) -> None:
        self._socket, self._frames = socket, frames
        self.close, self.abort = socket.close, socket.abort

    async def read(self) -> list[Frame]:
        try:
            data, is_text = await self._socket.read()
        except EasqError as error:
            raise self._frames.ended(error) from error.__cause__
        return self._frames.of_message(data, is_text=is_text)


class _AsyncStreamLink:
    """One connection of a watch over an endless HTTP response."""

    def __init__(self, stream: AsyncByteStream, frames: WatchFrames) -> None:
        self._stream, self._frames = stream, frames
        self.abort = stream.abort

    async def read(self) -> list[Frame]:
        return self._frames.of_chunk(b"" if self._frames.is_complete else await self._stream.read())

    async def close(self, within_s: float) -> None:  # noqa: ARG002 - there is no close frame to wait for
        await self._stream.abort()


class _ThreadLink:
    """One connection of a watch over WebSocket, whose blocking calls run in a thread."""

    def __init__(self, link: WebSocketLink) -> None:
        self._link = link
        self._reading: asyncio.Future[list[Frame]] | None = None

    @classmethod
    async def open(cls, connect: Callable[[], WebSocketLink]) -> _ThreadLink:
        return cls(await asyncio.to_thread(connect))

    async def read(self) -> list[Frame]:
        self._reading = asyncio.ensure_future(asyncio.to_thread(self._link.read))
        return await asyncio.shield(self._reading)

    async def close(self, within_s: float) -> None:
        await self._stop_reading()
        await asyncio.to_thread(self._link.close, within_s)

    async def abort(self) -> None:
        await self._stop_reading()
        self._link.abort()

    async def _stop_reading(self) -> None:
        if self._reading is not None:  # it ends within a tick
            await asyncio.gather(self._reading, return_exceptions=True)
