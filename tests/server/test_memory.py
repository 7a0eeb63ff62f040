"""Memory: broken connections and invalid input leave nothing behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import os
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from easq.server.queue import QueuePolicy
from easq.storage.base import Timing
from tests.conftest import Serve
from tests.server.conftest import Open
from tests.server.test_fuzz import SEED, random_target
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.process import Service
from tests.support.waiting import eventually
from tests.support.websocket import CLOSE, watch

#: memory that the allocator may retain, in KiB; a leak of 2 KiB a request would be twice as much
_SLACK_KIB = 8 * 1024
_REQUESTS, _WATCHES = 2000, 150

#: growth of memory that many broken connections may cause, in KiB
_BOUND_KIB = 64 * 1024
_MIB = 1024**2

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")


def resident_kib(service: Service) -> int:
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def bad_requests(stream: Stream, chance: random.Random, count: int) -> None:
    """Send requests with edge values, many of them broken off in the middle."""
    for number in range(count):
        with Connection(stream.port) as connection, contextlib.suppress(OSError, EOFError):
            method = chance.choice(("GET", "PUT", "DELETE", "BREW", "GET"))
            connection.send_request(method, random_target(chance, stream.path), (), None)
            if number % 4:
                connection.read_answer(has_body=True)


def bad_frames(stream: Stream, chance: random.Random, count: int) -> None:
    """Open watches that end with an invalid frame, one that declares 2^62 bytes, a reset, or silence."""
    frames = [
        b"\xff\xff",
        b"\x82\xff" + struct.pack(">Q", 1 << 62) + b"mask",
        b"\x80\x80mask",
        b"\x89\xfe\x01\x00mask" + bytes(256),
        b"\x01\x81mask\xff" * 50,
        b"",
    ]
    for number in range(count):
        watching = watch(stream.as_consumer(f"u{number % 7}"))
        with contextlib.suppress(OSError):
            watching.connection.send(chance.choice(frames))
        watching.reset()


@on_linux
@pytest.mark.long
def test_bad_requests_and_frames_leave_nothing_behind(serve: Serve) -> None:
    service = serve("--leave-grace", "0s", storage="memory:")
    stream = service.stream()
    chance = random.Random(SEED)
    bad_requests(stream, chance, _REQUESTS)
    bad_frames(stream, chance, _WATCHES)
    before = resident_kib(service)
    for _ in range(2):
        bad_requests(stream, chance, _REQUESTS)
        bad_frames(stream, chance, _WATCHES)
    grown = resident_kib(service) - before
    assert grown < _SLACK_KIB, f"{grown} KiB more than {before} KiB"
    assert stream.put(b"still alive") > 0


# -- connections that break in the middle --------------------------------------------------------------------------

#: breaks one connection while a payload of a given size in bytes is in flight on it; the number names the consumer
Break: TypeAlias = Callable[[Stream, int, int], None]


def stream_closed(stream: Stream, size: int, number: int) -> None:
    """Watch over HTTP, and close the connection."""
    with Connection(stream.port) as connection:
        identity = stream.as_consumer(f"u{number}").headers
        connection.send_request("GET", stream.target(_watch_="true"), [PROTOBUF, *identity])
        connection.peek(size // 14)


def watch_reset(stream: Stream, size: int, number: int) -> None:
    """Watch over a WebSocket, and reset the connection."""
    with watch(stream.as_consumer(f"u{number}")) as watching:
        watching.connection.peek(size // 14)
        watching.reset()


def watch_closed(stream: Stream, size: int, number: int) -> None:
    """Watch over a WebSocket that the service closes, and disconnect before answering the close frame."""
    with watch(stream.as_consumer(f"u{number}")) as watching:
        watching.connection.peek(size // 14)
        watching.send(CLOSE, b"\x03\xe8")
        watching.reset()


def get_reset(stream: Stream, size: int, _: int, takes: str = "false") -> None:
    """Get three items, and reset the connection."""
    with Connection(stream.port) as connection:
        target = stream.target(_length_=3, _raw_="false", _auto_delete_=takes)
        connection.send_request("GET", target, [PROTOBUF])
        connection.peek(size // 14)
        connection.reset()


def take_reset(stream: Stream, size: int, number: int) -> None:
    """Get and delete three items, and reset the connection: they are put back."""
    eventually(lambda: stream.length() == 3)
    get_reset(stream, size, number, takes="true")


def put_reset(stream: Stream, size: int, number: int) -> None:
    """Send half the body of a put, of declared length or in chunks."""
    length = ("Content-Length", str(size)) if number % 2 else ("Transfer-Encoding", "chunked")
    with Connection(stream.port) as connection:
        connection.send_request("POST", stream.path, [length])
        connection.send((b"" if number % 2 else b"%x\r\n" % size) + bytes(size // 2))
        connection.reset()


BREAKS = [stream_closed, watch_reset, get_reset, put_reset]


@contextlib.contextmanager
def garbage() -> Iterator[list[object]]:
    """Yield the objects that only the garbage collector could free. The collector is disabled meanwhile."""
    found: list[object] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def idle(stream: Stream) -> bool:
    """Return whether no consumer of the stream is connected."""
    return all("Status: Running" not in line for line in stream.attributes().values())


@pytest.mark.parametrize("broken", [*BREAKS, take_reset, watch_closed], ids=lambda one: one.__name__)
def test_a_broken_connection_leaves_nothing_to_the_collector(start: Open, broken: Break) -> None:
    """The exception is asyncio's transport, which refers to itself on Python 3.11: seven small objects."""
    stream = start(policy=QueuePolicy(max_failures=0), timing=Timing(leave_grace_s=0.0)).queue
    count, size = 5, 4 * _MIB
    for _ in range(3):
        stream.put(bytes(size))
    broken(stream, size, 99)
    with garbage() as found:
        for number in range(count):
            broken(stream, size, number)
        time.sleep(0.2)  # the connection's last callbacks
        eventually(lambda: idle(stream))
    held = [one for item in found for one in gc.get_referents(item) if isinstance(one, (bytes, bytearray))]
    assert [len(one) for one in held if len(one) > 1024] == []
    found = [one for one in found if not isinstance(one, (bytes, bytearray))]
    assert len(found) < 12 * (count + 3), found


