"""The contract with aiohttp: undocumented facts that `easq.server.connection` relies on.

Each test names one of these facts, and fails when aiohttp changes it. The tests use real sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from aiohttp import web

from easq.protocol.replies import Reply
from easq.server.auth import Guard
from easq.server.connection import (
    ClientConnection,
    HttpServer,
    SingleWriteResponse,
    connection_of,
    until_lost,
)
from easq.server.hooks import RequestRecord
from easq.server.listener import Listener
from easq.server.request import read_body
from tests.support.websocket import BINARY, early_frames, encode

T = TypeVar("T")
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"
CLOSE = b"Connection: close\r\n"


class _Peer:
    """One client of a listener, and the records that its hook got."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    listener: Listener

    def __init__(self) -> None:
        self.exchanges: list[RequestRecord] = []

    def is_enabled(self) -> bool:
        return True

    def __call__(self, record: RequestRecord) -> None:
        self.exchanges.append(record)

    async def ask(self, data: bytes) -> bytes:
        """Send `data`, and return all bytes until the connection ends."""
        self.writer.write(data)
        return await self.reader.read()


def exchange(
    answer: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    act: Callable[[_Peer], Awaitable[T]],
) -> T:
    """Return what `act` returns, as a client of a listener with `answer`."""

    async def body() -> T:
        peer = _Peer()
        guard = Guard.make(bound="127.0.0.1", token="", allowed_hosts=())
        peer.listener = Listener(answer, guard, hooks=[peer])
        await peer.listener.start("127.0.0.1", 0)
        peer.reader, peer.writer = await asyncio.open_connection("127.0.0.1", peer.listener.port)
        try:
            async with asyncio.timeout(20):
                return await act(peer)
        finally:
            peer.writer.close()
            await peer.listener.close()

    return asyncio.run(body())


async def _ok(_: web.BaseRequest) -> web.StreamResponse:
    return web.Response(text="ok")


async def _until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_a_server_is_called_without_arguments_for_each_connection() -> None:
    """web.Server is the protocol factory, and `connections` lists the protocols that it has made."""

    async def act(peer: _Peer) -> None:
        server = peer.listener._server
        assert isinstance(server, HttpServer)
        await _until(lambda: server.connections)
        (connection,) = server.connections
        assert type(connection) is ClientConnection

    exchange(_ok, act)


def test_a_request_knows_its_connection_until_it_is_lost() -> None:
    """`request.protocol`, `connection_made` and `connection_lost`."""
    seen: list[ClientConnection] = []

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(connection_of(request))
        await until_lost(request)
        raise ConnectionResetError

    async def act(peer: _Peer) -> None:
        peer.writer.write(GET + b"\r\n")
        await _until(lambda: seen)
        assert seen[0].address == "127.0.0.1"
        peer.writer.transport.abort()
        await _until(lambda: peer.exchanges)
        assert seen[0].lost is not None
        assert seen[0].lost.done()

    exchange(wait, act)


def test_the_end_of_each_response_is_seen() -> None:
    """`finish_response` is called once for each request, and `handle_error` for malformed input."""

    async def act(peer: _Peer) -> list[int]:
        for count in (1, 2):
            peer.writer.write(GET + b"\r\n")
            await _until(lambda count=count: len(peer.exchanges) == count)
        await peer.ask(b"NO HTTP\r\n\r\n")
        return [one.status for one in peer.exchanges]

    assert exchange(_ok, act) == [200, 200, 400]


@pytest.mark.parametrize("kind", ["single write", "whole", "streamed"])
def test_the_bytes_of_a_body_and_of_an_answer_are_counted(kind: str) -> None:
    """`content.total_bytes` and `writer.output_size` count for every kind of response."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        await read_body(request, 10_000, AssertionError)  # type: ignore[arg-type]
        if kind == "single write":
            return SingleWriteResponse(Reply(200, {}, b"x" * 1000))
        if kind == "whole":
            return web.Response(body=b"x" * 1000)
        response = web.StreamResponse()
        response.content_length = 1000
        await response.prepare(request)
        for _ in range(10):
            await response.write(b"x" * 100)
        return response

    async def act(peer: _Peer) -> None:
        peer.writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n" + b"y" * 5000)
        head = await peer.reader.readuntil(b"\r\n\r\n")
        await peer.reader.readexactly(1000)
        await _until(lambda: peer.exchanges)
        assert (peer.exchanges[0].bytes_in, peer.exchanges[0].bytes_out) == (5000, len(head) + 1000)

    exchange(answer, act)


def test_a_response_in_a_single_write_leaves_the_connection_open() -> None:
    """aiohttp calls `prepare` and `write_eof` of a response, asks for `keep_alive`, and writes nothing by itself."""

    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return SingleWriteResponse(Reply(200, {"X-A": "b"}, b"ok"))

    async def act(peer: _Peer) -> None:
        for _ in range(2):
            peer.writer.write(GET + b"\r\n")
            head = await peer.reader.readuntil(b"\r\n\r\n")
            assert head.split(b"\r\n")[:3] == [b"HTTP/1.1 200 OK", b"X-A: b", b"Content-Length: 2"]
            assert await peer.reader.readexactly(2) == b"ok"

    exchange(answer, act)


def test_a_websocket_gets_its_bytes_from_a_parser_that_can_be_wrapped() -> None:
    """`set_parser` is called when a WebSocket is prepared, and `last_byte_at` follows `data_received`."""
    heard: list[float] = []

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection = connection_of(request)
        heard.append(connection.last_byte_at)
        unmasked = asyncio.get_running_loop().create_future()
        connection.on_unmasked = lambda: unmasked.set_result(None)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert (await socket.receive()).data == b"masked"
        await unmasked
        heard.append(connection.last_byte_at)
        await socket.close()
        return socket

    async def act(peer: _Peer) -> None:
        frames = encode(BINARY, b"masked")
        peer.writer.write(early_frames("/", frames))
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.write(encode(BINARY, b"not", masked=False))
        await _until(lambda: len(heard) == 2)
        assert heard[1] > heard[0] > 0

    exchange(answer, act)


@pytest.mark.parametrize(
    ("head", "status", "text"),
    [
        (
            b"Content-Length: 1\r\nContent-Length: 2\r\n",
            400,
            b"the header Content-Length is given more than once",
        ),
        (
            b"Transfer-Encoding: chunked, x\r\n",
            400,
            b"the header Transfer-Encoding is not valid, or given more than once",
        ),
        (b"X-A: b\r\n" * 200, 431, b"a request has at most 100 headers"),
        (
            b"X-A: " + b"b" * 100_000 + b"\r\n",
            431,
            b"the request line is above 65536 bytes, or a header above 32768",
        ),
        (b"no header\r\n", 400, b"this is no HTTP/1.1 request"),
    ],
)
def test_the_parser_says_what_is_wrong_in_the_same_words(head: bytes, status: int, text: bytes) -> None:
    """The replies are made of the classes and messages of aiohttp.http_exceptions."""

    async def act(peer: _Peer) -> bytes:
        return await peer.ask(GET + head + CLOSE + b"\r\n")

    answer = exchange(_ok, act)
    assert answer.startswith(b"HTTP/1.%d %d " % (answer[7] - 48, status))
    assert text in answer.partition(b"\r\n\r\n")[2]
