"""The composition root: storage, broker and doors become one running service."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from easq.broker.broker import Broker
from easq.broker.queue import Clock, Rules, check_name
from easq.errors import BadRequest, ConfigError, EasqError, StorageError, UsageError
from easq.service.app import App
from easq.service.auth import Guard, is_loopback, is_unspecified
from easq.service.http import respond
from easq.service.watch import Liveness
from easq.storage.base import Storage, Timing
from easq.storage.open import open_storage
from easq.wire.replies import error_reply

log = logging.getLogger(__name__)

#: what one request line, and all its headers, may have in bytes
_MAX_LINE, _MAX_FIELD = 64 * 1024, 32 * 1024
#: an idle connection is kept so long, in seconds
_KEEP_ALIVE_S = 60.0
#: requests under way may take so long once the service stops, in seconds
_GRACE_S = 5.0
#: most bytes an item may have: the Go SDK reads frames of at most 32 MiB
MAX_PAYLOAD = 30 * 1024**2


@dataclass(frozen=True, slots=True)
class Settings:
    """What `easq serve` is told. `port` 0 takes a free one; `token` empty lets everyone in."""

    host: str = "127.0.0.1"
    port: int = 3030
    base_path: str = "/api/predict"
    queues: Sequence[str] = ("qservice",)
    token: str = ""
    allowed_hosts: Sequence[str] = ()
    allow_open: bool = False
    storage: str = "memory:"
    durability: str = "fsync"
    recover: bool = False
    rules: Rules = field(default_factory=Rules)
    sink_rules: Rules = field(default_factory=Rules)
    timing: Timing = field(default_factory=Timing)
    liveness: Liveness = field(default_factory=Liveness)

    def check(self) -> None:
        """Raises UsageError for what cannot be served."""
        if not is_loopback(self.host) and not self.token and not self.allow_open:
            raise UsageError(
                f"{self.host} is reached from other machines, and there is no token",
                hint="give one with --token-file, or serve on 127.0.0.1",
            )
        if not self.queues or len(set(self.queues)) != len(self.queues):
            raise UsageError(f"--queue: each name once, got {', '.join(self.queues) or 'none'}")
        for name in self.queues:
            try:
                check_name(name)
            except BadRequest as error:
                raise UsageError(f"--queue: {error.message}") from error
        for rules in (self.rules, self.sink_rules):
            if not 1 <= rules.max_payload <= MAX_PAYLOAD:
                raise UsageError(f"--max-payload {rules.max_payload}: 1 to {MAX_PAYLOAD} bytes")


class Server:
    """A running service. `failed` is set to the error that makes it stop by itself."""

    def __init__(self, settings: Settings) -> None:
        settings.check()
        self._settings = settings
        self._storage: Storage = open_storage(
            settings.storage,
            durability=settings.durability,
            timing=settings.timing,
            recover=settings.recover,
        )
        self._runner: web.ServerRunner | None = None
        self._site: web.TCPSite | None = None
        self._app: App | None = None
        self._ended = asyncio.Event()
        self.failed: StorageError | None = None
        self.port = 0

    @property
    def durability(self) -> str:
        """What an acknowledged put survives, in the word of `meta.durability`."""
        return self._storage.durability

    def url(self, queue: str | None = None, *, sink: bool = False) -> str:
        """The address of a queue (the first one by default) as clients of this machine write it."""
        settings = self._settings
        host = "127.0.0.1" if is_unspecified(settings.host) else settings.host
        host = f"[{host}]" if ":" in host else host
        base = "/" + settings.base_path.strip("/") if settings.base_path.strip("/") else ""
        return f"http://{host}:{self.port}{base}/{queue or settings.queues[0]}{'/sink' if sink else ''}"

    async def start(self) -> None:
        """Requests are answered. Raises StorageError; ConfigError when the address cannot be bound."""
        settings = self._settings
        await self._storage.start(self._fail)
        try:
            clock = Clock(asyncio.get_running_loop().time, lambda: int(time.time() * 1000))
            broker = Broker(
                self._storage,
                settings.queues,
                rules=settings.rules,
                sink_rules=settings.sink_rules,
                clock=clock,
            )
            await broker.open()
            guard = Guard.make(
                bound=settings.host, token=settings.token, allowed_hosts=settings.allowed_hosts
            )
            self._app = App(broker, guard, base_path=settings.base_path, liveness=settings.liveness)
            await self._listen(self._app)
        except BaseException:
            await self._storage.close()
            raise

    async def _listen(self, app: App) -> None:
        server = _HttpServer(
            app.handle,
            access_log=None,
            keepalive_timeout=_KEEP_ALIVE_S,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_FIELD,
            auto_decompress=False,
            handler_cancellation=False,
        )
        self._runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=_GRACE_S)
        await self._runner.setup()
        settings = self._settings
        self._site = web.TCPSite(self._runner, settings.host, settings.port, backlog=1024)
        try:
            await self._site.start()
        except OSError as error:
            await self._runner.cleanup()
            reason = "in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
            raise ConfigError(
                f"{settings.host} port {settings.port}: {reason}",
                hint="choose another with --port, or --port 0",
            ) from error
        self.port = self._runner.addresses[0][1]

    def _fail(self, error: Exception) -> None:
        self.failed = error if isinstance(error, StorageError) else StorageError(str(error))
        self._ended.set()

    async def wait(self) -> None:
        """Returns when the service has to stop: `request_stop` was called, or the storage failed."""
        await self._ended.wait()

    def request_stop(self) -> None:
        """`wait` returns."""
        self._ended.set()

    async def stop(self) -> None:
        """No new connection, then no watcher, then no request is there; what was acknowledged is stored."""
        if self._site is not None and self._app is not None and self._runner is not None:
            await self._site.stop()
            await self._app.stop()
            await self._runner.cleanup()
        try:
            await self._storage.close()
        except EasqError as error:
            log.error("%s", error)


class _Connection(web.RequestHandler):
    """aiohttp's connection; what is no HTTP is refused without its traceback, and without repeating any of it."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002
    ) -> web.StreamResponse:
        """The answer to what could not be read as a request, after which the connection ends."""
        log.info("%s sent what is no HTTP request: %s", request.remote, type(exc).__name__)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was under way")
        text = "this is no HTTP/1.1 request"
        if isinstance(exc, LineTooLong):
            status, text = 431, f"the request line is above {_MAX_LINE} bytes, or a header above {_MAX_FIELD}"
        response = respond(error_reply(BadRequest(text, status=status)))
        response.force_close()
        return response


class _HttpServer(web.Server):
    """aiohttp's server, over connections of ours."""

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


def write_ready_file(path: Path, text: str) -> None:
    """The file holds `text`, whole from the first moment it is seen."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.rename(path)


async def serve(settings: Settings, on_ready: Callable[[Server], None]) -> None:
    """The service runs until SIGTERM or SIGINT. Raises StorageError when its storage failed."""
    # requests leave next to no cycles: looking for them after every 700 objects took a tenth of the time
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    server = Server(settings)
    await server.start()
    _stop_on_signals(server)
    try:
        on_ready(server)
        await server.wait()
    finally:
        await server.stop()
    if server.failed is not None:
        raise server.failed


def _stop_on_signals(server: Server) -> None:
    import signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
