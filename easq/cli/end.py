"""easq end: end the stream, or reopen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import sink_option

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.queue import QueueClient


@command("end", examples=("easq end", "easq end -k -y", "easq end --force", "easq end --undo"))
@click.option("--force", is_flag=True, help="Drop all items, pending ones included.")
@click.option("--undo", is_flag=True, help="Reopen the stream, without a confirmation.")
@sink_option
def end(app: App, force: bool, undo: bool) -> None:
    """End the stream, so that nothing more can be put.

    Existing items are still delivered, unless --force is given. A watch ends when its group has committed all items;
    with --until-end, its exit code is then 0.
    """
    from easq.errors import UsageError

    if force and undo:
        raise UsageError("--force and --undo exclude each other")
    client = app.queue()
    if undo:
        _reopen(client)
    else:
        what = "drop what is there" if force else "still deliver what is there"
        app.confirm(f"end the stream and {what}")
        client.end(force=force)
    if app.output == "json":
        app.printer.record({"ended": not undo})
    else:
        app.printer.line("[OK] reopened" if undo else "[OK] ended")


def _reopen(client: QueueClient) -> None:
    """Reopen the stream. Raises Refused if the service left it ended.

    A service that does not know this, which is easq's own, might end a stream that is open: so an open one is
    left alone, and an ended one is looked at again.
    """
    from easq.errors import Refused

    if not _has_ended(client):
        return
    client.end(undo=True)
    if _has_ended(client):
        raise Refused("the service did not reopen the stream")


def _has_ended(client: QueueClient) -> bool:
    return client.attributes().get("meta.state") == "End"
