"""A peer that sends a byte now and then holds nobody longer than a silent one, wherever in a connection it does so.

A request may take an hour here, and connecting a third of a second: whoever waits for the wrong one of them waits for
the end of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest

from easq import errors
from easq.client.queue import QueueClient
from easq.client.watch import Watcher
from easq.net.connection import try_addresses
from easq.net.failures import Unconnected
from easq.net.http import Transport
from easq.net.pipeline import Pipeline, Task, asking
from easq.net.settings import NetworkSettings
from easq.prediction.conversation import Conversation
from easq.protocol.operations import Caller, Put, Watch
from easq.protocol.replies import read_put
from tests.client.servers import Peer, Server, Speaking

Way: TypeAlias = Callable[[str, NetworkSettings], object]


def dripping(first: bytes, then: bytes) -> Server:
    """A server that answers with `first`, and then with the byte `then` again and again."""

    def handle(_: Server, peer: Peer) -> None:
        peer.send(first)
        while not peer.stop.wait(0.02) and not peer.gone():
            peer.send(then)

    return Server(handle)


def single(url: str, settings: NetworkSettings) -> None:
    with Transport(settings) as transport:
        QueueClient.over(transport, url, Caller()).attributes()


def bulk(url: str, settings: NetworkSettings) -> None:
    run = Pipeline(settings, workers=1)
    for outcomes in run.run(iter([Task(0, Put(b"x"))]), asking(url, Caller(), settings, read_put)):
        assert outcomes[0].error is not None
        raise outcomes[0].error


def watch(url: str, settings: NetworkSettings) -> None:
    Watcher(url, Caller(), Watch(), settings).__enter__()


def watch_http(url: str, settings: NetworkSettings) -> None:
    Watcher(url, Caller(), Watch(upgrade=False), settings).__enter__()


def conversation(url: str, settings: NetworkSettings) -> None:
    with Conversation(url.replace("http", "ws", 1), {}, settings, text=True) as one:
        one.ask(b"x", timeout_s=0.3)


WAYS: list[Way] = [single, bulk, watch, watch_http, conversation]
LIMITS = {"connect_timeout_s": 0.3, "request_timeout_s": 3600.0}


@pytest.mark.parametrize(
    ("scheme", "way"), [*(("https", way) for way in WAYS), ("http", watch), ("http", conversation)]
)
def test_a_proxy_that_drips_its_answer(way: Way, scheme: str) -> None:
    """It is asked for a tunnel, which a WebSocket needs in any case."""
    with dripping(b"HTTP/1.1 200 Connected\r\nX-A: a", b"a") as proxy:
        settings = NetworkSettings(environ={"ALL_PROXY": f"http://127.0.0.1:{proxy.port}"}, **LIMITS)
        with pytest.raises(Unconnected, match=r"cannot connect to the proxy .*: no answer in time$|attempts"):
            way(f"{scheme}://queue.example.test/q", settings)


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_drips_its_side_of_tls(way: Way) -> None:
    with dripping(b"\x16\x03\x03\x40\x00\x02", b"\0") as server:
        with pytest.raises(errors.Unreachable, match=r"cannot connect to|attempts"):
            way(server.url.replace("http", "https", 1), NetworkSettings(environ={}, **LIMITS))


def test_a_message_that_drips_is_given_up_with_the_time_for_its_answer() -> None:
    def drip(peer: Peer, _opcode: int, _data: bytes) -> None:
        peer.send(b"\x81\x7e\xff\xff")
        while not peer.stop.wait(0.02) and not peer.gone():
            peer.send(b"a")

    with (
        Speaking(drip) as server,
        Conversation(server.url, {}, NetworkSettings(environ={}), text=True) as one,
    ):
        with pytest.raises(errors.DeadlineExceeded, match="no answer"):
            one.ask(b"x", timeout_s=0.5)


def test_a_watch_whose_frame_drips_ends_when_it_is_told_to() -> None:
    def drip(server: Server, peer: Peer) -> None:
        server.requests.append((peer.upgrade(), b""))
        peer.send(b"\x82\x7e\xff\xff")
        while not peer.stop.wait(0.02) and not peer.gone():
            peer.send(b"a")

    with Server(drip) as server:
        watcher = Watcher(server.url, Caller(), Watch(), NetworkSettings(environ={}))
        with watcher:
            assert watcher.next(0.5) is None
        assert not watcher._thread.is_alive()


def test_the_addresses_of_a_host_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leads nowhere leaves time for the next, and together they have no more than one."""
    found = [(0, 1, 6, "", ("::1", 80)), (0, 1, 6, "", ("10.0.0.1", 80)), (0, 2, 6, "", ("10.0.0.1", 80))]
    monkeypatch.setattr("easq.net.connection.socket.getaddrinfo", lambda *_, **__: found)
    tried: list[tuple[str, float]] = []

    def connect(address: str, part_s: float) -> str:
        tried.append((address, part_s))
        if len(tried) == 1:
            raise TimeoutError
        return "connected"

    assert try_addresses("h", 80, 10.0, connect) == "connected"
    assert [address for address, _ in tried] == ["::1", "10.0.0.1"]
    assert 4.0 < tried[0][1] <= 5.0
    assert 8.0 < tried[1][1] <= 10.0
    tried.clear()
    found.pop()
    found.pop()
    with pytest.raises(TimeoutError):
        try_addresses("h", 80, 10.0, connect)
