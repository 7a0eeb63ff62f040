"""One WebSocket connection over a real socket; what a watch makes of it is tested in test_watch.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easq import errors
from easq.net.failures import Closed
from easq.net.settings import NetworkSettings
from easq.net.websocket import Message, WebSocket
from tests.client.servers import Peer, Server, encrypting, eventually, without_tls

SETTINGS = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=5.0, environ={})


def upgraded(then: Callable[[Server, Peer], None]) -> Server:
    """A server that takes the handshake and does `then`."""

    def handle(server: Server, peer: Peer) -> None:
        server.requests.append((peer.upgrade(), b""))
        then(server, peer)

    return Server(handle)


def connected(server: Server, **options: Any) -> WebSocket:
    url = f"ws://127.0.0.1:{server.port}/x"
    return WebSocket(url, {}, SETTINGS, **{"max_message_bytes": 1000, "ping_every_s": 60.0, **options})


def message(socket: WebSocket) -> Message:
    """The next message."""
    while (found := socket.read()) is None:
        pass
    return found


def test_messages_are_sent_and_received_as_text_or_binary() -> None:
    def echo(_: Server, peer: Peer) -> None:
        for _turn in range(2):
            opcode, data = peer.serve_pings()
            peer.send_frame(data, opcode)
        peer.serve_pings()

    with upgraded(echo) as server:
        socket = connected(server, query=[("a", "b c")])
        for data, text in ((b"\xc3\xbc", True), (b"\xff\x00", False)):
            socket.send(data, text=text, within_s=5.0)
            assert message(socket) == Message(data, text)
        socket.close()
    assert server.heads()[0].startswith("GET /x?a=b+c HTTP/1.1\r\n")


def test_pings_between_its_parts_do_not_make_a_message_endless() -> None:
    def flood(_: Server, peer: Peer) -> None:
        peer.send(b"\x02\x7d" + bytes(125))
        while not peer.stop.is_set() and not peer.gone():
            peer.send(b"\x00\x7d" + bytes(125) + b"\x89\x02hi")

    with upgraded(flood) as server:
        socket = connected(server)
        with pytest.raises(errors.NotAQueueService, match="more than is taken in one message"):
            message(socket)
        socket.abort()


def test_each_message_may_be_as_long_as_the_limit_and_pings_count_for_nothing() -> None:
    def push(_: Server, peer: Peer) -> None:
        for _turn in range(3):
            for _ping in range(20):
                peer.send_frame(bytes(100), 9)
            peer.send_frame(bytes(900))
        while peer.read_frame()[0] not in (8, -1):
            pass

    with upgraded(push) as server:
        socket = connected(server)
        assert [len(message(socket).data) for _ in range(3)] == [900] * 3
        socket.close()


def test_a_close_tells_code_and_reason() -> None:
    with upgraded(lambda _, peer: peer.send_close(1001, "going")) as server:
        socket = connected(server)
        with pytest.raises(Closed, match=r"closed the connection \(1001 'going'\)$") as caught:
            message(socket)
        socket.abort()
    assert (caught.value.code, caught.value.reason, caught.value.exit) == (1001, "going", 6)


def test_a_large_message_to_a_slow_reader_is_sent_whole() -> None:
    """Longer than a look for bytes takes, and more than the buffers on the way hold."""
    read = threading.Event()
    data = bytes(32 * 1024 * 1024)
    got: list[int] = []

    def slow(_: Server, peer: Peer) -> None:
        read.wait(30)
        peer.socket.settimeout(30)
        left = len(data) + 14
        while left:
            left -= len(peer.socket.recv(1 << 20))
        got.append(len(data))

    with upgraded(slow) as server:
        socket = connected(server)
        threading.Timer(0.5, read.set).start()
        socket.send(data, text=False, within_s=60.0)
        assert eventually(lambda: got == [len(data)])
        socket.abort()


def test_a_message_that_does_not_go_out_in_time_is_a_lost_connection() -> None:
    with upgraded(lambda _, peer: peer.stop.wait(30) and None) as server:
        socket = connected(server)
        with pytest.raises(errors.Unreachable, match="lost before the message went out"):
            socket.send(bytes(32 * 1024 * 1024), text=False, within_s=0.3)
        socket.abort()
        server.stop.set()


def test_a_silent_server_is_accepted_if_allowed_and_pings_are_sent() -> None:
    pings: list[bytes] = []

    def silent(_: Server, peer: Peer) -> None:
        while (frame := peer.read_frame())[0] == 9:
            pings.append(frame[1])

    with upgraded(silent) as server:
        socket = connected(server, ping_every_s=0.05)
        assert eventually(lambda: socket.read() is None and len(pings) > 3)
        socket.abort()


def test_tls_where_none_is_spoken_says_what_to_check() -> None:
    with without_tls() as server:
        with pytest.raises(errors.Unreachable, match=r"^TLS with wss://.* failed: ") as caught:
            WebSocket(f"wss://127.0.0.1:{server.port}/", {}, SETTINGS, max_message_bytes=9, ping_every_s=9.0)
    assert "wrong version number" in caught.value.message
    assert caught.value.hint == "check ws/wss and the port"


def test_no_tls_where_it_is_spoken_says_so(certificate: Path) -> None:
    with encrypting(certificate, lambda _server, _peer: None) as server:
        with pytest.raises(errors.EasqError) as caught:
            connected(server)
    assert caught.value.exit in (5, 6)
    assert "ws://127.0.0.1" in caught.value.message


def test_after_a_pause_of_its_own_a_client_reads_before_it_finds_the_server_silent() -> None:
    """As after Ctrl-Z, or a suspended machine: nobody read, which is no silence of the other side."""

    def push(_: Server, peer: Peer) -> None:
        peer.send_frame(b"hello")
        peer.serve_pings()

    with upgraded(push) as server:
        socket = connected(server, silent_after_s=0.2)
        time.sleep(0.5)
        assert message(socket).data == b"hello"
        with pytest.raises(errors.Unreachable, match="nothing was heard"):
            message(socket)
        socket.abort()
