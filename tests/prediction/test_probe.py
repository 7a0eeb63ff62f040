"""Probing instances: a connection each, and nothing sent."""

from __future__ import annotations

from easq.model import Instance
from easq.prediction.probe import probe
from tests.client.servers import Behaviour, behaving, eventually, free_port, reply


def test_who_answers_and_who_does_not() -> None:
    with behaving(Behaviour(reply(200))) as server:
        here = Instance("127.0.0.1", server.port, 100)
        gone = Instance("127.0.0.1", free_port(), 100)
        first, second, third = probe([here, gone, here], timeout_s=5.0)
        assert first is not None
        assert third is not None
        assert 0 < first < 5
        assert second is None
        assert eventually(lambda: server.connections == 2)
        assert server.requests == []


def test_nobody_to_probe() -> None:
    assert probe([], timeout_s=1.0) == []
