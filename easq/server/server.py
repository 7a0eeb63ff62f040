"""The composition root: storage, broker and doors become one running service."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from easq.emulator.platform import ModelService, Platform
from easq.errors import BadRequest, EasqError, StorageError, UsageError
from easq.models.open import parse_model
from easq.protocol.discovery import MAX_WEIGHT
from easq.server.auth import Guard, is_loopback, is_unspecified
from easq.server.engine import Engines
from easq.server.listener import Listener
from easq.server.queue import Clock, QueuePolicy, check_name
from easq.server.queues import Queues
from easq.server.routes import Router
from easq.server.watch import Liveness
from easq.storage.base import Storage, Timing
from easq.storage.open import open_storage

log = logging.getLogger(__name__)

#: most bytes an item may have: the Go SDK reads frames of at most 32 MiB
MAX_PAYLOAD = 30 * 1024**2
#: Thresholds of the garbage collector, in new objects. Python's default of 700 is below what 64 concurrent puts
#: allocate, and costs 4 % of the time; 5,000 costs nothing measurable. After 60,000 connections that broke one after
#: the other the process has grown by 1 MiB, as with 700; with (50,000, 20, 50) by 3 KB for each connection.
COLLECT = (5_000, 10, 10)
#: malloc: buffers from so many bytes on get a mapping of their own; and of other freed memory at most so many bytes are
#: kept
_MAPPED_BYTES, _KEPT_BYTES = 1024**2, 16 * 1024**2
#: their names in malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: default limits: consumers that watch, and connections from one IP address (behind a proxy all clients share one)
MAX_WATCHERS, MAX_CONNECTIONS = 20_000, 20_000
#: the system, or the process, has no room for one more connection; that it is so is said again after so many seconds
_TOO_MANY, _SAY_AGAIN_S = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}, 60.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
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
    wait_replicas: int = 0
    policy: QueuePolicy = field(default_factory=QueuePolicy)
    sink_policy: QueuePolicy = field(default_factory=QueuePolicy)
    timing: Timing = field(default_factory=Timing)
    liveness: Liveness = field(default_factory=Liveness)
    max_watchers: int = MAX_WATCHERS
    max_connections: int = MAX_CONNECTIONS
    service: ModelService | None = None

    @property
    def base(self) -> str:
        """What stands before a name in a path: empty, or from its first `/`."""
        inner = self.base_path.strip("/")
        return f"/{inner}" if inner else ""

    def check(self) -> None:
        """Raises UsageError for what cannot be served, ChildFailed for a model's command that is not there."""
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
        if not self.base and len(self.queues) > 1:
            raise UsageError(
                f"only the first of {len(self.queues)} queues can be reached under the base path /",
                hint="give another --base-path, or one --queue",
            )
        for policy in (self.policy, self.sink_policy):
            if not 1 <= policy.max_payload <= MAX_PAYLOAD:
                raise UsageError(f"--max-payload {policy.max_payload}: 1 to {MAX_PAYLOAD} bytes")
        if self.service is not None:
            _check_service(self.service, self.queues)


def _check_service(service: ModelService, queues: Sequence[str]) -> None:
    parse_model(service.model).check()
    try:
        check_name(service.name)
    except BadRequest as error:
        raise UsageError(f"--service: {error.message}") from error
    if service.name in queues:
        raise UsageError(
            f"{service.name} is a queue and a service: a name is one of them",
            hint="choose another with --service or --queue",
        )
    if not service.weights or not all(0 <= weight <= MAX_WEIGHT for weight in service.weights):
        shown = ",".join(map(str, service.weights))
        raise UsageError(f"--weights {shown}: one of 0 to {MAX_WEIGHT} for each instance")


