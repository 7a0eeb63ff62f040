"""A queue service that a Python program starts, in a thread or in a separate process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol

from easq import errors
from easq.emulator.emulator import open_service
from easq.emulator.settings import CallLimits, ModelService
from easq.errors import EasqError, ServerError, UsageError
from easq.models.base import DEFAULT_TIMEOUT_S
from easq.models.children import children
from easq.models.open import ModelSource
from easq.server.queue import QueuePolicy
from easq.server.server import Server, ServerSettings, run
from easq.storage.base import Limits, Timing

log = logging.getLogger(__name__)

#: seconds from SIGTERM to SIGKILL
_STOP_S = 30.0
#: seconds to wait for the end of stderr after the process ended: its own children may hold stderr open
_LOG_S = 5.0


class _Running(Protocol):
    """The thread or process in which a service runs."""

    def start(self) -> str:
        """Start the service, and return the address of the first queue. Raises the error that stopped the start."""

    def stop(self) -> None:
        """Stop the service, and wait for its end. Raises the error that ended the service before."""

    @property
    def is_running(self) -> bool:
        """Whether the service answers requests."""


class Service:
    """A running service, started by `serve`. As a context manager it stops the service.

    `token` is the token that its clients need; empty if they need none.
    """

    def __init__(self, running: _Running, url: str, queues: Sequence[str], token: str) -> None:
        self.token = token
        self._running, self._url, self._queues = running, url, tuple(queues)

    def __repr__(self) -> str:
        return f"<Service {self._url}>"

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(*(() if error is None else (EasqError,))):
            self.stop()

    @property
    def url(self) -> str:
        """The address of the first queue, for `QueueClient`."""
        return self._url

    @property
    def sink_url(self) -> str:
        """The address of the first queue's sink."""
        return f"{self._url}/sink"

    def queue_url(self, name: str) -> str:
        """Return the address of the queue or model service `name`."""
        return f"{self._url.rpartition('/')[0]}/{name}"

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues."""
        return self._queues

    @property
    def is_running(self) -> bool:
        """Whether the service answers requests: False after `stop`, and after a failure of the storage."""
        return self._running.is_running

    def stop(self) -> None:
        """Stop the service and wait for its end. Every acknowledged item is stored. A second call does nothing.

        Raises StorageError if the service had ended before, because its storage failed.
        """
        self._running.stop()


def serve(
    storage: str = "memory:",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    token: str = "",
    queues: Sequence[str] = ("qservice",),
    model: ModelSource | None = None,
    service: str = "model",
    model_timeout_s: float = DEFAULT_TIMEOUT_S,
    durability: str = "fsync",
    max_payload: int = 8 * 1024**2,
    max_length: int = 1_000_000,
    max_delivery: int = 5,
    retry_delay_s: Sequence[float] = (0.0, 1.0, 5.0, 15.0, 60.0),
    process: bool = False,
) -> Service:
    """Start a queue service, and return it when it answers requests.

    The service runs in a thread of this process, or in a separate process. It handles no signals. It ends with this
    process, or by `Service.stop`. Several services can run at once.

    Raises UsageError for a wrong setting, ConfigError for a port in use, StorageError for a storage that cannot be
    used, and ChildFailed for a command that does not exist.

    Args:
        storage: `memory:` (lost when the service ends), `sqlite:PATH` or `redis://HOST:PORT`.
        host: the address to listen on; an address that other machines reach needs a token.
        port: the port; 0 takes a free port.
        token: the token that clients must send; empty for none.
        queues: the names of the queues; each queue has an input and a sink.
        model: the model that processes the items of the queues: a function, a command or a text, as for `Worker`. A
            function needs `process=False`. The model is also served without a queue, under the name `service`.
        service: the name of the model service.
        model_timeout_s: time limit of one model call, in seconds.
        durability: what an acknowledged put survives, for SQLite: a power loss (`fsync`), or only a kill (`os`).
        max_payload: maximum bytes of one item, 1 to 31,457,280 (30 MiB).
        max_length: maximum number of items in one stream; a further put is refused.
        max_delivery: failures of an item before it moves to the dead letters; 0 for no limit.
        retry_delay_s: seconds before redelivery after each failure in turn; the last value is repeated.
        process: run in a separate process, so that this process does not slow the service down.
    """
    if isinstance(queues, str):
        raise UsageError(f"queues is a list of names: [{queues!r:.80}]")
    if not all(isinstance(delay_s, int | float) and delay_s >= 0 for delay_s in retry_delay_s):
        raise UsageError("retry_delay_s is a list of seconds, each 0 or above")
    policy = QueuePolicy(max_payload, Limits(max_length), max_delivery)
    settings = ServerSettings(
        host=host,
        port=port,
        queues=tuple(queues),
        token=token,
        storage=storage,
        durability=durability,
        policy=policy,
        sink_policy=policy,
        timing=Timing(backoff_s=tuple(retry_delay_s)),
    )
    settings.check()
    model_service = None
    if model is not None:
        if process and callable(model):
            raise UsageError(
                "a function cannot be the model of another process", hint="leave out process=True"
            )
        model_service = ModelService(model, service, limits=CallLimits(max_payload, model_timeout_s))
        model_service.check(settings.queues)
    running: _Running = _Process(settings, model_service) if process else _Thread(settings, model_service)
    return Service(running, running.start(), settings.queues, token)


class _Thread:
    """A service on an event loop in a separate thread."""

    def __init__(self, settings: ServerSettings, service: ModelService | None) -> None:
        self._settings, self._service = settings, service
        self._ready: Future[Server] = Future()
        self._failed: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="easq-serve", daemon=True)

    def start(self) -> str:
        self._thread.start()
        try:
            return self._ready.result().url()
        except BaseException as error:
            if error is not self._failed:  # the caller was interrupted
                self._call("cancel")
            self._thread.join()
            raise

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._call("stop")
        self._thread.join()
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _call(self, what: str) -> None:
        """Stop the service, or cancel its start. Does nothing if it has ended."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(
                    self._task.cancel if what == "cancel" else self._server.request_stop
                )

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a coroutine that runs has a task"
        self._server, _ = open_service(self._settings, self._service)
        self._task, self._loop = task, asyncio.get_running_loop()
        await run(self._server, lambda: self._ready.set_result(self._server))