@pytest.mark.parametrize("door", ["websocket", "stream"])
def test_a_watcher_that_reads_nothing_leaves_nothing_to_the_collector(
    start: Open, monkeypatch: pytest.MonkeyPatch, door: str
) -> None:
    """The service drops it at the time limit of a write."""
    monkeypatch.setattr("easq.server.watch.WRITE_DEADLINE_S", 0.1)
    monkeypatch.setattr("easq.server.watch._WRITE_RATE", 1 << 40)
    stream = start(policy=QueuePolicy(max_failures=0), timing=Timing(leave_grace_s=0.0)).queue.as_consumer(
        "u"
    )
    stream.put(bytes(8 * _MIB))
    with garbage() as found:
        if door == "websocket":
            connection = watch(stream).connection
        else:
            connection = Connection(stream.port)
            connection.send_request("GET", stream.target(_watch_="true"), [PROTOBUF, *stream.headers])
            connection.peek(1)  # the push has begun
        eventually(lambda: idle(stream))
        connection.close()
    held = [one for item in found for one in gc.get_referents(item) if isinstance(one, (bytes, bytearray))]
    assert [len(one) for one in held if len(one) > 1024] == []


@on_linux
def test_connections_that_break_add_no_memory(serve: Serve) -> None:
    """Together they have more than 300 MiB in flight."""
    service = serve("--max-delivery", "0", "--leave-grace", "0s", storage="memory:")
    stream = service.stream()
    for _ in range(3):
        stream.put(bytes(8 * _MIB))
    for broken in BREAKS:
        broken(stream, 8 * _MIB, 99)
    before = resident_kib(service)
    for broken in BREAKS:
        for number in range(5):
            broken(stream, 8 * _MIB, number)
    eventually(lambda: resident_kib(service) - before < _BOUND_KIB)
    assert stream.put(b"still alive") > 0


@on_linux
@pytest.mark.long
@pytest.mark.parametrize("storage", ["memory:", None], ids=["memory", "sqlite"])
@pytest.mark.parametrize("broken", BREAKS, ids=lambda one: one.__name__)
def test_two_hundred_connections_that_break_add_no_memory(
    serve: Serve, broken: Break, storage: str | None
) -> None:
    service = serve("--max-delivery", "0", "--leave-grace", "0s", storage=storage)
    stream = service.stream()
    for _ in range(3):
        stream.put(bytes(8 * _MIB))
    broken(stream, 8 * _MIB, 99)
    before = resident_kib(service)
    for number in range(200):
        broken(stream, 8 * _MIB, number)
    eventually(lambda: resident_kib(service) - before < _BOUND_KIB)
    time.sleep(10)
    assert resident_kib(service) - before < _BOUND_KIB


@on_linux
def test_watchers_reset_together_add_no_memory(serve: Serve) -> None:
    """All are reset in the middle of a frame of 8 MiB. glibc returns smaller frames by itself."""
    service = serve("--max-delivery", "0", "--leave-grace", "0s", storage="memory:")
    stream = service.stream()
    stream.put(bytes(8 * _MIB))
    watch_reset(stream, 8 * _MIB, 99)
    before = resident_kib(service)
    watching = [watch(stream.as_consumer("u", f"g{number}")) for number in range(40)]
    for one in watching:
        one.connection.peek(1)
    eventually(lambda: resident_kib(service) - before > _BOUND_KIB)
    for one in watching:
        one.reset()
    eventually(lambda: resident_kib(service) - before < _BOUND_KIB)


# -- consumers that connect again and again ------------------------------------------------------------------------


async def _reconnect(port: int, user: str, count: int) -> None:
    """Connect a consumer `count` times. End each connection with a reset, a FIN, or a close frame and a FIN."""
    handshake = (
        "GET /api/predict/qservice?_watch_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n"
        f"Sec-WebSocket-Version: 13\r\nX-EAS-QueueService-Uid: {user}\r\n\r\n"
    ).encode()
    for number in range(count):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(handshake)
        await reader.readuntil(b"\r\n\r\n")
        if number % 3 == 0:
            writer.transport.abort()
        elif number % 3 == 1:
            writer.write(b"\x88\x82\0\0\0\0\x03\xe8")
        writer.close()


@on_linux
@pytest.mark.long
def test_sixty_thousand_reconnects_add_no_memory(serve: Serve) -> None:
    """300 consumers connect as fast as they are answered."""
    service = serve("--leave-grace", "0s", storage="memory:")

    async def rounds(count: int) -> None:
        await asyncio.gather(*(_reconnect(service.port, f"u{number}", count) for number in range(300)))

    asyncio.run(rounds(40))
    before = resident_kib(service)
    asyncio.run(rounds(200))
    assert resident_kib(service) - before < _SLACK_KIB
