import socket
import time

import pytest

from easq import errors
from easq.net.connection import Connection, open_connection
from easq.net.settings import NetworkSettings
from tests.client.servers import Peer, Server, free_port

SETTINGS = NetworkSettings(connect_timeout_s=2.0, environ={})


def test_reading_ends_by_the_deadline_and_within_the_budget() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, "http://user:secret@h/q?a=b")
        connection.budget = 5
        theirs.sendall(b"hello!")
        assert connection.recv(5) == b"hello"
        with pytest.raises(
            errors.NotAQueueService, match=r"^http://h/q sends more than is taken in one message$"
        ):
            connection.recv(5)
        connection.until = time.monotonic() + 0.05
        for _ in range(2):
            with pytest.raises(TimeoutError):
                connection.recv(5)
        with pytest.raises(TimeoutError):
            connection.send(b"x")
        connection.until = None
        connection.settimeout(0.01)
        with pytest.raises(TimeoutError):
            connection.recv(5)
        assert connection.gettimeout() == 0.01
        assert connection.fileno() == ours.fileno()


def test_the_time_of_the_last_byte_is_recorded() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = Connection(ours, "http://h")
        connection.budget, connection.heard_at = 5, 0.0
        theirs.sendall(b"x")
        connection.recv(1)
        assert connection.heard_at > 0


def test_a_connection_that_fails_says_why() -> None:
    port = free_port()
    with pytest.raises(errors.Unreachable, match=rf"^connection to http://127\.0\.0\.1:{port}/q refused$"):
        open_connection(f"http://127.0.0.1:{port}/q", SETTINGS)
    with pytest.raises(errors.Unreachable, match="does not resolve"):
        open_connection("http://no-such-host.invalid/q", SETTINGS)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 407 no\r\n\r\n", b"hello\r\n\r\n", b"x" * 20_000])
def test_a_proxy_that_does_not_connect_is_named(said: bytes) -> None:
    def proxy(_: Server, peer: Peer) -> None:
        peer.read_request()
        peer.send(said)
        peer.socket.shutdown(socket.SHUT_WR)

    with Server(proxy) as server:
        settings = NetworkSettings(
            connect_timeout_s=20.0, environ={"HTTP_PROXY": f"http://u:secret@127.0.0.1:{server.port}"}
        )
        with pytest.raises(
            errors.Unreachable,
            match=rf"^the proxy http://127\.0\.0\.1:{server.port} on the way to .* refused: ",
        ) as caught:
            open_connection("http://queue.example.test/q", settings)
    assert "secret" not in caught.value.message


def test_a_proxy_is_told_the_host_as_dns_has_it() -> None:
    def proxy(server: Server, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.send(b"HTTP/1.1 200 ok\r\n\r\nrest")

    with Server(proxy) as server:
        settings = NetworkSettings(
            connect_timeout_s=2.0, environ={"HTTP_PROXY": f"http://127.0.0.1:{server.port}"}
        )
        connection = open_connection("http://büro.example.test:81/q", settings)
        connection.budget = 4
        assert connection.recv(4) == b"rest"
        connection.close()
    assert server.heads()[0].startswith("CONNECT xn--bro-hoa.example.test:81 HTTP/1.1\r\n")
