"""`easq serve`: the queue service in the foreground, or around one command. The bridge between the two wings."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from easq.cli.command import command
from easq.cli.param_types import DURATION, SIZE, ParamType, PathText, WholeNumber

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from easq.cli.app import App
    from easq.emulator.emulator import Emulator
    from easq.emulator.settings import ModelService
    from easq.server.server import Server, ServerSettings


class _Weights(ParamType):
    """Numbers with commas between."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """The numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
            self.fail(f"{value!r} is no list of weights: write it as 100,50", param, ctx)
        return tuple(map(int, parts))


class _Delays(ParamType):
    """A list of durations, separated by commas."""

    name = "durations"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Return the durations in seconds."""
        if isinstance(value, tuple):
            return value
        delays = tuple(DURATION.convert(part.strip(), param, ctx) for part in value.split(","))
        if len(delays) > _MAX_DELAYS:
            self.fail(f"{value[:80]!r} has more than {_MAX_DELAYS} delays", param, ctx)
        return delays


class _BasePath(PathText):
    """A path that the address of a queue can begin with."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` with one leading slash."""
        path = super().convert(value, param, ctx)
        if not _BASE.fullmatch(path):
            self.fail(
                f"{value!r} is no base path: it holds an empty part, or what an address spells otherwise",
                param,
                ctx,
            )
        return path


#: a base path whose characters stand in an address as they are
_BASE = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")
#: lines below warning that are logged a second, so that -v on a busy service does not fill a disk
_LOG_LINES = 1000
#: delays of --retry-delay at most; each call of a Redis script carries them all
_MAX_DELAYS = 50
WEIGHTS, DELAYS = _Weights(), _Delays()


