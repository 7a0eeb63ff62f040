"""easq search: the state of one item."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import sink_option

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.queue import QueueClient

_HINT = "easq get -l 10 shows the first items, with -k those of the sink"


@command(
    "search",
    examples=(
        "easq search 3",
        "easq search ef6940e3-159c-45f3-a96d-bc0acd71275f",
        "easq search 3 --group default_group",
        "easq search 3 -o json | jq .WaitCount",
    ),
)
@click.argument("item", metavar="INDEX|REQUEST_ID")
@sink_option
def search(app: App, item: str) -> None:
    """Show the state of one item.

    The answer says whether the item is pending, which consumer has it, and how many items are before it. It is for
    one consumer group: by default the group of the workers, which has the name of the queue. Only --group chooses
    another; the group in the environment or in a profile is not used.
    """
    from easq.errors import NotFound
    from easq.protocol.replies import NO_DATA_IN_STREAM

    client = app.queue()
    index = _index(client, item)
    try:
        result = client.in_group(app.options.get("group") or client.name()).search(index)
    except NotFound as error:
        if error.message != NO_DATA_IN_STREAM:
            raise
        raise NotFound(f"no item has the index {index}", hint=_HINT, status=error.http_status) from error
    shown = {
        "index": str(index),
        "ConsumerId": result.consumer_id,
        "IsPending": str(result.is_pending).lower(),
        "WaitCount": str(result.wait_count),
    }
    if app.output == "json":
        app.printer.record({**shown, "IsPending": result.is_pending, "WaitCount": result.wait_count})
    elif app.output == "table":
        from easq.render.rows import ATTRIBUTE_COLUMNS

        app.printer.table(ATTRIBUTE_COLUMNS, shown.items())
    else:
        app.printer.lines(f"{key} : {value}" for key, value in shown.items())


def _index(client: QueueClient, item: str) -> int:
    """Return the index that `item` is, or that the item of this request id has. Raises NotFound or UsageError."""
    from easq.errors import NotFound, UsageError
    from easq.model import parse_index

    if item.isascii() and item.isdigit():
        try:
            return parse_index(item)
        except ValueError as error:
            raise UsageError(str(error)) from error
    frame = client.find(item)
    if frame is None:
        raise NotFound(f"no item has the request id {item!r}", hint=_HINT)
    return frame.index
