"""A connection on which channels of one Redis are heard. What comes there are hints, never the only way to know."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import TypeAlias

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

log = logging.getLogger(__name__)

#: what gets the bytes that were published
MessageHandler: TypeAlias = Callable[[bytes], None]

#: a connection on which nothing came for this, though it was asked each second, is lost
_SILENCE_S, _PING_S = 3.0, 1.0
#: pause before connecting again, in seconds
_PAUSE_S = (0.1, 0.5)
#: how long `add` waits to hear that the channel is heard, in seconds
_CONFIRM_S = 1.0


class ChannelSubscriber:
    """Hears channels until it is closed, over as many connections, one after the other, as that takes."""

    def __init__(
        self, connection: Callable[[], AbstractConnection], handler: Callable[[str, bytes], None]
    ) -> None:
        """`connection` makes one that is not open yet; `handler` gets the channel and what was published."""
        self._make = connection
        self._handler = handler
        #: channel -> done once it is heard
        self._channels: dict[str, asyncio.Event] = {}
        self._connection: AbstractConnection | None = None
        self._last = 0.0
        self._task = asyncio.create_task(self._run())

    def want(self, channel: str) -> None:
        """The channel is heard from the next connection on."""
        self._channels.setdefault(channel, asyncio.Event())

    async def add(self, channel: str) -> None:
        """The channel is heard, unless the connection is away; then it is heard from the next one on."""
        self.want(channel)
        confirmed = self._channels[channel]
        try:
            if self._connection is not None and not confirmed.is_set():
                await self._subscribe(self._connection, [channel])
            async with asyncio.timeout(_CONFIRM_S):
                await confirmed.wait()
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            log.debug("%s is not heard yet: %r", channel, error)

    async def close(self) -> None:
        """Nothing is heard any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            connection = self._make()
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await connection.connect()
                    await self._subscribe(connection, list(self._channels))
                self._connection = connection
                await self._hear(connection)
            except (exceptions.RedisError, OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                log.debug("hearing nothing: %r", error)
            finally:
                self._connection = None
                for confirmed in self._channels.values():
                    confirmed.clear()
                await _disconnect(connection, nowait=False)
            await asyncio.sleep(random.uniform(*_PAUSE_S))

    async def _subscribe(self, connection: AbstractConnection, channels: list[str]) -> None:
        """Both kinds: scripts of a Cluster publish in the channel's slot, others anywhere."""
        commands = [(verb, channel) for channel in channels for verb in ("SUBSCRIBE", "SSUBSCRIBE")]
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)

    async def _hear(self, connection: AbstractConnection) -> None:
        """Raises what ends the connection."""
        self._last = asyncio.get_running_loop().time()
        pings = asyncio.create_task(self._ping(connection))
        try:
            while True:
                try:
                    reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                except exceptions.ResponseError as error:
                    log.warning("wake-ups from Redis come late, by polling: %s", error)
                    continue
                self._last = asyncio.get_running_loop().time()
                match reply:
                    case [b"message" | b"smessage", channel, data]:
                        self._handler(channel.decode(), data)
                    case [b"ssubscribe", channel, _] if channel.decode() in self._channels:
                        self._channels[channel.decode()].set()
        finally:
            pings.cancel()

    async def _ping(self, connection: AbstractConnection) -> None:
        """The connection is closed once nothing came on it for too long."""
        loop = asyncio.get_running_loop()
        while loop.time() < self._last + _SILENCE_S:
            await asyncio.sleep(_PING_S)
            try:
                await connection.send_packed_command(
                    connection.pack_commands([("PING",)]), check_health=False
                )
            except (exceptions.RedisError, OSError):
                return
        await _disconnect(connection, nowait=True)


async def _disconnect(connection: AbstractConnection, *, nowait: bool) -> None:
    """The connection is closed, within a second."""
    try:
        await connection.disconnect(nowait=nowait)
    except (exceptions.RedisError, OSError):
        pass
