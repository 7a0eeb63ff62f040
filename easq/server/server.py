"""A running service: storage, queues, routes and a listening address, put together from settings."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from easq.errors import BadRequest, EasqError, StorageError, UsageError
from easq.models.open import ModelSource, open_model
from easq.server.auth import Guard, is_loopback, is_unspecified
from easq.server.engine import Engines
from easq.server.hooks import Hook
from easq.server.listener import Listener
from easq.server.queue import Clock, QueuePolicy, check_name
from easq.server.queues import Queues
from easq.server.routes import PathRoute, Router
from easq.server.watch import Liveness, Watches
from easq.storage.base import Storage, Timing
from easq.storage.open import open_storage

log = logging.getLogger(__name__)

#: most bytes an item may have: the Go SDK reads frames of at most 32 MiB
MAX_PAYLOAD = 30 * 1024**2
#: default limits: consumers that watch, and connections from one IP address. Clients behind a proxy share an address
MAX_WATCHERS, MAX_CONNECTIONS = 20_000, 20_000
#: errors of accept when the process or the system is out of files or memory
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: time between two warnings about these errors, in seconds
_WARN_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """The engines that process all queues with a model: one on each queue for each of `users`."""

    model: ModelSource
    users: Sequence[str]
    item_timeout_s: float


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Settings of a service. `port` 0 takes a free one; an empty `token` lets everyone in."""

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
    wait_replicas: int = 0
    policy: QueuePolicy = field(default_factory=QueuePolicy)
    sink_policy: QueuePolicy = field(default_factory=QueuePolicy)
    timing: Timing = field(default_factory=Timing)
    liveness: Liveness = field(default_factory=Liveness)
    max_watchers: int = MAX_WATCHERS
    max_connections: int = MAX_CONNECTIONS
    engines: EngineSettings | None = None

    @property
    def base(self) -> str:
        """The path before the name of a queue: empty, or beginning with `/`."""
        inner = self.base_path.strip("/")
        return f"/{inner}" if inner else ""

    @property
    def guard(self) -> Guard:
        """The access rules of the service."""
        return Guard.make(bound=self.host, token=self.token, allowed_hosts=self.allowed_hosts)

    def check(self) -> None:
        """Raise UsageError for settings that cannot be served."""
        if not is_loopback(self.host) and not self.token and not self.allow_open:
            raise UsageError(
                f"{self.host} can be reached from other machines, and there is no token",
                hint="give one with --token-file, or serve on 127.0.0.1",
            )
        if not self.queues or len(set(self.queues)) != len(self.queues):
            raise UsageError(f"--queue: each name once, got {', '.join(self.queues) or 'none'}")
        for name in self.queues:
            try:
                check_name(name)
            except BadRequest as error:
                raise UsageError(f"--queue: {error.message}") from error
        if not self.base and len(self.queues) > 1:
            raise UsageError(
                f"only the first of {len(self.queues)} queues can be reached under the base path /",
                hint="give another --base-path, or one --queue",
            )
        for policy in (self.policy, self.sink_policy):
            if not 1 <= policy.max_payload <= MAX_PAYLOAD:
                raise UsageError(f"--max-payload {policy.max_payload}: 1 to {MAX_PAYLOAD} bytes")


class Extension(Protocol):
    """A part that adds routes to the service's address. It runs as long as the service."""

    @property
    def routes(self) -> Sequence[PathRoute]:
        """Rows of the table of paths."""

    async def start(self, host: str) -> None:
        """Start before the service listens on `host`. Raises ConfigError."""

    async def stop(self) -> None:
        """Stop. The server calls this after it has ended all watches."""


