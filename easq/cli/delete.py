"""easq delete: delete items by index, for all groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import read_indexes, stream_options

if TYPE_CHECKING:
    from easq.cli.app import App

#: number of indexes that the question lists
_MAX_NAMED = 20


@command(
    "delete",
    examples=(
        "easq delete 3",
        "easq delete -y 3 4 5",
        "easq get -l 100 -o json | jq -r .index | easq delete -y -",
    ),
)
@click.argument("indexes", nargs=-1, required=True, metavar="INDEX...|-")
@stream_options
def delete(app: App, indexes: tuple[str, ...]) -> None:
    """Delete items by index.

    The items are deleted for all groups. `-` reads the indexes from standard input.
    """
    numbers = read_indexes(app, indexes)
    client = app.queue()
    app.confirm("Deleting index(es):\n" + _named(numbers))
    app.tell_done("deleted", numbers, client.delete(numbers), "items that do not exist")


def _named(numbers: list[int]) -> str:
    lines = [str(number) for number in numbers[:_MAX_NAMED]]
    if len(numbers) > _MAX_NAMED:
        lines.append(f"and {len(numbers) - _MAX_NAMED} more")
    return "\n".join(lines)
