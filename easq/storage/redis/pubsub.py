"""Subscribes to channels of one Redis. The messages are hints, never the only way to learn of something."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from easq.storage.redis.driver import ConnectionLost, ErrorReply, RedisConnection

log = logging.getLogger(__name__)

#: called with the bytes that were published
MessageHandler: TypeAlias = Callable[[bytes], None]

#: seconds without any reply, although the connection is pinged each second, after which it is lost
_SILENCE_S, _PING_S = 3.0, 1.0
#: pause before connecting again, in seconds
_PAUSE_S = (0.1, 0.5)
#: how long `add` waits for the confirmation of a subscription, in seconds
_CONFIRM_S = 1.0


class ChannelSubscriber:
    """Subscribes to channels until it is closed; connects again after each loss."""

    def __init__(
        self, connection: Callable[[], RedisConnection], handlers: Mapping[str, Sequence[MessageHandler]]
    ) -> None:
        """`connection` makes a connection that is not open yet; `handlers` by channel get the messages."""
        self._make = connection
        self._handlers = handlers
        #: channel -> set once the subscription is confirmed
        self._channels: dict[str, asyncio.Event] = {}
        self._connection: RedisConnection | None = None
        self._received_at = 0.0
        self._task = asyncio.create_task(self._run())

    def request(self, channel: str) -> None:
        """Subscribe to the channel from the next connection on."""
        self._channels.setdefault(channel, asyncio.Event())

    async def add(self, channel: str) -> None:
        """Subscribe to the channel; while the connection is away, from the next one on."""
        self.request(channel)
        confirmed = self._channels[channel]
        try:
            if self._connection is not None and not confirmed.is_set():
                await self._subscribe(self._connection, [channel])
            async with asyncio.timeout(_CONFIRM_S):
                await confirmed.wait()
        except (ConnectionLost, TimeoutError) as error:
            log.debug("%s is not subscribed yet: %r", channel, error)

    async def close(self) -> None:
        """End all subscriptions."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            connection = self._make()
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await connection.open()
                    await self._subscribe(connection, list(self._channels))
                self._connection = connection
                await self._receive(connection)
            except (ConnectionLost, ErrorReply, TimeoutError) as error:
                log.debug("the subscription is lost: %r", error)
            finally:
                self._connection = None
                for confirmed in self._channels.values():
                    confirmed.clear()
                await connection.close(nowait=False)
            await asyncio.sleep(random.uniform(*_PAUSE_S))

    async def _subscribe(self, connection: RedisConnection, channels: list[str]) -> None:
        """Use both commands: scripts of a Cluster publish in the slot of the channel, others anywhere."""
        commands = [(verb, channel) for channel in channels for verb in ("SUBSCRIBE", "SSUBSCRIBE")]
        await connection.send(connection.pack(commands))

    async def _receive(self, connection: RedisConnection) -> None:
        """Pass messages on until the connection ends. Raises what ended it."""
        self._received_at = asyncio.get_running_loop().time()
        pings = asyncio.create_task(self._ping(connection))
        try:
            while True:
                reply = await connection.receive()
                if isinstance(reply, ErrorReply):
                    log.warning("wake-ups from Redis come late, by polling: %s", reply)
                    continue
                self._received_at = asyncio.get_running_loop().time()
                match reply:
                    case [b"message" | b"smessage", channel, data]:
                        for handler in self._handlers.get(channel.decode(), ()):
                            handler(data)
                    case [b"ssubscribe", channel, _] if channel.decode() in self._channels:
                        self._channels[channel.decode()].set()
        finally:
            pings.cancel()

    async def _ping(self, connection: RedisConnection) -> None:
        """Close the connection once nothing was received on it for too long."""
        loop = asyncio.get_running_loop()
        while loop.time() < self._received_at + _SILENCE_S:
            await asyncio.sleep(_PING_S)
            try:
                await connection.send(connection.pack([("PING",)]))
            except ConnectionLost:
                return
        await connection.close(nowait=True)
