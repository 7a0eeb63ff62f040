"""The operation watch: delivery over a WebSocket or an endless HTTP answer, liveness, close codes."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion11, WSCloseCode, WSMsgType, web

from easq.errors import EasqError, StreamEnded, Unavailable, UpgradeRequired
from easq.model import Frame
from easq.protocol import operations as op
from easq.protocol.frames import delimit, encode_frame
from easq.server.connection import check_connected, connection_of, on_unmasked, release_frames, until_lost
from easq.server.deadline import Deadline
from easq.server.handshake import check_handshake, check_not_stripped
from easq.server.http import LARGE_BYTES, QueueCall, ServiceState
from easq.server.response import UNBUFFERED
from easq.server.subscriber import Subscriber

log = logging.getLogger(__name__)

#: time limit of writing a frame in seconds, and bytes of it that extend the limit by one second
WRITE_DEADLINE_S, _WRITE_RATE = 30.0, 16 * 1024
#: seconds between two heartbeats of an open connection; after 5 s without one its consumer name can be taken over
_HEARTBEAT_S = 2.0
#: parts into which the time limit of silence is divided: a suspension of the process uses up one part only
_SILENCE_PARTS = 4
#: reason of the close frame when the stream has ended
END_REASON = b"eos"
#: most bytes of a message from a client: clients only send pings and close frames
_MAX_INBOUND = 1024
#: most messages a second, and most at once: a service that was suspended reads all that have arrived at once
_INBOUND_RATE, _INBOUND_BURST = 50, 1000
#: delay of the first delivery with auto-commit, in seconds: a connection that is closed at once must commit nothing
_AUTO_COMMIT_DELAY_S = 0.05


@dataclass(frozen=True, slots=True)
class Liveness:
    """A WebSocket from which no byte arrives for `silent_after_s` is lost. It is pinged every `silent_after_s / 3`."""

    silent_after_s: float = 10.0


class Watches:
    """All watches of a service: limits their number, and closes them in order when the service stops."""

    def __init__(self, liveness: Liveness, *, max_watchers: int = 0) -> None:
        """Prepare.

        Args:
            liveness: time limit of silent WebSockets.
            max_watchers: most connections at a time, over all queues; 0: no limit.
        """
        self._liveness = liveness
        self._max_watchers = max_watchers
        self._tasks: set[asyncio.Task[object]] = set()

    async def serve(self, operation: op.Watch, call: QueueCall) -> web.StreamResponse:
        """Deliver frames until the connection ends.

        Raises Unavailable at the limit, and BadRequest, AnotherWatcher and StreamEnded before the upgrade.
        """
        if self._max_watchers and len(self._tasks) >= self._max_watchers:
            raise Unavailable(
                f"{self._max_watchers} consumers are watching, which is the limit (--max-watchers)"
            )
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            return await _serve(operation, call, self._liveness)
        finally:
            self._tasks.discard(task)

    async def stop(self) -> None:
        """End every watch with the reason that the service stops. Wait for them, for at most 5 s."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5.0)


async def _serve(watch: op.Watch, call: QueueCall, liveness: Liveness) -> web.StreamResponse:
    request, state = call.request, call.state
    transport = (
        _WebSocketTransport(watch, liveness, state) if watch.upgrade else _HttpStreamTransport(watch, state)
    )
    transport.check(request)
    subscriber = await Subscriber.open(call.queue, call.consumer, watch)
    lost = True
    try:
        response = await transport.open(request)
        lost = await transport.run(subscriber)
        return response
    except ConnectionError:
        if not transport.response.prepared:
            raise  # the client is gone, and was not answered
        return transport.response
    except asyncio.CancelledError:
        lost = False  # the service stops: nobody failed
        raise
    finally:
        await _leave(subscriber, lost=lost)
        if lost and request.transport is not None:
            # no close frame: a suspended client must see a lost connection when it resumes
            request.transport.abort()
        await transport.release()


async def _leave(subscriber: Subscriber, *, lost: bool) -> None:
    """End the session, also when this task is being cancelled."""
    try:
        await asyncio.shield(subscriber.close(lost=lost))
    except EasqError as error:
        log.debug("leaving: %s", error)