class Server:
    """A running service. `failed` is set to the error that makes it stop by itself."""

    def __init__(self, settings: ServerSettings) -> None:
        settings.check()
        self._settings = settings
        self._storage: Storage = open_storage(
            settings.storage,
            durability=settings.durability,
            timing=settings.timing,
            recover=settings.recover,
            wait_replicas=settings.wait_replicas,
            allow_open=settings.allow_open,
        )
        self._guard = Guard.make(
            bound=settings.host, token=settings.token, allowed_hosts=settings.allowed_hosts
        )
        #: what stands around a model
        self.platform = Platform(settings.service, self._guard, base=settings.base, queues=settings.queues)
        self._listener: Listener | None = None
        self._router: Router | None = None
        self._queues: Queues | None = None
        self._engines: Engines | None = None
        self._ended = asyncio.Event()
        self.failed: StorageError | None = None
        self.port = 0

    @property
    def durability(self) -> str:
        """What an acknowledged put survives, in the word of `meta.durability`."""
        return self._storage.durability

    @property
    def caution(self) -> str:
        """The storage's warning for the operator; empty if there is none."""
        return self._storage.caution

    def url(self, queue: str | None = None, *, sink: bool = False) -> str:
        """The address of a queue (the first one by default) or service as clients of this machine write it.

        Without a base path the first queue is at the root.
        """
        settings = self._settings
        name = queue or settings.queues[0]
        path = "" if not settings.base and name == settings.queues[0] else f"{settings.base}/{name}"
        return f"{self.origin}{path}{'/sink' if sink else ''}"

    @property
    def origin(self) -> str:
        """The service's address without a path, where discovery is asked."""
        host = "127.0.0.1" if is_unspecified(self._settings.host) else self._settings.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    async def start(self) -> None:
        """Requests are answered. Raises StorageError; ConfigError when the address cannot be bound."""
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
            router = Router(
                queues,
                self._guard,
                self.platform,
                base=settings.base,
                liveness=settings.liveness,
                max_watchers=settings.max_watchers,
            )
            listener = Listener(router.answer, self._guard, max_connections=settings.max_connections)
            await self.platform.start(settings.host)
            await listener.start(settings.host, settings.port)
        except BaseException:
            await self.platform.stop()
            await self._storage.close()
            raise
        self._router, self._listener, self.port = router, listener, listener.port
        self._queues = queues

    def start_engines(self) -> None:
        """Start one engine for each instance on every queue; nothing without a model."""
        service = self._settings.service
        if service is None or self._queues is None:
            return
        self._engines = Engines(
            self._queues,
            parse_model(service.model),
            users=[f"{service.name}-{number}" for number in range(len(service.weights))],
            item_timeout_s=service.limits.timeout_s,
        )
        self._engines.start()

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
        """Stop engines, new connections, watchers and requests, in this order. All that was acknowledged is stored."""
        if self._engines is not None:
            await self._engines.stop()
        if self._router is not None and self._listener is not None:
            await self._listener.refuse_new()
            await self._router.stop()
            await self.platform.stop()
            await self._listener.close()
        try:
            await self._storage.close()
        except EasqError as error:
            log.error("%s", error)


async def serve(
    settings: ServerSettings,
    on_ready: Callable[[Server], None],
) -> None:
    """Run the service until SIGTERM or SIGINT.

    Raises StorageError when its storage failed.
    """
    gc.freeze()
    gc.set_threshold(*COLLECT)
    _return_freed_memory()
    _open_many_files()
    asyncio.get_running_loop().set_exception_handler(_Complaints())
    server = Server(settings)
    await server.start()
    _stop_on_signals(server)
    try:
        server.start_engines()
        on_ready(server)
        await server.wait()
    finally:
        await server.stop()
    if server.failed is not None:
        raise server.failed


def _return_freed_memory() -> None:
    """Tell the C library of Linux (glibc) to give large buffers back to the system as soon as they are freed.

    By default glibc raises the threshold up to 32 MiB, and keeps freed buffers that lie between smaller allocations.
    After 100 watchers were reset at once in the middle of an item of 8 MiB, the process kept 950 MiB (with SQLite
    2,400 MiB); with these settings 8 MiB. Puts and gets of 256 KiB to 8 MiB do not get slower.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _open_many_files() -> None:
    """The process may have as many connections as the system lets it, not just those that a shell does."""
    try:
        import resource
    except ImportError:
        return  # no such limit here
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        log.debug("the limit of open files stays as it is: %s", error)


class _Complaints:
    """What asyncio's loop complains of. That it can take no more connections it says for each one, with a traceback;
    here that is a line a minute.
    """

    def __init__(self) -> None:
        self._said_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _TOO_MANY):
            loop.default_exception_handler(context)
        elif loop.time() - self._said_at >= _SAY_AGAIN_S:
            self._said_at = loop.time()
            log.warning("connections wait, none can be taken: %s", error.strerror)


def _stop_on_signals(server: Server) -> None:
    import signal

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.request_stop)
