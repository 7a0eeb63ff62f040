"""Dead letters: the copy of an item in the rear store, and the answer in the sink."""

from __future__ import annotations

from dataclasses import replace

from easq.model import DELIVERY_COUNT, LAST_CODE, LAST_REASON, NO_INDEX, TS_SINK, Frame
from easq.storage.base import Failure

#: tags that are added to the copy
REAR_INDEX, REAR_GROUP = "rear@index", "rear@group"
#: tags of the copy: numbers of deliveries and failures in the group
REAR_DELIVERIES, REAR_FAILURES = "rear@deliveries", "rear@failures"

#: code of an answer when the code of the last failure is not a number
_NO_CODE = "500"
#: most characters of the reason in a tag; the data of an answer has the whole reason
_MAX_REASON = 200


def rear_copy(frame: Frame, failed: Failure) -> Frame:
    """Return the copy for the rear store: data and tags of the item, and why it failed."""
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


def answer(frame: Frame, failed: Failure, wall_ms: int) -> Frame:
    """Return the answer for the sink: request id and tags of the item, a numeric lastCode, the last reason as data."""
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