async def _deliver(
    transport: _WebSocketTransport | _HttpStreamTransport,
    subscriber: Subscriber,
    watch: op.Watch,
    state: ServiceState,
) -> None:
    """Send frames until another session replaces this one.

    Auto-commit delivers at most once. So frames that were written before the connection broke are committed: the client
    may have read them.
    """
    if watch.auto_commit:
        await asyncio.sleep(_AUTO_COMMIT_DELAY_S)
    while frames := await subscriber.next():
        written: list[Frame] = []
        try:
            for frame in frames:
                if len(frame.data) > LARGE_BYTES:
                    data = await state.in_encoder_thread(
                        encode_frame, frame, watch.codec, with_data=not watch.index_only
                    )
                else:
                    data = encode_frame(frame, watch.codec, with_data=not watch.index_only)
                if not await subscriber.still_has(frame):
                    continue
                async with Deadline(WRITE_DEADLINE_S + len(data) / _WRITE_RATE):
                    written.append(frame)
                    await transport.send(data)
        except ConnectionError:
            del written[-1:]
            raise
        except TimeoutError as error:
            # a reference cycle: the traceback refers to the deadline, that to this task, and the task to the error
            release_frames(error)
            raise ConnectionResetError("the client does not read in time") from None
        finally:
            await subscriber.sent(written)


class _WebSocketTransport:
    """A WebSocket without extensions. Each item is one message, unfragmented, since the Go SDK reads no fragments."""

    def __init__(self, watch: op.Watch, liveness: Liveness, state: ServiceState) -> None:
        self._watch, self._state = watch, state
        self._liveness = liveness
        self.response = web.WebSocketResponse(
            autoping=False, autoclose=False, compress=False, heartbeat=None,
            max_msg_size=_MAX_INBOUND + 1,  # aiohttp refuses messages of exactly this size
        )  # fmt: skip

    def check(self, request: web.BaseRequest) -> None:
        """Raise BadRequest for an invalid handshake, UpgradeRequired for another version of WebSocket."""
        check_handshake(request, self.response)

    async def open(self, request: web.BaseRequest) -> web.StreamResponse:
        self._connection = connection_of(request)
        self._unmasked = asyncio.get_running_loop().create_future()
        on_unmasked(request, lambda: self._unmasked.set_result(None))
        await self.response.prepare(request)
        self._request = request
        return self.response

    async def send(self, data: bytes) -> None:
        """Write a frame. Raises ConnectionError when it was not written."""
        if self._watch.codec is op.Codec.JSON:
            await self.response.send_str(data.decode())
        else:
            await self.response.send_bytes(data)
        check_connected(self._request)
        self._request.writer.output_size += len(data)

    async def run(self, subscriber: Subscriber) -> bool:
        """Deliver until either side ends the connection. Return true if it was lost, false if it was closed."""
        deliver = asyncio.create_task(_deliver(self, subscriber, self._watch, self._state))
        listen = asyncio.create_task(self._listen(subscriber))
        silence = asyncio.create_task(self._until_silent())
        ping = asyncio.create_task(self._ping())
        try:
            ends: set[asyncio.Future[Any]] = {deliver, listen, silence, self._unmasked}
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._unmasked in done:
                await self._close(WSCloseCode.PROTOCOL_ERROR, b"a frame was not masked")
                return False
            if listen in done:
                return listen.result()
            if silence in done:
                log.info("a watcher was silent for %.0f s", self._liveness.silent_after_s)
                return True
            failure = deliver.exception()
            if failure is None:
                await self._close(
                    WSCloseCode.POLICY_VIOLATION, b"replaced by another connection of this consumer"
                )
                return False
            if isinstance(failure, StreamEnded):
                await self._close(WSCloseCode.OK, END_REASON)
                return False
            if not isinstance(failure, (ConnectionError, TimeoutError)):
                raise failure
            return True
        except asyncio.CancelledError:
            await self._close(WSCloseCode.GOING_AWAY, b"the service stops")
            raise
        finally:
            for task in (deliver, listen, silence, ping):
                task.cancel()
            await asyncio.gather(deliver, listen, silence, ping, return_exceptions=True)

    async def release(self) -> None:
        """Close a WebSocket that is still open, and drop the traceback of the error that the response refers to."""
        if self.response.prepared:
            # fails on an aborted connection: here, not later inside aiohttp
            await self._close(WSCloseCode.OK, b"")
        if (error := self.response.exception()) is not None:
            release_frames(error)

    async def _close(self, code: WSCloseCode, reason: bytes) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self.response.close(code=code, message=reason, drain=False)
        except (ConnectionError, TimeoutError):
            pass

    async def _listen(self, subscriber: Subscriber) -> bool:
        """Read until the connection ends. Return true if it was lost, false if it was closed."""
        loop = asyncio.get_running_loop()
        allowed, since = float(_INBOUND_BURST), loop.time()
        while True:
            message = await self.response.receive()
            if message.type in {WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR}:
                return True
            now = loop.time()
            allowed, since = min(allowed + (now - since) * _INBOUND_RATE, _INBOUND_BURST) - 1, now
            if allowed < 0:
                log.info("a watcher sent more than %d messages a second", _INBOUND_RATE)
                await self._close(WSCloseCode.POLICY_VIOLATION, b"too many messages")
                return False
            await subscriber.heartbeat()
            if message.type is WSMsgType.PING:
                await self.response.pong(message.data)
            elif message.type is WSMsgType.CLOSE:
                await self._close(WSCloseCode.OK, b"")
                return False

    async def _until_silent(self) -> None:
        """Return once no byte has arrived for `silent_after_s`.

        The time is counted in parts. A suspension of the process uses up one part only: data that waits in the socket
        is read before the next check.
        """
        loop, limit_s = asyncio.get_running_loop(), self._liveness.silent_after_s
        part_s = limit_s / _SILENCE_PARTS
        left_s, last_byte_at = limit_s, self._connection.last_byte_at
        while left_s > 0:
            step_s = min(part_s, left_s)
            await asyncio.sleep(step_s)
            left_s -= step_s
            if self._connection.last_byte_at > last_byte_at:
                last_byte_at = self._connection.last_byte_at
                left_s = limit_s - min(loop.time() - last_byte_at, part_s)

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(self._liveness.silent_after_s / 3)
            try:
                await self.response.ping(b"easq")
            except ConnectionError:
                return