@command(
    "serve",
    examples=(
        "easq serve --port 0 --queue images --queue speech --token-file ~/.config/easq/token",
        "easq serve --model 'exec:python3 model.py' --instances 3 --weights 100,100,50",
        "easq serve --storage memory: -- pytest tests/integration",
        "easq serve --storage redis://:PASSWORD@redis.example:6379 --wait-replicas 1",
    ),
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; an address that other machines reach needs a token.",
)
@click.option(
    "--port",
    type=WholeNumber(0, 65535),
    help="Port, 0 to 65535; 0 takes a free port.  [default: 3030; with CMD: 0]",
)
@click.option(
    "--base-path",
    type=_BasePath(),
    metavar="PATH",
    default="/api/predict",
    show_default=True,
    help="URL path before the name of a queue; / for none.",
)
@click.option(
    "--queue",
    "queues",
    multiple=True,
    metavar="NAME",
    help="Name of a queue, which gets a sink too; can be repeated.  [default: qservice]",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="HOST",
    help="Accepted Host header, besides those of loopback; * for any; can be repeated.",
)
@click.option(
    "--storage",
    metavar="URL",
    help="Where items are stored: sqlite:PATH, memory: or redis://HOST:PORT.  "
    "[default: EASQ_STORAGE, or sqlite: in the XDG state folder; with CMD: a temporary folder]",
)
@click.option(
    "--durability",
    type=click.Choice(("fsync", "os")),
    default="fsync",
    show_default=True,
    help="What an acknowledged put survives: a power loss (fsync), or only a killed process (os).",
)
@click.option(
    "--wait-replicas",
    type=WholeNumber(0),
    default=0,
    help="Number of Redis replicas that must have a put before it is acknowledged.  [default: 0]",
)
@click.option("--recover", is_flag=True, help="After a disk failure: copy the data into a new file first.")
@click.option(
    "--max-length",
    type=WholeNumber(1),
    default=1_000_000,
    show_default=True,
    help="Maximum number of items in a queue.",
)
@click.option(
    "--sink-max-length",
    type=WholeNumber(1),
    help="Maximum number of items in a sink.  [default: as --max-length]",
)
@click.option(
    "--max-bytes",
    type=SIZE,
    default="10GiB",
    show_default=True,
    help="Maximum payload bytes in a queue, and in a sink.",
)
@click.option(
    "--max-payload",
    type=SIZE,
    default="8MiB",
    show_default=True,
    help="Maximum size of one payload, up to 30MiB.",
)
@click.option(
    "--auto-evict", is_flag=True, help="Drop the oldest items of a full queue instead of refusing puts."
)
@click.option(
    "--max-delivery",
    type=WholeNumber(0),
    default=5,
    show_default=True,
    help="Failures of an item before it moves to the rear store (dead letters); 0 is no limit.",
)
@click.option(
    "--retry-delay",
    type=DELAYS,
    default="0s,1s,5s,15s,60s",
    show_default=True,
    help="Delay before redelivery after each failure in turn; the last value is repeated.",
)
@click.option(
    "--busy-limit",
    type=DURATION,
    default="10m",
    show_default=True,
    help="Maximum total time an item waits for a busy model before it fails; 0 is no limit.",
)
@click.option(
    "--leave-grace",
    type=DURATION,
    default="2s",
    show_default=True,
    help="Time for a lost consumer to reconnect before its items go to others.",
)
@click.option(
    "--group-retention",
    type=DURATION,
    default="60s",
    show_default=True,
    help="Time for which a group without consumers keeps its items.",
)
@click.option(
    "--silent-after",
    type=DURATION,
    default="10s",
    show_default=True,
    help="Time without data after which a WebSocket counts as lost.",
)
@click.option(
    "--max-watchers",
    type=WholeNumber(0),
    default=20_000,
    show_default=True,
    help="Maximum number of watching consumers, in all queues; 0 is no limit.",
)
@click.option(
    "--max-connections",
    type=WholeNumber(0),
    default=20_000,
    show_default=True,
    help="Maximum number of connections from one address; 0 is no limit.",
)
@click.option(
    "--model",
    metavar="MODEL",
    help="Also serve a model: echo, exec:CMD (input on stdin, answer on stdout) or http:URL.",
)
@click.option("--service", metavar="NAME", help="Name of the model service.  [default: model]")
@click.option(
    "--instances",
    type=WholeNumber(1, 64),
    help="Number of instances, 1 to 64, each on its own port.  [default: 1]",
)
@click.option(
    "--weights",
    type=WEIGHTS,
    help="Weights of the instances, such as 100,50; 0 gets no requests.  [default: 100 each]",
)
@click.option("--model-timeout", type=DURATION, help="Maximum time of one model call.  [default: 60s]")
@click.option(
    "--open-instances",
    is_flag=True,
    help="Let instances accept requests without a token, as in ModelArts; the gateway still needs it.",
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False),
    help="File to which the EASQ_URL line is written when the service is ready.",
)
@click.option(
    "--log-format",
    type=click.Choice(("text", "json")),
    default="text",
    show_default=True,
    help="Format of the log on standard error.",
)
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def serve(app: App, cmd: tuple[str, ...], **options: Any) -> None:
    """Run the queue service on this machine.

    Each queue has an input and a sink, served over HTTP and WebSocket and stored on disk. The first line on standard
    output is EASQ_URL=..., the address of the queue. -v logs one line per request. SIGTERM and Ctrl-C stop the
    service after the running requests.

    --model adds a model service like one in the cloud: a gateway at /api/predict/NAME, and instances that EAS
    discovery and the ModelArts look-up list, all over HTTP and WebSocket. Its workers process every queue and put
    the results into the sinks.

    With -- CMD, a private service with a token of its own runs as long as CMD. EASQ_URL, EASQ_SINK_URL and EASQ_TOKEN
    are in the environment of CMD, with --model also EASQ_ENDPOINT and EASQ_SERVICE. Standard output belongs to CMD, and
    its exit code is returned.
    """
    import asyncio
    import tempfile

    from easq.cli.signals import hang_up_as_terminate
    from easq.models.children import children

    hang_up_as_terminate()
    children.reap_as_init()
    log_to(app, options.pop("log_format"))
    ready_file = options.pop("ready_file")
    _check_ready_file(ready_file)
    if not cmd:
        settings, service = _settings(app, private=None, **options)
        asyncio.run(_serve(app, settings, service, ready_file))
        return
    with tempfile.TemporaryDirectory(prefix="easq-") as folder:
        settings, service = _settings(app, private=folder, **options)
        code = asyncio.run(_serve_around(app, settings, service, cmd, ready_file))
    click.get_current_context().exit(code)


def _settings(app: App, *, private: str | None, **given: Any) -> tuple[ServerSettings, ModelService | None]:
    """Return what the options ask for; `private` is the folder of a service around a command. Raises UsageError."""
    import secrets

    from easq.server.queue import QueuePolicy
    from easq.server.server import ServerSettings
    from easq.server.watch import Liveness
    from easq.storage.base import Limits, Timing

    token = _token(app)
    port = given["port"]
    if port is None:
        port = 3030 if private is None else 0
    storage = given["storage"] or (_default_storage(app) if private is None else f"sqlite:{private}/easq.db")
    _hide_passwords(app, storage)
    limits = Limits(given["max_length"], given["max_bytes"], given["auto_evict"])
    sink_limits = Limits(
        given["sink_max_length"] or given["max_length"], given["max_bytes"], given["auto_evict"]
    )
    settings = ServerSettings(
        host=given["host"],
        port=port,
        base_path=given["base_path"],
        queues=given["queues"] or ("qservice",),
        token=token or (secrets.token_urlsafe(24) if private is not None else ""),
        allowed_hosts=given["allowed_hosts"],
        storage=storage,
        durability=given["durability"],
        recover=given["recover"],
        wait_replicas=given["wait_replicas"],
        policy=QueuePolicy(given["max_payload"], limits, given["max_delivery"]),
        sink_policy=QueuePolicy(given["max_payload"], sink_limits, given["max_delivery"]),
        timing=Timing(
            leave_grace_s=given["leave_grace"],
            group_retention_s=given["group_retention"],
            backoff_s=given["retry_delay"],
            busy_limit_s=given["busy_limit"],
        ),
        liveness=Liveness(given["silent_after"]),
        max_watchers=given["max_watchers"],
        max_connections=given["max_connections"],
    )
    service = _service(given)
    settings.check()
    if service is not None:
        service.check(settings.queues)
    return settings, service


