"""easq commit: commit items for the group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import read_indexes, sink_option

if TYPE_CHECKING:
    from easq.cli.app import App


@command(
    "commit",
    examples=(
        "easq commit 4",
        "easq commit -k 4 5 6",
        "jq -r .index done.json | easq commit --group workers -",
    ),
)
@click.argument("indexes", nargs=-1, required=True, metavar="INDEX...|-")
@sink_option
def commit(app: App, indexes: tuple[str, ...]) -> None:
    """Commit items by index.

    Committed items are not delivered to the group again. `-` reads the indexes from standard input.
    """
    numbers = read_indexes(app, indexes)
    counted = app.queue().commit(numbers)
    app.tell_done("committed", numbers, counted, "items that do not exist or were committed before")
