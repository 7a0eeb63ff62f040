"""A server that is full says when to try again: every way of asking it comes back then, and not before."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from easq import errors
from easq.client.queue import QueueClient
from easq.model import Frame
from easq.net.http import Transport
from easq.net.pipeline import Pipeline, Task, asking
from easq.net.settings import NetworkSettings
from easq.prediction.conversation import Conversation
from easq.prediction.exchanges import predict_gateway, predict_queue
from easq.protocol.frames import encode_frame, encode_frames
from easq.protocol.operations import Caller, Codec, Put, Watch
from easq.protocol.replies import read_put
from tests.client.servers import Peer, Server

SETTINGS = NetworkSettings(environ={})
#: what the server asks for, in seconds: a back-off of its own would have come back before
ASKED_S = 1


class Full(Server):
    """Refuses the first request with Retry-After, then does `then` with them."""

    def __init__(self, status: int, then: Callable[[Peer], None]) -> None:
        super().__init__(Full.serve)
        self.status, self.then = status, then
        self.times: list[float] = []

    def serve(self, peer: Peer) -> None:
        while True:
            if self.times:
                self.then(peer)
                return
            request = peer.read_request()
            if not request[0]:
                return
            self.times.append(time.monotonic())
            peer.answer(self.status, b"full", Retry_After=str(ASKED_S))


def answer(body: bytes, **headers: str) -> Callable[[Peer], None]:
    def then(peer: Peer) -> None:
        while peer.read_request()[0]:
            peer.answer(200, body, **headers)

    return then


def push(peer: Peer) -> None:
    peer.upgrade()
    peer.send_frame(encode_frame(Frame(1), Codec.PROTOBUF))
    peer.serve_pings()


def say(peer: Peer) -> None:
    peer.upgrade()
    peer.serve_pings()
    peer.send_frame(b"said", 1)
    peer.serve_pings()


@pytest.fixture
def transport() -> Iterator[Transport]:
    with Transport(SETTINGS) as made:
        yield made


def put(server: Server, transport: Transport) -> object:
    return QueueClient.over(transport, server.url, Caller()).put(b"x").index


def bulk(server: Server, transport: Transport) -> object:
    run = Pipeline(transport.settings, workers=1)
    tasks = iter([Task(0, Put(b"x"))])
    ((outcome,),) = run.run(tasks, asking(server.url, Caller(), transport.settings, read_put))
    return outcome.result and outcome.result.index


def gateway(server: Server, transport: Transport) -> object:
    steps = predict_gateway(server.url, Caller(), transport.settings, b"x", timeout_s=60)
    return int(transport.run(steps).data)


def queue(server: Server, transport: Transport) -> object:
    client = QueueClient.over(transport, server.url, Caller())
    return transport.run(predict_queue(client, client, b"x", timeout_s=60)).index


def watch(server: Server, transport: Transport) -> object:
    with QueueClient.over(transport, server.url, Caller()).watcher(Watch()) as watcher:
        frame = watcher.next(30)
        return frame and frame.index


def conversation(server: Server, transport: Transport) -> object:
    url = server.url.replace("http", "ws", 1)
    with Conversation(url, {}, transport.settings, text=True) as one:
        return len(one.ask(b"x", timeout_s=60).data) - 3


WAYS = {
    put: answer(b"1"),
    bulk: answer(b"1"),
    gateway: answer(b"1"),
    queue: None,
    watch: push,
    conversation: say,
}


@pytest.mark.parametrize(("way", "status"), list(zip(WAYS, (429, 450) * 3, strict=True)))
def test_a_request_is_repeated_after_retry_after(
    transport: Transport, way: Callable[[Server, Transport], object], status: int
) -> None:
    def result(peer: Peer) -> None:
        """The put, then the get of its result."""
        while (head := peer.read_request()[0]) != "":
            if head.startswith("POST"):
                peer.answer(200, b"1", X_Eas_Queueservice_Request_Id="r")
            else:
                peer.answer(200, encode_frames([Frame(1)], Codec.PROTOBUF), Content_Type=Codec.PROTOBUF.value)

    with Full(status, WAYS[way] or result) as server:
        began = time.monotonic()
        assert way(server, transport) == 1
        assert time.monotonic() - began >= ASKED_S
    assert len(server.times) == 1


def test_a_retry_after_beyond_the_deadline_fails_at_once() -> None:
    with Transport(NetworkSettings(request_timeout_s=0.5, environ={})) as transport:
        with Full(429, answer(b"1")) as server, pytest.raises(errors.QueueFull):
            put(server, transport)
    assert len(server.times) == 1
