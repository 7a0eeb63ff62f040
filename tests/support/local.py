"""A real service on a real port, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from easq.emulator.emulator import Emulator, open_service
from easq.emulator.settings import ModelService
from easq.server.hooks import Hook
from easq.server.server import Server, ServerSettings
from tests.support.http import Headers, Stream
from tests.support.waiting import PATIENCE_S

T = TypeVar("T")


class Local:
    """A running service with the queue `q`."""

    def __init__(
        self, settings: ServerSettings, service: ModelService | None = None, *, hooks: Sequence[Hook] = ()
    ) -> None:
        self._settings = settings
        self._service = service
        self._hooks = hooks
        self._emulator: Emulator
        self._ready: Future[Server] = Future()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._server = self._ready.result(PATIENCE_S)
        self.port = self._server.port

    def _prepare(self) -> None:
        """Change the service before it starts."""

    def _run(self) -> None:
        async def serve() -> None:
            server, self._emulator = open_service(self._settings, self._service, hooks=self._hooks)
            self._prepare()
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
        """Begin to stop the service, as on SIGTERM."""
        self._loop.call_soon_threadsafe(self._server.request_stop)

    def stop(self) -> None:
        """Stop the service in order."""
        with suppress(RuntimeError):  # its loop is closed: it has stopped by itself
            self.request_stop()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def stream(self, path: str = "/api/predict/q", headers: Headers = ()) -> Stream:
        return Stream(self.port, path, headers)

    @property
    def queue(self) -> Stream:
        return self.stream()

    def do(self, what: Callable[[Server], Coroutine[Any, Any, T]]) -> T:
        """Run `what` on the service's event loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(what(self._server), self._loop).result(PATIENCE_S)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()
