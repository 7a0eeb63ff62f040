"""`easq serve`: the queue service in the foreground, or for one command. Only this module of cli/ imports the
server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from easq.cli.command import command
from easq.cli.serve_options import serve_options

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.emulator.emulator import Emulator
    from easq.emulator.settings import ModelService
    from easq.server.queue import QueuePolicy
    from easq.server.server import Server, ServerSettings


@command(
    "serve",
    examples=(
        "easq serve --port 0 --queue images --queue speech --token-file ~/.config/easq/token",
        "easq serve --model 'exec:python3 model.py' --instances 3 --weights 100,100,50",
        "easq serve --storage memory: -- pytest tests/integration",
        "easq serve --storage redis://:PASSWORD@redis.example:6379 --wait-replicas 1",
    ),
)
@serve_options
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
    from easq.render.log import log_to_printer

    hang_up_as_terminate()
    children.reap_as_init()
    log_to_printer(app.printer, form=options.pop("log_format"), verbose=app.options.get("verbose", 0))
    ready_file = options.pop("ready_file")
    _check_ready_file(ready_file)
    if not cmd:
        settings, service = _settings(app, private=None, **options)
        asyncio.run(_serve_alone(app, settings, service, ready_file))
        return
    with tempfile.TemporaryDirectory(prefix="easq-") as folder:
        settings, service = _settings(app, private=folder, **options)
        code = asyncio.run(_serve_around(app, settings, service, cmd, ready_file))
    click.get_current_context().exit(code)


def _settings(app: App, *, private: str | None, **given: Any) -> tuple[ServerSettings, ModelService | None]:
    """Return the settings that the options describe; `private` is the folder of a service around a command. Raises
    UsageError.
    """
    import secrets

    from easq.net.files import easq_folder
    from easq.server.server import ServerSettings
    from easq.server.watch import Liveness
    from easq.storage.base import Timing

    token = _token(app)
    if private is not None:
        port, default_storage = 0, f"sqlite:{private}/easq.db"
        token = token or secrets.token_urlsafe(24)
    else:
        port, default_storage = 3030, app.environ.get("EASQ_STORAGE", "")
    storage = given["storage"] or default_storage
    if not storage:
        storage = f"sqlite:{easq_folder(app.environ, 'XDG_STATE_HOME', '.local/state') / 'easq.db'}"
    _hide_passwords(app, storage)
    timing = Timing(
        leave_grace_s=given["leave_grace"],
        group_retention_s=given["group_retention"],
        backoff_s=given["retry_delay"],
        busy_limit_s=given["busy_limit"],
    )
    same = ("host", "base_path", "allowed_hosts", "durability", "recover", "wait_replicas")
    settings = ServerSettings(
        **{name: given[name] for name in (*same, "max_watchers", "max_connections")},
        port=port if given["port"] is None else given["port"],
        queues=given["queues"] or ("qservice",),
        token=token,
        storage=storage,
        policy=_policy(given, given["max_length"]),
        sink_policy=_policy(given, given["sink_max_length"] or given["max_length"]),
        timing=timing,
        liveness=Liveness(given["silent_after"]),
    )
    service = _service(given)
    settings.check()
    if service is not None:
        service.check(settings.queues)
    return settings, service


def _policy(given: Mapping[str, Any], max_length: int) -> QueuePolicy:
    from easq.server.queue import QueuePolicy
    from easq.storage.base import Limits

    limits = Limits(max_length, given["max_bytes"], given["auto_evict"])
    return QueuePolicy(given["max_payload"], limits, given["max_delivery"])


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
    """Return the model that the options describe, or None. Raises UsageError."""
    from easq.emulator.settings import CallLimits, ModelService
    from easq.errors import UsageError
    from easq.models.base import DEFAULT_TIMEOUT_S

    weights, count = given["weights"], given["instances"]
    if not given["model"]:
        for option in ("service", "instances", "weights", "model_timeout", "open_instances"):
            if given[option]:
                raise UsageError(f"--{option.replace('_', '-')} is only for --model")
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
    """Return the token that callers need, from the option, the file or the environment; empty for none."""
    from easq.config.tokens import read_token, token_source

    app.check_token_options()
    source = token_source("", {}, app.options, app.environ)
    token = read_token(source, warn=app.printer.warn)
    app.printer.hide(token)
    return token


async def _serve_alone(
    app: App, settings: ServerSettings, service: ModelService | None, ready_file: str | None
) -> None:
    from easq.emulator.emulator import open_service
    from easq.server.process import tune_process
    from easq.server.server import serve as run

    tune_process()
    server, emulator = open_service(settings, service)

    def ready() -> None:
        _print_service(app, settings, service, server, emulator)
        _write_ready(ready_file, server)

    await run(server, ready)


def _print_service(
    app: App, settings: ServerSettings, service: ModelService | None, server: Server, emulator: Emulator
) -> None:
    """Print the addresses and properties of a service that has started."""
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
    """Run `cmd` with a service of its own, and return its exit code. Raises ChildFailed if it cannot start."""
    from easq.emulator.emulator import open_service
    from easq.redact import child_environ
    from easq.server.child import run_child

    server, _ = open_service(settings, service)
    await server.start()
    try:
        server.start_engines()
        _write_ready(ready_file, server)
        environ = {
            **child_environ(app.environ),
            "EASQ_URL": server.url(),
            "EASQ_SINK_URL": server.url(sink=True),
            "EASQ_TOKEN": settings.token,
        }
        if service is not None:
            environ |= {"EASQ_ENDPOINT": server.origin, "EASQ_SERVICE": service.name}
        return await run_child(server, cmd, environ)
    finally:
        await server.stop()
