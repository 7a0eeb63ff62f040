"""What is left of an item that a group gave up: its copy in the rear store, and the answer to whoever waits."""

from __future__ import annotations

from dataclasses import replace

from easq.model import DELIVERY_COUNT, LAST_CODE, LAST_REASON, NO_INDEX, TS_SINK, Frame
from easq.storage.base import Failed

#: tags of a copy in the rear store, beside those of the item
REAR_INDEX, REAR_GROUP = "rear@index", "rear@group"
REAR_DELIVERIES, REAR_FAILURES = "rear@deliveries", "rear@failures"

#: the code that an answer has when the last failure had none that is a number
_NO_CODE = "500"
#: an answer's tag repeats at most so much of the reason; its data is the whole of it
_MAX_REASON = 200


def rear_copy(frame: Frame, failed: Failed) -> Frame:
    """The item as the rear store keeps it: data and tags, and why it is there."""
    tags = {
        **frame.tags,
        REAR_INDEX: str(frame.index),
        REAR_GROUP: failed.group,
        REAR_DELIVERIES: str(failed.deliveries),
        REAR_FAILURES: str(failed.failures),
        **({LAST_CODE: failed.code} if failed.code else {}),
        **({LAST_REASON: failed.reason[:_MAX_REASON]} if failed.reason else {}),
    }
    return replace(frame, index=NO_INDEX, tags=tags)


def answer(frame: Frame, failed: Failed, wall_ms: int) -> Frame:
    """The sink frame of a dead input item: its request id and tags, a numeric lastCode, the last reason as data."""
    numeric = failed.code.isascii() and failed.code.isdigit()
    reason = failed.reason if numeric or not failed.code else failed.code
    inherited = {key: value for key, value in frame.tags.items() if key != DELIVERY_COUNT}
    tags = {
        **inherited,
        TS_SINK: str(wall_ms),
        LAST_CODE: failed.code if numeric else _NO_CODE,
        **({LAST_REASON: reason[:_MAX_REASON]} if reason else {}),
        "Header:Content-Type": "text/plain; charset=utf-8",
    }
    return Frame(NO_INDEX, tags, failed.reason.encode())