def _hide_passwords(app: App, storage: str) -> None:
    """Hide the passwords of the storage's URL from all output, in percent-encoded and in plain form."""
    from urllib.parse import parse_qsl, unquote

    if storage.startswith("sqlite:"):
        return
    credentials, _, place = storage.partition("://")[2].rpartition("@")
    written = [credentials.partition(":")[2]]
    written += [value for name, value in parse_qsl(place.partition("?")[2]) if name.endswith("password")]
    for secret in (*written, *map(unquote, written)):
        app.printer.hide(secret)


def _service(given: Mapping[str, Any]) -> ModelService | None:
    """The model that is to be served, if any. Raises UsageError."""
    from easq.emulator.settings import CallLimits, ModelService
    from easq.errors import UsageError
    from easq.models.base import DEFAULT_TIMEOUT_S

    weights, count = given["weights"], given["instances"]
    if not given["model"]:
        for option in ("service", "instances", "weights", "model_timeout", "open_instances"):
            if given[option]:
                raise UsageError(f"--{option.replace('_', '-')} goes with --model")
        return None
    if weights and count and len(weights) != count:
        raise UsageError(f"--weights has {len(weights)} for {count} instances", hint="give one for each")
    return ModelService(
        given["model"],
        "model" if given["service"] is None else given["service"],
        weights or (100,) * (count or 1),
        CallLimits(given["max_payload"], given["model_timeout"] or DEFAULT_TIMEOUT_S),
        given["open_instances"],
    )


def _token(app: App) -> str:
    """The token that callers need: option, file, environment; empty for none."""
    from easq.config.tokens import read_token, token_source

    app.check_token_options()
    source = token_source("", {}, app.options, app.environ)
    token = read_token(source, warn=app.printer.warn)
    app.printer.hide(token)
    return token


def _default_storage(app: App) -> str:
    """What the environment says, which is no place that others can look into, unlike a command line."""
    from easq.config.profiles import easq_folder

    if given := app.environ.get("EASQ_STORAGE"):
        return given
    return f"sqlite:{easq_folder(app.environ, 'XDG_STATE_HOME', '.local/state') / 'easq.db'}"


async def _serve(
    app: App, settings: ServerSettings, service: ModelService | None, ready_file: str | None
) -> None:
    from easq.emulator.emulator import open_service
    from easq.server.process import tune_process
    from easq.server.server import serve as run

    tune_process()
    server, emulator = open_service(settings, service)

    def ready() -> None:
        _tell(app, settings, service, server, emulator)
        _write_ready(ready_file, server)

    await run(server, ready)


def _tell(
    app: App, settings: ServerSettings, service: ModelService | None, server: Server, emulator: Emulator
) -> None:
    """Print the address of each queue, and what else there is to know of a service that has started."""
    from easq.storage.redis.url import shown_url

    app.printer.line(f"EASQ_URL={server.url()}")
    for name in settings.queues:
        app.printer.info(f"queue {name}: {server.url(name)} and {server.url(name, sink=True)}")
    if service is not None:
        app.printer.info(f"service {service.name}: {server.url(service.name)}")
        for place in emulator.instances.places():
            app.printer.info(f"instance {place.address}, weight {place.weight}")
    app.printer.info(f"durability {server.durability}, storage {shown_url(settings.storage)}")
    if server.caution:
        app.printer.warn(server.caution)


def _check_ready_file(ready_file: str | None) -> None:
    """Raise UsageError for a --ready-file that cannot be written, before the service starts."""
    if ready_file:
        from pathlib import Path

        from easq.net.files import real_path

        with _named_ready(ready_file):
            real_path(Path(ready_file))


def _write_ready(ready_file: str | None, server: Server) -> None:
    """Write the address into the file, which appears with all of its content. Raises UsageError."""
    if ready_file:
        from pathlib import Path

        from easq.net.files import replace

        with _named_ready(ready_file):
            replace(Path(ready_file), f"EASQ_URL={server.url()}\n".encode(), private=False)


@contextmanager
def _named_ready(ready_file: str) -> Iterator[None]:
    from easq.errors import UsageError

    try:
        yield
    except OSError as error:
        raise UsageError(f"--ready-file {ready_file}: {error.strerror}") from error


