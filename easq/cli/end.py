"""easq end: end the stream, or reopen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import sink_option

if TYPE_CHECKING:
    from easq.cli.app import App


@command("end", examples=("easq end", "easq end -k -y", "easq end --force", "easq end --undo"))
@click.option("--force", is_flag=True, help="Drop all items, pending ones included.")
@click.option("--undo", is_flag=True, help="Reopen the stream, without a confirmation.")
@sink_option
def end(app: App, force: bool, undo: bool) -> None:
    """End the stream, so that nothing more can be put.

    Existing items are still delivered, unless --force is given. A watch ends when its group has committed all items;
    with --until-end, its exit code is then 0.
    """
    from easq.client.state import reopen
    from easq.errors import UsageError

    if force and undo:
        raise UsageError("--force and --undo exclude each other")
    client = app.queue()
    if undo:
        reopen(client)
    else:
        what = "drop what is there" if force else "still deliver what is there"
        app.confirm(f"end the stream and {what}")
        client.end(force=force)
    if app.output == "json":
        app.printer.record({"ended": not undo})
    else:
        app.printer.line("[OK] reopened" if undo else "[OK] ended")
