"""easq negative: mark items as failed, and return them to the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import read_indexes, sink_option

if TYPE_CHECKING:
    from easq.cli.app import App


@command(
    "negative",
    examples=(
        "easq negative 5",
        "easq negative 5 --code EngineError --reason 'out of memory'",
        "easq negative 5 6 --code Shutdown",
    ),
)
@click.argument("indexes", nargs=-1, required=True, metavar="INDEX...|-")
@click.option("--code", metavar="CODE", default="", help="Reason code; Shutdown is not counted as a failure.")
@click.option("--reason", default="", help="Reason as text.")
@sink_option
def negative(app: App, indexes: tuple[str, ...], code: str, reason: str) -> None:
    """Mark items as failed, so that they are delivered again.

    The failure of each item is counted, unless the code is Shutdown. `-` reads the indexes from standard input.
    """
    numbers = read_indexes(app, indexes)
    counted = app.queue().negative(numbers, code=code, reason=reason)
    group = app.caller().consumer.group
    app.tell_done("negative", numbers, counted, f"items that are not pending in group {group}")
