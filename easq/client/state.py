"""Facts about a stream, read from its attributes; and reopening a stream that has ended."""

from __future__ import annotations

from easq.client.items import MOST_BYTES
from easq.client.queue import QueueClient
from easq.errors import EasqError, NotAQueueService, Refused

#: seconds to wait for attributes that a command does not strictly need
_ASK_S = 2.0


def last_index(client: QueueClient) -> int:
    """Return the index of the last item. Raises NotAQueueService for an answer without it."""
    text = client.attributes().get("stream.lastEntry", "")
    if not text.isascii() or not text.isdigit():
        raise NotAQueueService(f"stream.lastEntry is {text!r}, not an index")
    return int(text)


def item_limit(client: QueueClient) -> int:
    """Return the maximum size of an item in bytes, according to the attributes of the stream."""
    try:
        value = client.attributes(deadline_s=_ASK_S).get("meta.maxPayloadBytes", "")
    except EasqError:
        return MOST_BYTES
    is_known = value.isascii() and value.isdigit() and len(value) <= 12
    return min(int(value), MOST_BYTES) if is_known else MOST_BYTES


def knows_keys(client: QueueClient) -> bool:
    """Return whether the service supports idempotency keys: only easq's own service does."""
    try:
        return "meta.durability" in client.attributes(deadline_s=_ASK_S)
    except EasqError:
        return False


def reopen(client: QueueClient) -> None:
    """Reopen the stream. Raises Refused if it is still ended afterwards.

    Other services than easq's do not know this request, and might end the stream because of it. So it is sent only for
    a stream that has ended, and the result is checked.
    """
    if not _has_ended(client):
        return
    client.end(undo=True)
    if _has_ended(client):
        raise Refused("the service did not reopen the stream")


def _has_ended(client: QueueClient) -> bool:
    return client.attributes().get("meta.state") == "End"
