"""easq trunc: delete all items below an index, for all groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import stream_options
from easq.cli.param_types import INDEX

if TYPE_CHECKING:
    from easq.cli.app import App


@command("trunc", examples=("easq trunc 4", "easq trunc --all", "easq trunc -k --all -y"))
@click.argument("index", type=INDEX, required=False)
@click.option("--all", "everything", is_flag=True, help="Delete up to and including the current last item.")
@stream_options
def trunc(app: App, index: int | None, everything: bool) -> None:
    """Delete all items below an index.

    The items are deleted for all groups. The item at INDEX itself stays.
    """
    from easq.client.state import last_index
    from easq.errors import UsageError

    if (index is None) != everything:
        raise UsageError("one of INDEX and --all is needed", hint="easq trunc --help")
    client = app.queue()
    if index is None:
        index = last_index(client) + 1
    app.confirm(f"trunc stream from index: {index}")
    counted = client.truncate(index)
    if app.output == "json":
        app.printer.record({"truncated": str(index), "counted": counted})
        return
    app.printer.line("[OK] truncated")
    if counted == 0 and not everything:
        app.printer.warn(f"0 items truncated: none was below index {index}")
