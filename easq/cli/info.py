"""easq info: the attributes of the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import stream_options

if TYPE_CHECKING:
    from easq.cli.app import App


@command(
    "info",
    examples=(
        "easq info",
        "easq info -k --field stream.length",
        "easq info -o json | jq .",
        "easq info --url URL",
    ),
)
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="KEY",
    help="Print only the value of this key; can be repeated.",
)
@stream_options
def info(app: App, fields: tuple[str, ...]) -> None:
    """Show the attributes of the queue.

    It also tells whether the queue can be reached.
    """
    from easq.errors import NoData
    from easq.render.rows import ATTRIBUTE_COLUMNS, attribute_lines

    attributes = app.queue().attributes()
    missing = [key for key in fields if key not in attributes]
    if missing:
        raise NoData(f"the queue has no attribute {missing[0]!r}", hint="easq info lists them")
    if fields:
        attributes = {key: attributes[key] for key in fields}
    printer = app.printer
    if app.output == "json":
        printer.record({key: attributes[key] for key in sorted(attributes)})
    elif fields:
        printer.lines(attributes[key] for key in fields)
    elif app.output == "table":
        printer.table(ATTRIBUTE_COLUMNS, sorted(attributes.items()))
    else:
        printer.lines(["[OK] Attributes: ", *attribute_lines(attributes)])
