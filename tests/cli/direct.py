"""A service that easq calls directly: real instances and their discovery, in the test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Easq
from tests.client.servers import Behaviour, Peer, Server, behaving, listing, reply


@dataclass
class Service:
    """Two instances that answer with the reversed body, and the service that lists them: discovery or ModelArts'
    management.
    """

    easq: Easq
    discovery: Server
    listed: Behaviour
    instances: list[Server]
    behaviours: list[Behaviour]

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.discovery.port}"

    @property
    def requests(self) -> list[tuple[str, bytes]]:
        return [request for instance in self.instances for request in instance.requests]

    @property
    def heads(self) -> list[str]:
        return [head for head, _ in self.requests]

    @property
    def cache(self) -> Path:
        return self.easq.home / ".cache" / "easq"


def reversing(instance: Server) -> Behaviour:
    def answer(peer: Peer) -> None:
        peer.answer(200, instance.requests[-1][1][::-1])

    return Behaviour(answer)


@contextmanager
def serving(easq: Easq, listing: Callable[..., Callable[[Peer], None]]) -> Iterator[Service]:
    """A service whose instances are listed as `listing` returns them."""
    behaviours = [Behaviour(reply(500)), Behaviour(reply(500))]
    with behaving(behaviours[0]) as first, behaving(behaviours[1]) as second:
        behaviours[0].now, behaviours[1].now = reversing(first).now, reversing(second).now
        listed = Behaviour(listing(first, second))
        with behaving(listed) as discovery:
            yield Service(easq, discovery, listed, [first, second], behaviours)


@pytest.fixture
def service(easq: Easq) -> Iterator[Service]:
    """A service that the current profile calls directly."""
    with serving(easq, listing) as made:
        for key, value in (("via", "direct"), ("endpoint", made.endpoint), ("service", "svc")):
            assert easq("config", "set", key, value).status == 0
        yield made
