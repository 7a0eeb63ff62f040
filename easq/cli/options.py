"""Options that several commands take: the stream, payloads, tags, indexes, the transport of a watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from easq.cli.command import keep
from easq.cli.param_types import TAG

if TYPE_CHECKING:
    from easq.cli.app import App

F = TypeVar("F", bound=Callable[..., Any])

#: the values of `watch --commit`: commit after the user's answer, after the item was written, or never
ASK, OUTPUT, NONE = "ask", "output", "none"
#: most bytes of indexes on stdin: enough for three million of the longest indexes
_MAX_INDEXES_BYTES = 64 * 1024 * 1024


def sink_option(function: F) -> F:
    """Add -k to `function`; its value is stored in the App."""
    option: Callable[[F], F] = click.option(
        "-k",
        "--sink",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Use the sink, which holds the results.",
    )
    return option(function)


def stream_options(function: F) -> F:
    """Add -k and --rear to `function`; their values are stored in the App."""
    option: Callable[[F], F] = click.option(
        "--rear",
        is_flag=True,
        expose_value=False,
        callback=keep,
        help="Use the rear store, which holds undeliverable items (dead letters).",
    )
    return sink_option(option(function))


def transport_option(function: F) -> F:
    """Add the option --transport to `function`, as the parameter `transport`: `ws` or `http`."""
    option: Callable[[F], F] = click.option(
        "--transport",
        type=click.Choice(("ws", "http")),
        default="ws",
        show_default=True,
        help="WebSocket (ws), or an endless HTTP response (http) for proxies that block WebSocket.",
    )
    return option(function)


def tags_option(text: str) -> Callable[[F], F]:
    """Return a decorator that adds --tags as the parameter `tags`, a tuple of pairs."""
    return click.option("--tags", type=TAG, multiple=True, help=text)


def as_tags(pairs: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the pairs of --tags as tags. Raises UsageError for one name with two values."""
    from easq.errors import UsageError

    tags = dict(pairs)
    for name, value in pairs:
        if tags[name] != value:
            raise UsageError(f"tag {name!r} is given twice, as {value!r} and as {tags[name]!r}")
    return tags


def read_indexes(app: App, indexes: Sequence[str]) -> list[int]:
    """Return the indexes in the arguments; for the one argument `-`, those on stdin. Raises UsageError."""
    from easq.errors import UsageError
    from easq.model import parse_index

    words = list(indexes)
    if words == ["-"]:
        words = app.read_stdin(_MAX_INDEXES_BYTES).split()
        if not words:
            raise UsageError("no index on stdin")
    try:
        return list(dict.fromkeys(parse_index(word) for word in words))
    except ValueError as error:
        raise UsageError(str(error)) from error
