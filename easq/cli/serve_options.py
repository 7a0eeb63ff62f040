"""The options of `easq serve`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from easq.cli.param_types import DURATION, SIZE, ParamType, PathText, WholeNumber

F = TypeVar("F", bound=Callable[..., Any])


class _Weights(ParamType):
    """A list of whole numbers, separated by commas."""

    name = "numbers"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) <= 9 for part in parts):
            self.fail(f"{value!r} is not a list of weights: write it as 100,50", param, ctx)
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
                f"{value!r} is not a base path: it has an empty part, or a character that a URL must encode",
                param,
                ctx,
            )
        return path


#: a base path whose characters need no percent-encoding in a URL
_BASE = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*")


#: delays of --retry-delay at most; each call of a Redis script carries them all
_MAX_DELAYS = 50


WEIGHTS, DELAYS = _Weights(), _Delays()


_OPTIONS = (
    click.option(
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on; an address that other machines reach needs a token.",
    ),
    click.option(
        "--port",
        type=WholeNumber(0, 65535),
        help="Port, 0 to 65535; 0 takes a free port.  [default: 3030; with CMD: 0]",
    ),
    click.option(
        "--base-path",
        type=_BasePath(),
        metavar="PATH",
        default="/api/predict",
        show_default=True,
        help="URL path before the name of a queue; / for none.",
    ),
    click.option(
        "--queue",
        "queues",
        multiple=True,
        metavar="NAME",
        help="Name of a queue, which gets a sink too; can be repeated.  [default: qservice]",
    ),
    click.option(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        metavar="HOST",
        help="Accepted Host header, besides those of loopback; * for any; can be repeated.",
    ),
    click.option(
        "--storage",
        metavar="URL",
        help="Where items are stored: sqlite:PATH, memory: or redis://HOST:PORT.  "
        "[default: EASQ_STORAGE, or sqlite: in the XDG state folder; with CMD: a temporary folder]",
    ),
    click.option(
        "--durability",
        type=click.Choice(("fsync", "os")),
        default="fsync",
        show_default=True,
        help="What an acknowledged put survives: a power loss (fsync), or only a killed process (os).",
    ),
    click.option(
        "--wait-replicas",
        type=WholeNumber(0),
        default=0,
        help="Number of Redis replicas that must have a put before it is acknowledged.  [default: 0]",
    ),
    click.option(
        "--recover", is_flag=True, help="After a disk failure: copy the data into a new file first."
    ),
    click.option(
        "--max-length",
        type=WholeNumber(1),
        default=1_000_000,
        show_default=True,
        help="Maximum number of items in a queue.",
    ),
    click.option(
        "--sink-max-length",
        type=WholeNumber(1),
        help="Maximum number of items in a sink.  [default: as --max-length]",
    ),
    click.option(
        "--max-bytes",
        type=SIZE,
        default="10GiB",
        show_default=True,
        help="Maximum payload bytes in a queue, and in a sink.",
    ),
    click.option(
        "--max-payload",
        type=SIZE,
        default="8MiB",
        show_default=True,
        help="Maximum size of one payload, up to 30MiB.",
    ),
    click.option(
        "--auto-evict", is_flag=True, help="Drop the oldest items of a full queue instead of refusing puts."
    ),
    click.option(
        "--max-delivery",
        type=WholeNumber(0),
        default=5,
        show_default=True,
        help="Failures of an item before it moves to the rear store (dead letters); 0 is no limit.",
    ),
    click.option(
        "--retry-delay",
        type=DELAYS,
        default="0s,1s,5s,15s,60s",
        show_default=True,
        help="Delay before redelivery after each failure in turn; the last value is repeated.",
    ),
    click.option(
        "--busy-limit",
        type=DURATION,
        default="10m",
        show_default=True,
        help="Maximum total time an item waits for a busy model before it fails; 0 is no limit.",
    ),
    click.option(
        "--leave-grace",
        type=DURATION,
        default="2s",
        show_default=True,
        help="Time for a lost consumer to reconnect before its items go to others.",
    ),
    click.option(
        "--group-retention",
        type=DURATION,
        default="60s",
        show_default=True,
        help="Time for which a group without consumers keeps its items.",
    ),
    click.option(
        "--silent-after",
        type=DURATION,
        default="10s",
        show_default=True,
        help="Time without data after which a WebSocket counts as lost.",
    ),
    click.option(
        "--max-watchers",
        type=WholeNumber(0),
        default=20_000,
        show_default=True,
        help="Maximum number of watching consumers, in all queues; 0 is no limit.",
    ),
    click.option(
        "--max-connections",
        type=WholeNumber(0),
        default=20_000,
        show_default=True,
        help="Maximum number of connections from one address; 0 is no limit.",
    ),
    click.option(
        "--model",
        metavar="MODEL",
        help="Also serve a model: echo, exec:CMD (input on stdin, answer on stdout) or http:URL.",
    ),
    click.option("--service", metavar="NAME", help="Name of the model service.  [default: model]"),
    click.option(
        "--instances",
        type=WholeNumber(1, 64),
        help="Number of instances, 1 to 64, each on its own port.  [default: 1]",
    ),
    click.option(
        "--weights",
        type=WEIGHTS,
        help="Weights of the instances, such as 100,50; 0 gets no requests.  [default: 100 each]",
    ),
    click.option("--model-timeout", type=DURATION, help="Maximum time of one model call.  [default: 60s]"),
    click.option(
        "--open-instances",
        is_flag=True,
        help="Let instances accept requests without a token, as in ModelArts; the gateway still needs it.",
    ),
    click.option(
        "--ready-file",
        type=click.Path(dir_okay=False),
        help="File to which the EASQ_URL line is written when the service is ready.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(("text", "json")),
        default="text",
        show_default=True,
        help="Format of the log on standard error.",
    ),
)


def serve_options(function: F) -> F:
    """Add the options of the service to `function`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
