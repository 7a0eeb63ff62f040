"""Fixtures: services in the test's own process, started on demand and stopped after the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from easq.server.server import ServerSettings
from tests.support.http import Stream
from tests.support.local import Local

Open: TypeAlias = Callable[..., Local]


@pytest.fixture
def start() -> Iterator[Open]:
    """Return a factory of services with queue `q`: `start(token="t")`.

    It takes the fields of `ServerSettings`, a model as `service`, and `hooks`.
    """
    running: list[Local] = []

    def open_one(**settings: Any) -> Local:
        service, hooks = settings.pop("service", None), settings.pop("hooks", ())
        local = Local(ServerSettings(**{"port": 0, "queues": ("q",), **settings}), service, hooks=hooks)
        local.start()
        running.append(local)
        return local

    yield open_one
    for local in running:
        if local.is_running:
            local.stop()


@pytest.fixture
def queue(start: Open) -> Stream:
    """Return the queue of a service with default settings, in memory."""
    return start().queue