class _HttpStreamTransport:
    """The endless HTTP answer: each frame follows its length in four bytes, big endian. TCP detects its loss."""

    def __init__(self, watch: op.Watch, state: ServiceState) -> None:
        self._watch, self._state = watch, state
        self.response = web.StreamResponse(
            headers={"Content-Type": watch.codec.value, "X-Content-Type-Options": "nosniff", **UNBUFFERED}
        )

    def check(self, request: web.BaseRequest) -> None:
        """Raise UpgradeRequired for a WebSocket handshake that has lost its Upgrade header at a proxy.

        Such proxies speak HTTP/1.0. So a watch over HTTP/1.0 has to ask for the HTTP stream in its transport header.
        """
        check_not_stripped(request)
        wanted = request.headers.get(op.TRANSPORT_HEADER, "").strip().lower() == op.TRANSPORT_HTTP
        if request.version < HttpVersion11 and not wanted:
            raise UpgradeRequired(
                "a watch over HTTP/1.0 has to come with the header "
                f"{op.TRANSPORT_HEADER}: {op.TRANSPORT_HTTP}; a WebSocket needs Upgrade, and HTTP/1.1 all the way"
            )

    async def open(self, request: web.BaseRequest) -> web.StreamResponse:
        await self.response.prepare(request)
        self._request = request
        return self.response

    async def release(self) -> None:
        """Do nothing: an HTTP stream keeps no error."""

    async def send(self, data: bytes) -> None:
        """Write a frame. Raises ConnectionError when it was not written."""
        await self.response.write(delimit(data))
        check_connected(self._request)

    async def run(self, subscriber: Subscriber) -> bool:
        """Deliver until either side ends. Return true if the connection was lost.

        Return false if the stream has ended, or if another session has replaced this one.
        """
        deliver = asyncio.create_task(_deliver(self, subscriber, self._watch, self._state))
        gone = asyncio.create_task(self._until_lost(subscriber))
        try:
            done, _ = await asyncio.wait({deliver, gone}, return_when=asyncio.FIRST_COMPLETED)
            failure = deliver.exception() if deliver in done else None
            if isinstance(failure, StreamEnded):
                await self.response.write_eof()
                return False
            if failure is not None and not isinstance(failure, (ConnectionError, TimeoutError)):
                raise failure
            return deliver not in done or failure is not None
        finally:
            for task in (deliver, gone):
                task.cancel()
            await asyncio.gather(deliver, gone, return_exceptions=True)

    async def _until_lost(self, subscriber: Subscriber) -> None:
        """Return once the connection is lost. Until then, record heartbeats: TCP probes detect a lost client."""
        lost = until_lost(self._request)
        while not lost.done():
            await subscriber.heartbeat()
            await asyncio.wait({lost}, timeout=_HEARTBEAT_S)