class Server:
    """A running service. `failed` is set to the error that makes it stop by itself."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        extensions: Sequence[Extension] = (),
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Prepare; `start` listens. Raises UsageError.

        Args:
            hooks: called when a request at the service's address is over, besides the access log.
        """
        settings.check()
        self._settings = settings
        self._extensions, self._hooks = extensions, hooks
        self._storage: Storage = open_storage(
            settings.storage,
            durability=settings.durability,
            timing=settings.timing,
            recover=settings.recover,
            wait_replicas=settings.wait_replicas,
            allow_open=settings.allow_open,
        )
        self._listener: Listener | None = None
        self._router: Router | None = None
        self._queues: Queues | None = None
        self._engines: Engines | None = None
        self._ended = asyncio.Event()
        self.failed: StorageError | None = None
        self.port = 0

    @property
    def durability(self) -> str:
        """The durability of an acknowledged put, as in the attribute `meta.durability`."""
        return self._storage.durability

    @property
    def caution(self) -> str:
        """The storage's warning for the operator; empty if there is none."""
        return self._storage.caution

    def url(self, queue: str | None = None, *, sink: bool = False) -> str:
        """Return the address of a queue (the first one by default) or service, for clients on this machine.

        Without a base path the first queue is at the root.
        """
        settings = self._settings
        name = queue or settings.queues[0]
        path = "" if not settings.base and name == settings.queues[0] else f"{settings.base}/{name}"
        return f"{self.origin}{path}{'/sink' if sink else ''}"

    @property
    def origin(self) -> str:
        """The service's address without a path, which answers requests for discovery."""
        host = "127.0.0.1" if is_unspecified(self._settings.host) else self._settings.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Listen. Raises StorageError, and ConfigError when the address cannot be bound."""
        settings = self._settings
        await self._storage.start(self._fail)
        try:
            clock = Clock(asyncio.get_running_loop().time, lambda: int(time.time() * 1000))
            queues = Queues(
                self._storage,
                settings.queues,
                policy=settings.policy,
                sink_policy=settings.sink_policy,
                clock=clock,
            )
            await queues.open()
            guard = settings.guard
            router = Router(
                queues,
                guard,
                Watches(settings.liveness, max_watchers=settings.max_watchers),
                base=settings.base,
                routes=[route for extension in self._extensions for route in extension.routes],
            )
            listener = Listener(
                router.answer, guard, max_connections=settings.max_connections, hooks=self._hooks
            )
            for extension in self._extensions:
                await extension.start(settings.host)
            await listener.start(settings.host, settings.port)
        except BaseException:
            for extension in self._extensions:
                await extension.stop()
            await self._storage.close()
            raise
        self._router, self._listener, self.port = router, listener, listener.port
        self._queues = queues

    def start_engines(self) -> None:
        """Start the engines of the settings, if there are any."""
        engines = self._settings.engines
        if engines is None or self._queues is None:
            return
        self._engines = Engines(
            self._queues,
            open_model(engines.model),
            users=engines.users,
            item_timeout_s=engines.item_timeout_s,
        )
        self._engines.start()

    def _fail(self, error: Exception) -> None:
        self.failed = error if isinstance(error, StorageError) else StorageError(str(error))
        self._ended.set()

    async def wait(self) -> None:
        """Wait until the service has to stop: `request_stop` was called, or the storage failed."""
        await self._ended.wait()

    def request_stop(self) -> None:
        """Have `wait` return."""
        self._ended.set()

    async def stop(self) -> None:
        """Stop engines, new connections, watches and requests, in this order. Every acknowledged item stays stored."""
        if self._engines is not None:
            await self._engines.stop()
        if self._router is not None and self._listener is not None:
            await self._listener.refuse_new()
            await self._router.stop()
            for extension in self._extensions:
                await extension.stop()
            await self._listener.close()
            self._router.close()
        try:
            await self._storage.close()
        except EasqError as error:
            log.error("%s", error)


async def serve(server: Server, on_ready: Callable[[], None]) -> None:
    """Run the service until SIGTERM or SIGINT. Raises StorageError when its storage failed.

    Args:
        on_ready: called once requests are answered.
    """
    import signal

    def ready() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, server.request_stop)
        on_ready()

    await run(server, ready)


async def run(server: Server, on_ready: Callable[[], None]) -> None:
    """Run the service until `Server.request_stop`, as `serve` does, without taking signals."""
    asyncio.get_running_loop().set_exception_handler(_LoopErrors())
    await server.start()
    try:
        server.start_engines()
        on_ready()
        await server.wait()
    finally:
        await server.stop()
    if server.failed is not None:
        raise server.failed


class _LoopErrors:
    """Logs the errors of the event loop. Connections that cannot be accepted are logged in one line a minute.

    asyncio would log a traceback for each of them.
    """

    def __init__(self) -> None:
        self._warned_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NO_ROOM):
            loop.default_exception_handler(context)
        elif loop.time() - self._warned_at >= _WARN_AGAIN_S:
            self._warned_at = loop.time()
            log.warning("connections wait, none can be taken: %s", error.strerror)
