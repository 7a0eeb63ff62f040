"""A listening address: connections when it is closed."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from easq.server.auth import Guard
from easq.server.listener import Listener


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_that_was_just_accepted_is_reset(turns: int) -> None:
    """This includes one that asyncio has accepted but not yet passed to the server."""

    async def nothing(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response()

    async def body() -> None:
        listener = Listener(nothing, Guard.make(bound="127.0.0.1", token="", allowed_hosts=()))
        await listener.start("127.0.0.1", 0)
        with socket.socket() as peer:
            peer.setblocking(False)
            peer.connect_ex((listener.ip, listener.port))
            for _ in range(turns):
                await asyncio.sleep(0)
            await listener.abort()
            async with asyncio.timeout(10):
                try:
                    assert await asyncio.get_running_loop().sock_recv(peer, 1) == b""
                except ConnectionError:
                    pass

    asyncio.run(body())
