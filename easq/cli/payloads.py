"""Payloads on the command line: the options for them, and the items that they name."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from easq.cli.command import SourceOption
from easq.cli.param_types import HEADER_TEXT, PATH_TEXT, WholeNumber

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.items import Items

F = TypeVar("F", bound=Callable[..., Any])


def payload_options(what: str) -> Callable[[F], F]:
    """Return a decorator that adds the options for payloads, as `find_items` takes them; one is called `what`."""

    def add(function: F) -> F:
        for option in reversed(
            (
                click.option(
                    *("-d", "--data"),
                    cls=SourceOption,
                    convert_source=os.fsencode,
                    metavar="STR",
                    help=f"One {what}, as text; can be repeated.",
                ),
                click.option(
                    *("-f", "--file"),
                    cls=SourceOption,
                    convert_source=str,
                    type=click.Path(readable=False),
                    help=f"File with one {what} per line, - for standard input; can be repeated.",
                ),
                click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH]..."),
                click.option(
                    "--input-format",
                    "form",
                    type=click.Choice(("lines", "whole", "json")),
                    help="How input is split: lines, whole, or json (the records of get -o json).  "
                    "[default: lines with -f, whole with PATH and standard input]",
                ),
                click.option(
                    "--path",
                    type=PATH_TEXT,
                    default="",
                    metavar="SUFFIX",
                    help="Path of the model below its URL.",
                ),
                click.option(
                    "--content-type", type=HEADER_TEXT, default="", help=f"Content type of every {what}."
                ),
                click.option(
                    *("-c", "--concurrency"),
                    type=WholeNumber(1, 256),
                    default=1,
                    help=f"{what.capitalize()}s in flight, 1 to 256.  [default: 1]",
                ),
            )
        ):
            function = option(function)
        return function

    return add


def find_items(
    app: App,
    given: Sequence[bytes | str],
    paths: Sequence[str],
    form: str | None,
    *,
    keep_tags: bool = False,
    piped: str = "whole",
    limit: Callable[[], int] | None = None,
) -> Items:
    """Return the items that the command line names.

    Args:
        given: the values of -d as bytes and of -f as text, in the order given.
        paths: the arguments PATH.
        form: the --input-format; None for the default of each source.
        piped: the form of stdin if nothing is named.
        limit: returns how many bytes an item may have; called for the first large one. None for the usual limit.

    Raises UsageError if nothing is named, for PATH beside -d or -f, and for a file that cannot be read.
    """
    from easq.client.items import LINES, MOST_BYTES, STDIN, WHOLE, Items
    from easq.errors import UsageError

    def items(sources: Sequence[bytes | str], form: str) -> Items:
        most = limit or (lambda: MOST_BYTES)
        return Items(sources, form, stdin=app.stdin, keep_tags=keep_tags, limit=most)

    if given and paths:
        raise UsageError("PATH and -d or -f exclude each other")
    files = [source for source in (*given, *paths) if isinstance(source, str)]
    if given and not files and form is not None:
        raise UsageError("-d gives one literal item; --input-format is for files and stdin")
    if files.count(STDIN) > 1:
        raise UsageError("stdin (-) is given twice, and can be read once")
    for file in files:
        if file != STDIN:
            _check_readable(file, hint="" if given else "use -d STR to send the text itself")
    if given:
        for file in files:
            app.printer.info(f"Opening data file: {file}")
        return items(given, form or LINES)
    if paths:
        return items(paths, form or WHOLE)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("nothing to send", hint="-d STRING, -f FILE, PATH..., or pipe it in")
    return items([STDIN], form or piped)


def _check_readable(path: str, *, hint: str = "") -> None:
    """Raise UsageError for a path that cannot be read. It is not opened, because it may be a pipe."""
    import stat

    from easq.errors import UsageError

    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}", hint=hint) from error
    if stat.S_ISDIR(mode):
        raise UsageError(f"cannot read {path}: it is a folder")
    if not os.access(path, os.R_OK):
        raise UsageError(f"cannot read {path}: Permission denied")


def queue_limit(app: App, *, sink: bool | None = None) -> int:
    """Return how many bytes an item may have in the queue, or in its sink (None: as -k says)."""
    from easq.client.queue import QueueClient
    from easq.client.state import item_limit

    # not with App.queue, which may print a warning: only the main thread prints
    return item_limit(QueueClient.over(app.transport, app.stream_url(sink=sink), app.caller()))
