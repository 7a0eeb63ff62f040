"""The connections of single exchanges, and what they rely on of httpx and httpcore."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpcore
import httpx
import pytest

from easq.client.queue import QueueClient
from easq.errors import Unreachable
from easq.net.bounded import ERRORS, BoundedTransport
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.net.websocket import WebSocket
from easq.protocol.operations import Caller, Request
from tests.client.servers import Peer, Server, answering, encrypting, reply
from tests.net.test_websocket import message

GET = Request("GET")
SETTINGS = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=10.0, environ={})
#: a host of the certificate that is not loopback, which is never proxied
HOST = "[2001:db8::1]"


def relaying(certificate: Path, target: Server) -> Server:
    """A proxy that speaks TLS and passes what comes through a tunnel on to `target`."""

    def handle(server: Server, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        with socket.create_connection(("127.0.0.1", target.port)) as behind:
            peer.send(b"HTTP/1.1 200 ok\r\n\r\n")
            behind.settimeout(0.02)
            peer.socket.settimeout(0.02)
            while not peer.stop.is_set():
                for source, sink in ((peer.socket, behind), (behind, peer.socket)):
                    with suppress(TimeoutError):
                        if not (data := source.recv(65536)):
                            return
                        sink.settimeout(30)
                        sink.sendall(data)
                        sink.settimeout(0.02)

    return encrypting(certificate, handle)


def via(proxy: Server, certificate: Path) -> NetworkSettings:
    """Settings with an https proxy; short, so that a proxy that waits fails the test soon."""
    address = f"https://127.0.0.1:{proxy.port}"
    return NetworkSettings(
        connect_timeout_s=20.0,
        request_timeout_s=20.0,
        cacert=str(certificate),
        environ={"ALL_PROXY": address},
    )


def test_an_https_host_is_reached_through_an_https_proxy(certificate: Path) -> None:
    """TLS within TLS, for large bodies on both ways, over one connection that is used again."""

    def handle(server: Server, peer: Peer) -> None:
        while (request := peer.read_request())[0]:
            server.requests.append(request)
            peer.answer(200, request[1][::-1])

    body = bytes(range(256)) * 2000
    with encrypting(certificate, handle) as server, relaying(certificate, server) as proxy:
        with Transport(via(proxy, certificate)) as transport:
            for _ in range(2):
                url = f"https://{HOST}:{server.port}/q"
                assert transport.exchange(url, Request("POST", body=body), Caller()).body == body[::-1]
    assert [head.partition(" HTTP")[0] for head in proxy.heads()] == [f"CONNECT {HOST}:{server.port}"]
    assert len(server.requests) == 2


def test_a_secure_websocket_goes_through_an_https_proxy(certificate: Path) -> None:
    def echo(_: Server, peer: Peer) -> None:
        peer.upgrade()
        opcode, data = peer.serve_pings()
        peer.send_frame(data, opcode)
        peer.serve_pings()

    with encrypting(certificate, echo) as server, relaying(certificate, server) as proxy:
        settings, url = via(proxy, certificate), f"wss://{HOST}:{server.port}/x"
        websocket = WebSocket(url, {}, settings, max_message_bytes=1000, ping_every_s=60.0)
        websocket.send(b"hello", text=True, within_s=20.0)
        assert message(websocket).data == b"hello"
        websocket.close()


def test_a_host_behind_an_https_proxy_whose_tls_drips_is_given_up(certificate: Path) -> None:
    """The time to connect bounds the handshake in the tunnel, not each of its reads."""

    def drip(_: Server, peer: Peer) -> None:
        peer.send(b"\x16\x03\x03\x40\x00\x02")
        while not peer.stop.wait(0.02) and not peer.gone():
            peer.send(b"\0")

    with Server(drip) as server, relaying(certificate, server) as proxy:
        settings = NetworkSettings(
            connect_timeout_s=0.5,
            request_timeout_s=3600.0,
            cacert=str(certificate),
            environ={"ALL_PROXY": f"https://127.0.0.1:{proxy.port}"},
        )
        with Transport(settings) as transport, pytest.raises(Unreachable, match="cannot connect"):
            transport.exchange(f"https://{HOST}:{server.port}/q", GET, Caller())


def test_without_https_no_tls_context_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the whole exchange."""

    def fail(**_: object) -> None:
        raise AssertionError("made a TLS context")

    monkeypatch.setattr("easq.net.connection.tls_context", fail)
    with answering(reply(200, b"yes")) as server, Transport(SETTINGS) as transport:
        assert transport.exchange(server.url, GET, Caller()).body == b"yes"
        with pytest.raises(AssertionError, match="made a TLS context"):
            transport.exchange(server.url.replace("http", "https", 1), GET, Caller())


def test_a_client_of_httpx_can_use_the_transport() -> None:
    """Also one that knows nothing of our deadlines."""
    with answering(reply(200, b"yes")) as server:
        with httpx.Client(transport=BoundedTransport(SETTINGS), trust_env=False) as client:
            assert client.get(server.url, params={"a": "b;c"}).text == "yes"
            with (
                pytest.raises(httpx.RemoteProtocolError),
                Server(lambda _, peer: peer.send(b"?\r\n\r\n")) as bad,
            ):
                client.get(bad.url)
    assert server.heads()[0].startswith("GET /api/predict/q?a=b%3Bc HTTP/1.1\r\n")


def test_a_queue_can_be_called_over_any_transport_of_httpx() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url == "http://h/api/predict/q?_attrs_=true"
        return httpx.Response(200, json={"meta.name": "q"})

    with QueueClient("http://h/api/predict/q", transport=httpx.MockTransport(answer)) as client:
        assert client.name() == "q"


def test_every_error_of_httpcore_has_its_twin_in_httpx() -> None:
    """Those that a pool without proxies raises; the others are their base classes, or internal."""
    public = {
        one
        for one in vars(httpcore).values()
        if isinstance(one, type) and issubclass(one, Exception) and not one.__subclasses__()
    }
    assert public - {httpcore.ConnectionNotAvailable, httpcore.ProxyError} == set(ERRORS)
    assert all(ours.__name__ == theirs.__name__ for theirs, ours in ERRORS.items())


def test_httpx_is_loaded_without_its_command_line() -> None:
    """It costs rich and pygments. When httpx alone no longer loads it, the line in easq/net/__init__.py can go."""
    shown = "import sys; print(*(name for name in ('httpx._main', 'pygments') if sys.modules.get(name)))"
    for first, loaded in (("import easq.net, httpx", ""), ("import httpx", "httpx._main pygments")):
        done = subprocess.run(
            [sys.executable, "-c", f"{first}\n{shown}"], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == loaded