async def _serve_around(
    app: App,
    settings: ServerSettings,
    service: ModelService | None,
    cmd: Sequence[str],
    ready_file: str | None,
) -> int:
    """The exit code of `cmd`; the service is gone however it ended. Raises ChildFailed when it cannot start."""
    from easq.emulator.emulator import open_service

    server, _ = open_service(settings, service)
    await server.start()
    try:
        server.start_engines()
        _write_ready(ready_file, server)
        return await _run_child(app, server, settings, service, cmd)
    finally:
        await server.stop()


async def _run_child(
    app: App,
    server: Server,
    settings: ServerSettings,
    service: ModelService | None,
    cmd: Sequence[str],
) -> int:
    import asyncio

    from easq.errors import ChildFailed
    from easq.models.children import children
    from easq.redact import child_environ

    environ = {
        **child_environ(app.environ),
        "EASQ_URL": server.url(),
        "EASQ_SINK_URL": server.url(sink=True),
        "EASQ_TOKEN": settings.token,
    }
    if service is not None:
        environ |= {"EASQ_ENDPOINT": server.origin, "EASQ_SERVICE": service.name}
    loop, signals = asyncio.get_running_loop(), _Signals()
    loop.add_signal_handler(signal.SIGINT, signals.interrupt)
    loop.add_signal_handler(signal.SIGTERM, signals.terminate)
    try:
        with children.starting():
            child = await asyncio.create_subprocess_exec(*cmd, env=environ)
            children.add(child.pid)
    except OSError as error:
        raise ChildFailed(f"{cmd[0]} cannot be started: {error.strerror}") from error
    signals.started(child)
    exited = asyncio.ensure_future(child.wait())
    failed = asyncio.ensure_future(server.wait())
    await asyncio.wait({exited, failed}, return_when=asyncio.FIRST_COMPLETED)
    failed.cancel()
    if not exited.done():
        child.terminate()
    code = await exited
    children.ended(child.pid)
    if server.failed is not None:
        raise server.failed
    return code if code >= 0 else 128 - code


class _Signals:
    """Passes signals on to a command, also those that came while it was started."""

    def __init__(self) -> None:
        self._child: Process | None = None
        self._early: list[int] = []
        self._interrupts = 0

    def started(self, child: Process) -> None:
        """Pass on to `child` what came, and what comes from now on."""
        self._child = child
        for number in self._early:
            self._send(number)

    def terminate(self) -> None:
        """Handle a SIGTERM."""
        self._send(signal.SIGTERM)

    def interrupt(self) -> None:
        """Handle a SIGINT: the second one kills. That of a terminal has reached the command already."""
        if not _is_in_foreground():
            self._interrupts += 1
            self._send(signal.SIGINT if self._interrupts == 1 else signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._child is None:
            self._early.append(number)
            return
        with suppress(ProcessLookupError):
            self._child.send_signal(number)


def _is_in_foreground() -> bool:
    """Return whether a terminal sends its SIGINT to this process, and so to the command: it is in the same group."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # there is none
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def log_to(app: App, form: str) -> None:
    """What the service logs goes through the printer: warnings with -q, starts and stops, each request with -v."""
    import json
    import logging
    import time

    class Lines(logging.Handler):
        """A log record a line, on stderr."""

        def emit(self, record: logging.LogRecord) -> None:
            """The record is on stderr; what goes wrong meanwhile is not the service's business."""
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
            moment = (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
            )
            level = record.levelname.lower()
            if form == "json":
                fields = {"time": moment, "level": level, "logger": record.name, "message": message}
                app.printer.log(json.dumps(fields, ensure_ascii=False))
            else:
                app.printer.log(f"{moment} {level} {message}")

    class AtMost(logging.Filter):
        """Drops lines below warning above `_LOG_LINES` a second, and logs how many were dropped."""

        second, count, dropped = 0, 0, 0

        def filter(self, record: logging.LogRecord) -> bool:
            """Whether the record is logged."""
            if record.levelno >= logging.WARNING:
                return True
            second = int(time.monotonic())
            if second != self.second:
                dropped, self.second, self.count, self.dropped = self.dropped, second, 0, 0
                if dropped:
                    logger.info("%d lines were left out: more than %d in a second", dropped, _LOG_LINES)
            self.count += 1
            self.dropped += self.count > _LOG_LINES
            return self.count <= _LOG_LINES

    level = logging.WARNING
    if app.options.get("verbose", 0) >= 2:
        level = logging.DEBUG
    elif app.options.get("verbose", 0) == 1:
        level = logging.INFO
    logger = logging.getLogger("easq")
    lines = Lines()
    lines.addFilter(AtMost())
    logger.addHandler(lines)
    logger.setLevel(level)
    logger.propagate = False
