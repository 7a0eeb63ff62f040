"""Slow clients, with or without intent. A client that holds a connection and makes no progress loses it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from easq.server.server import Server
from easq.server.watch import Liveness
from easq.storage.memory import MemoryStorage
from tests.conftest import OpenCloud, Serve
from tests.server.conftest import Open
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.waiting import eventually
from tests.support.websocket import CLOSE, PING, PONG, Refused, encode, watch

#: file in which Linux lists its connections and their timers
TABLE = Path("/proc/net/tcp")


@pytest.fixture
def hurried(start: Open, monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Return the queue of a service that waits a tenth of a second for the head of a request."""
    monkeypatch.setattr("easq.server.listener.CHECK_EVERY_S", 0.02)
    return start().queue


@pytest.mark.parametrize("before", [b"", b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
def test_an_incomplete_head_times_out(hurried: Stream, before: bytes) -> None:
    """The number of received bytes does not matter, nor whether the request is the first of its connection."""
    with Connection(hurried.port) as connection:
        if before:
            connection.send(before.replace(b"{path}", hurried.path.encode()))
            assert connection.read_answer().status == 200
        head = iter(b"GET / HTTP/1.1\r\nX-Slow: " + b"x" * 10_000)
        while _takes(connection, bytes([next(head)])):
            time.sleep(0.01)  # the pace of the client
    assert hurried.put() == 1


def test_a_waiting_client_is_not_slow(hurried: Stream) -> None:
    """An idle connection, a long poll and a watch last much longer than a head may."""
    with Connection(hurried.port) as idle, Connection(hurried.port) as poll, watch(hurried) as watching:
        assert idle.ask("POST", hurried.path, (), b"x").status == 200
        assert watching.indexes(1) == [1]
        poll.send_request("GET", hurried.target(_index_=9, _timeout_="1s", _auto_delete_="false"))
        assert poll.read_answer().status == 204
        assert idle.ask("POST", hurried.path, (), b"x").status == 200
        watching.send(PING, b"here")
        while (frame := watching.read()).opcode != PONG:
            pass
        assert frame.payload == b"here"


def test_an_incomplete_body_times_out(hurried: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single bytes do not extend the time limit. Nothing is stored."""
    monkeypatch.setattr("easq.server.request._BODY_DEADLINE_S", 0.3)
    with Connection(hurried.port) as connection:
        connection.send_request("POST", hurried.path, [("Content-Length", "100000")])
        while not select.select([connection.socket], [], [], 0.01)[0]:
            connection.send(b"x")
        answer = connection.read_answer()
    assert (answer.status, answer.text) == (408, "the body did not come in time")
    assert hurried.length() == 0


def test_a_body_that_waits_while_the_service_stands_still_is_taken(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easq.server.request._BODY_DEADLINE_S", 1.0)
    local = start()

    async def stand_still(_: Server) -> None:
        time.sleep(1.5)  # the whole service, as if it was stopped

    with Connection(local.port) as connection:
        expecting = [("Content-Length", "20"), ("Expect", "100-continue")]
        connection.send_request("POST", local.queue.path, expecting)
        assert connection.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(b"x" * 10)
        rest = threading.Timer(0.3, connection.send, (b"x" * 10,))
        rest.start()
        local.do(stand_still)
        rest.join()
        assert connection.read_answer().status == 200


@pytest.mark.parametrize("declared", [True, False], ids=["of known length", "in chunks"])
def test_a_slow_and_steady_body_is_accepted(
    hurried: Stream, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    """It takes longer than a head may, and longer than a body that stalls."""
    monkeypatch.setattr("easq.server.request._BODY_DEADLINE_S", 1.5)
    monkeypatch.setattr("easq.server.request._BODY_RATE", 100)
    piece, count = b"x" * 1000, 10
    length = ("Content-Length", str(len(piece) * count)) if declared else ("Transfer-Encoding", "chunked")
    with Connection(hurried.port) as connection:
        connection.send_request("POST", hurried.path, [length])
        for _ in range(count):
            connection.send(piece if declared else b"%x\r\n%b\r\n" % (len(piece), piece))
            time.sleep(0.2)  # the network that is played
        connection.send(b"" if declared else b"0\r\n\r\n")
        assert connection.read_answer().status == 200
    (item,) = hurried.get(_auto_delete_="false")
    assert item.data == piece * count


@pytest.mark.skipif(
    not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the system has no deadline for what is written"
)
def test_an_unread_answer_times_out(start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The items that it claimed are put back, although the client is still connected."""
    monkeypatch.setattr("easq.server.listener._WRITE_DEADLINE_S", 1.0)
    queue = start().queue
    for _ in range(20):
        queue.put(b"x" * 1_000_000)
    with Connection(queue.port) as connection:
        connection.send_request("GET", queue.target(_length_=20, _raw_="false"), [PROTOBUF])
        connection.peek(1)  # the answer has begun: all of it is claimed
        eventually(lambda: len(queue.get(_length_=20, _auto_delete_="false", _raw_="false")) == 20)


@pytest.mark.skipif(not TABLE.exists(), reason="the system has no table of its connections")
def test_a_host_that_vanishes_is_detected_after_30_s(cloud: OpenCloud) -> None:
    """The system probes idle connections at the service's address and at an instance's."""
    running = cloud("echo")
    for port in (running.port, *running.ports):
        with Connection(port) as connection:
            connection.send(b"GET / HTTP/1.1\r\n")
            ours = connection.socket.getsockname()[1]
            eventually(partial(is_probed_soon, port, ours))

    async def options(server: Server) -> set[tuple[int, int, int]]:
        assert server._listener is not None
        assert server._listener._server is not None
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        held = [
            one.transport.get_extra_info("socket")
            for one in server._listener._server.connections
            if one.transport
        ]
        return {tuple(one.getsockopt(socket.IPPROTO_TCP, name) for name in names) for one in held}

    with Connection(running.port) as connection:
        connection.ask("GET", "/healthz")
        ((idle, interval, count),) = running.do(options)
    assert idle + interval * count == 30


def is_probed_soon(local: int, remote: int) -> bool:
    """Return whether the system probes the connection between two ports of this machine within 10 s."""
    for line in TABLE.read_text().splitlines()[1:]:
        _, here, there, _, _, timer, *_ = line.split()
        if (int(here[-4:], 16), int(there[-4:], 16)) == (local, remote):
            kind, due = timer.split(":")
            return kind == "02" and int(due, 16) <= 10 * os.sysconf("SC_CLK_TCK")
    return False


def test_unread_answers_do_not_accumulate(start: Open) -> None:
    """The service stops reading from a client that commits and reads no answers."""
    service = start()

    async def unsent(server: Server) -> int:
        assert server._listener is not None
        assert server._listener._server is not None
        transports = [connection.transport for connection in server._listener._server.connections]
        return sum(transport.get_write_buffer_size() for transport in transports if transport is not None)

    with Connection(service.port) as connection:
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        target = service.queue.target(_indexes_=1)
        commit = f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n".encode()
        flood = threading.Thread(target=_send, args=(connection.socket, commit * 60_000))
        flood.start()
        for _ in range(40):
            assert service.do(unsent) < 1024**2
            time.sleep(0.1)  # the time in which they would pile up
        connection.socket.shutdown(socket.SHUT_RDWR)
        flood.join()


def _send(line: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        line.sendall(data)


def test_a_watcher_that_reads_slowly_and_steadily_is_not_lost(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its frames take much longer than the time limit of a watcher that reads nothing."""
    monkeypatch.setattr("easq.server.watch.WRITE_DEADLINE_S", 1.0)
    monkeypatch.setattr("easq.storage.embedded._FETCH_BYTES", 1 << 30)
    queue = start(liveness=Liveness(60.0)).queue
    for _ in range(30):
        queue.put(b"x" * 1_000_000)
    with watch(queue, _window_=30) as watching:
        for index in range(1, 31):
            assert watching.indexes(1) == [index]
            time.sleep(0.2)  # the network that is played


def test_a_watcher_that_sends_too_many_messages_is_closed(queue: Stream) -> None:
    """Hundreds of pings at once are answered, but not an unlimited number. Other consumers get its items at once."""
    assert queue.put() == 1
    me = queue.as_consumer("u")
    with watch(me) as watching:
        assert watching.indexes(1) == [1]
        for _ in range(200):
            watching.send(PING, b"here")
        for _ in range(200):
            while watching.read().opcode != PONG:
                pass
        flood = threading.Thread(target=_flood, args=(watching.connection.socket,))
        flood.start()
        while (frame := watching.read()).opcode != CLOSE:
            pass
        flood.join()
    assert frame.payload[:2] == (1008).to_bytes(2, "big")
    with watch(queue.as_consumer("other")) as other:
        assert other.indexes(1) == [1]


def _flood(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            line.sendall(encode(PING, b"here") * 100)


@pytest.mark.parametrize("leave", [Connection.close, Connection.reset], ids=["closed", "reset"])
def test_a_long_poll_whose_caller_left_ends(start: Open, leave: Callable[[Connection], None]) -> None:
    """It ends at once, before its timeout or the next item. Other readers get the item."""
    service = start()

    async def waits(server: Server) -> bool:
        storage = server._storage
        assert isinstance(storage, MemoryStorage)
        return "q" in storage._long_polls

    with ExitStack() as stack:
        left = [stack.enter_context(Connection(service.port)) for _ in range(5)]
        for one in left:
            one.send_request("GET", service.queue.target(_timeout_="10m"))
        eventually(lambda: service.do(waits))
        for one in left:
            leave(one)
    eventually(lambda: not service.do(waits))
    assert service.queue.put(b"x") == 1
    assert service.queue.length() == 1


def test_a_long_poll_waits_for_an_hour_at_most(start: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easq.server.queue.MAX_WAIT_S", 0.5)
    assert start().queue.ask("GET", _timeout_="10h").status == 204


@pytest.mark.long
def test_five_hundred_slow_clients_are_dropped_and_delay_nobody(serve: Serve) -> None:
    """Each sends one byte a second, while other clients put and get."""
    queue = serve().stream()
    tricklers = [Connection(queue.port) for _ in range(500)]
    left, puts = tricklers, 0
    for byte in b"POST / HTTP/1.1\r\nX-Slow: " + b"x" * 60:
        left = [connection for connection in left if _takes(connection, bytes([byte]))]
        for _ in range(20):
            puts += queue.put() > 0
            time.sleep(0.05)  # the pace of the clients
        if not left:
            break
    for connection in tricklers:
        connection.close()
    assert left == []
    assert queue.length() == puts


def _takes(connection: Connection, data: bytes) -> bool:
    try:
        connection.send(data)
    except OSError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")
def test_connections_beyond_the_limit_of_open_files_wait_and_are_logged_once(serve: Serve) -> None:
    """The limit is the system's hard limit. Connections that are open are still served."""
    service = serve()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert resource.prlimit(service.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (100, hard))
    path = service.stream().path
    connections = [Connection(service.port) for _ in range(150)]
    eventually(lambda: "none can be taken: Too many open files" in service.log.read_text())
    assert connections[0].ask("POST", path, (), b"x").status == 200
    connections[-1].send_request("POST", path, (), b"x")
    assert connections[-1].is_quiet(2.0)  # two more attempts to take it
    for connection in connections[:100]:
        connection.close()
    assert connections[-1].read_answer().status == 200
    for connection in connections[100:]:
        connection.close()
    said = service.log.read_text()
    assert said.count("none can be taken") == 1
    assert "Traceback" not in said


def test_the_number_of_watchers_is_limited(start: Open) -> None:
    """The limit counts both transports and all queues. A watcher that leaves makes room."""
    queue = start(max_watchers=2).queue
    with watch(queue.as_consumer("a")) as first, watch(queue.sink.as_consumer("b")):
        with pytest.raises(Refused) as refused:
            watch(queue.as_consumer("c"))
        assert refused.value.answer.status == 503
        assert "--max-watchers" in refused.value.answer.text
        assert queue.as_consumer("c").ask("GET", [PROTOBUF], _watch_="true").status == 503
        assert queue.put() == 1
        first.leave()
        eventually(lambda: _may_watch(queue.as_consumer("c")))


def _may_watch(stream: Stream) -> bool:
    try:
        watch(stream).connection.close()
    except Refused:
        return False
    return True


def test_the_number_of_connections_from_an_address_is_limited(
    start: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """Open connections stay, and a closed one makes room. One warning is logged."""
    service = start(max_connections=3)
    target = service.queue.target(_attrs_="true")
    with Connection(service.port) as first, Connection(service.port) as second:
        assert first.ask("GET", target).status == second.ask("GET", target).status == 200
        with Connection(service.port) as third:
            assert third.ask("GET", target).status == 200
            for _ in range(3):
                with Connection(service.port) as fourth:
                    assert fourth.ended()
        eventually(lambda: _is_answered(service.port, target))
        assert first.ask("GET", target).status == 200
    said = [record.getMessage() for record in caplog.records if "--max-connections" in record.getMessage()]
    assert said == ["127.0.0.1 has 3 connections, the limit (--max-connections): further ones are closed"]


def _is_answered(port: int, target: str) -> bool:
    with Connection(port) as connection, contextlib.suppress(OSError, EOFError):
        return connection.ask("GET", target).status == 200
    return False