class _Process:
    """A service in a separate process, which ends with this process."""

    def __init__(self, settings: ServerSettings, service: ModelService | None) -> None:
        self._arguments, self._environ = _arguments(settings, service), _environ(settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._error: EasqError | None = None

    def start(self) -> str:
        program = [sys.executable, "-m", "easq", "-q", "serve", *self._arguments]
        process = self._process = children.start(
            program,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None, "stdout is a pipe"
        assert process.stderr is not None, "stderr is a pipe"
        self._reader = threading.Thread(
            target=self._read, args=(process.stderr,), name="easq-serve-log", daemon=True
        )
        self._reader.start()
        try:
            name, _, url = process.stdout.readline().decode().strip().partition("=")
        except BaseException:
            self._end(process)
            raise
        if name == "EASQ_URL":
            atexit.register(self._stop_at_exit)
            return url
        code = self._end(process)
        raise self._error or ServerError(f"the process of the service ended with exit status {code}")

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        process, self._process = self._process, None
        atexit.unregister(self._stop_at_exit)
        if process is None:
            return
        code = self._end(process)
        if code != 0:
            raise self._error or ServerError(f"the process of the service ended with exit status {code}")

    def _stop_at_exit(self) -> None:
        with contextlib.suppress(EasqError):  # nobody is there to be told
            self.stop()

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        """Stop the process, and return its exit status."""
        process.terminate()
        try:
            process.wait(_STOP_S)
        except BaseException as error:
            process.kill()
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            children.ended(process.pid)
        if self._reader is not None:
            self._reader.join(_LOG_S)
        if process.stdout is not None:
            process.stdout.close()
        return process.returncode

    def _read(self, stderr: IO[bytes]) -> None:
        """Log each line of stderr, and remember the last error in them."""
        with stderr:
            for line in stderr:
                text = line.decode("utf-8", "replace").rstrip()
                self._error = _read_error(text) or self._error
                log.info("%s", text)


def _arguments(settings: ServerSettings, service: ModelService | None) -> list[str]:
    """Return the options of `easq serve` for all settings that hold no secret."""
    policy = settings.policy
    arguments = [
        f"--host={settings.host}",
        f"--port={settings.port}",
        *(f"--queue={name}" for name in settings.queues),
        f"--durability={settings.durability}",
        f"--max-payload={policy.max_payload}",
        f"--max-length={policy.limits.max_items}",
        f"--max-delivery={policy.max_failures}",
        f"--retry-delay={','.join(f'{delay_s:f}s' for delay_s in settings.timing.backoff_s)}",
    ]
    if service is not None:
        model = (
            service.model if isinstance(service.model, str) else f"exec:{shlex.join(_words(service.model))}"
        )
        arguments += [
            f"--model={model}",
            f"--service={service.name}",
            f"--model-timeout={service.limits.timeout_s:f}s",
        ]
    return arguments


def _words(model: ModelSource) -> Iterator[str]:
    if not callable(model):
        yield from model


def _environ(settings: ServerSettings) -> dict[str, str]:
    """Return the environment of the process: the path of this easq, and the secret settings.

    Other users can read a command line, so secrets are not on it.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EASQ_")}
    paths = [str(Path(__file__).resolve().parent.parent), environ.get("PYTHONPATH", "")]
    return environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "EASQ_OUTPUT": "json",
        "EASQ_STORAGE": settings.storage,
        **({"EASQ_TOKEN": settings.token} if settings.token else {}),
    }


def _read_error(line: str) -> EasqError | None:
    """Return the error in a line of `-o json`; None for any other line."""
    try:
        record: Mapping[str, str] = json.loads(line)["error"]
        kind, message, hint = record["kind"], record["message"], record["hint"]
    except (ValueError, LookupError, TypeError):
        return None
    for found in vars(errors).values():
        if isinstance(found, type) and issubclass(found, EasqError) and vars(found).get("kind") == kind:
            return found(message, hint=hint)
    return ServerError(message, hint=hint)
