"""A real service on a real port, in a thread of the test's own process: quick to start, and set up in detail."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeAlias

import pytest

from easq.service.server import Server, Settings
from tests.support.http import Headers, Stream
from tests.support.waiting import PATIENCE_S

Open: TypeAlias = Callable[..., "Local"]


class Local:
    """A running service; `queue` is its only queue `q`, in the raw."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready: Future[Server] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server = self._ready.result(PATIENCE_S)
        self.port = self._server.port

    def _run(self) -> None:
        async def serve() -> None:
            server = Server(self._settings)
            try:
                await server.start()
            except BaseException as error:
                self._ready.set_exception(error)
                return
            self._loop = asyncio.get_running_loop()
            self._ready.set_result(server)
            await server.wait()
            await server.stop()

        asyncio.run(serve())

    def request_stop(self) -> None:
        """The service begins to stop, as on SIGTERM."""
        self._loop.call_soon_threadsafe(self._server.request_stop)

    def stop(self) -> None:
        """The service has stopped in order."""
        self.request_stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def stream(self, path: str = "/api/predict/q", headers: Headers = ()) -> Stream:
        return Stream(self.port, path, headers)

    @property
    def queue(self) -> Stream:
        return self.stream()


@pytest.fixture
def start() -> Iterator[Open]:
    """A factory of services: `start(token="t", storage="memory:")` takes what `Settings` has, and serves queue `q`."""
    running: list[Local] = []

    def open_one(**settings: Any) -> Local:
        local = Local(Settings(**{"port": 0, "queues": ("q",), **settings}))
        local.start()
        running.append(local)
        return local

    yield open_one
    for local in running:
        if local._thread.is_alive():
            local.stop()


@pytest.fixture
def queue(start: Open) -> Stream:
    """The queue of a service with its defaults, in memory."""
    return start().queue
