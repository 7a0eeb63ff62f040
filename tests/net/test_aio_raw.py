"""Requests over aiohttp: which are repeated, and what became of those without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp
import pytest

from easq import errors
from easq.net.aio_raw import RawClient, translate
from easq.net.failures import Incomplete, Unanswered, Unconnected
from tests.client.servers import Peer, Server


def counting(*closes_at: int) -> Server:
    """A server that answers, and closes its connection without an answer at the requests of these numbers."""

    def handle(server: Server, peer: Peer) -> None:
        while (request := peer.read_request())[0]:
            server.requests.append(request)
            if len(server.requests) in closes_at:
                return
            peer.answer(200, b"%d" % len(server.requests))

    return Server(handle)


async def fetch(client: RawClient, url: str, body: bytes = b"x") -> bytes:
    reply = await client.fetch("POST", url, [("A", "b")], body, max_answer=1000)
    return bytes(reply.body)


def with_client(steps: Callable[[RawClient], object]) -> None:
    async def main() -> None:
        client = RawClient(idle_s=10.0)
        try:
            await steps(client)  # type: ignore[misc]
        finally:
            await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("body", [b"x", b"x" * 300_000])
def test_a_request_is_repeated_once_when_a_reused_connection_ended(body: bytes) -> None:
    async def steps(client: RawClient) -> None:
        assert await fetch(client, server.url, body) == b"1"
        assert await fetch(client, server.url, body) == b"3"

    with counting(2) as server:
        with_client(steps)
    assert [len(sent) for _, sent in server.requests] == [len(body)] * 3
    assert server.connections == 2


def test_a_request_is_not_sent_a_third_time() -> None:
    """Each time may have ended a process of the server; other connections that are open are not tried."""

    async def steps(client: RawClient) -> None:
        await asyncio.gather(fetch(client, server.url), fetch(client, server.url))
        with pytest.raises(errors.Unreachable, match="lost"):
            await fetch(client, server.url)

    with counting(3, 4, 5) as server:
        with_client(steps)
    assert len(server.requests) == 4


def test_a_new_connection_that_ends_is_final() -> None:
    async def steps(client: RawClient) -> None:
        with pytest.raises(errors.Unreachable, match="lost"):
            await fetch(client, server.url)

    with counting(1) as server:
        with_client(steps)
    assert len(server.requests) == 1


def test_a_closed_client_sends_nothing() -> None:
    async def main() -> None:
        client = RawClient(idle_s=10.0)
        await client.close()
        with pytest.raises(errors.Unreachable):
            await fetch(client, "http://127.0.0.1:9/")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (TimeoutError(), Unanswered),
        (aiohttp.ConnectionTimeoutError(), Unconnected),
        (aiohttp.ClientPayloadError(), Incomplete),
        (aiohttp.ServerDisconnectedError(), errors.Unreachable),
        (aiohttp.ClientOSError(), errors.Unreachable),
        (ConnectionResetError(), errors.Unreachable),
        (aiohttp.InvalidURL("x"), errors.ConfigError),
        (ValueError("x"), errors.UsageError),
    ],
)
def test_every_failure_of_aiohttp_is_one_of_ours(raised: Exception, kind: type[errors.EasqError]) -> None:
    error = translate(raised, "http://h/q")
    assert type(error) is kind
    assert "http://h/q" in error.message
