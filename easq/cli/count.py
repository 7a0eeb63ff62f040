"""easq count: the number of items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, stream_options, tags_option
from easq.cli.param_types import WholeNumber

if TYPE_CHECKING:
    from easq.cli.app import App


@command(
    "count",
    examples=(
        "easq count",
        "easq count -k --tags task=demo",
        "easq count --priority 1",
        "easq count --rear -o json",
    ),
)
@tags_option("Only items with this tag; can be repeated.")
@click.option("--priority", type=WholeNumber(0, 2**31 - 1), help="Only items of this priority.")
@stream_options
def count(app: App, tags: tuple[tuple[str, str], ...], priority: int | None) -> None:
    """Count the items of the queue.

    Pending items are included.
    """
    number = app.queue().count(tags=as_tags(tags), priority=priority)
    if app.output == "json":
        app.printer.record({"count": number})
    elif app.output == "table":
        app.printer.table(("count",), [(str(number),)])
    else:
        app.printer.line(str(number))
