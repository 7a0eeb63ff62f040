"""Turns an item into a call of a model, and the model's answer into the item's result. Without I/O."""

from __future__ import annotations

import hashlib
import json
import re
import time
from codecs import getincrementaldecoder
from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from easq.errors import PayloadTooLarge, Refused, UsageError
from easq.model import (
    DELIVERY_COUNT,
    HEADER_PREFIX,
    LAST_CODE,
    LAST_REASON,
    PATH,
    REQUEST_ID,
    TS_SINK,
    Frame,
    Tags,
)
from easq.models.base import ABOUT_THE_ITEM, Answer, Call, ModelAnswerTooLarge, ModelFailed
from easq.protocol.operations import BUSY, MAX_REASON, SHUTDOWN, Negative, Put

#: tags of the service, which are not passed to a model
_BUILT_IN = frozenset((REQUEST_ID, PATH, DELIVERY_COUNT, LAST_CODE, LAST_REASON))
#: tags that describe the data of the request; the answer does not inherit them
_NOT_INHERITED = frozenset(("header:content-type", "header:content-encoding"))
_CONTENT_TYPE = re.compile(r"[\x20-\x7e]{1,256}")
#: characters of a path that stay as they are in a URL; also `%`, to keep percent-encoding that is already there
_PATH_SAFE = "/-._~!$&'()*+,;=:@%"
_BARE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Fate(Enum):
    """The end of one delivery of an item."""

    ANSWERED = "answered"  #: the result is in the sink, the item committed
    EMPTY = "empty"  #: the model gave no answer; committed
    TOO_LARGE = "too_large"  #: the sink has an error frame with lastCode; committed
    FAILED = "failed"  #: negative: the service delivers it again, or to the rear store
    BUSY = "busy"  #: returned because the model is busy, without counting as a failure
    RETURNED = "returned"  #: returned because the worker stops, without counting as a failure


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one delivery. `code` and `reason` explain a failure; `size` is the size of the answer in bytes."""

    index: int
    request_id: str
    attempt: int
    fate: Fate
    code: str = ""
    reason: str = ""
    size: int = 0
    seconds: float = 0.0  #: time from the call of the model to the acknowledgement of the sink or queue


def attempt_of(frame: Frame) -> int:
    """Return the delivery count of the frame, starting at 1."""
    text = frame.tags.get(DELIVERY_COUNT, "")
    return int(text) if text.isascii() and text.isdigit() else 1


def call_of(frame: Frame) -> Call:
    """Return the call of a model for an item: data, path, query and headers of its put."""
    tags = frame.tags
    # easq serve stores the path as it was in the URL, percent-encoded; other services may have decoded it
    path = quote(_BARE_PERCENT.sub("%25", tags.get(PATH, "")), safe=_PATH_SAFE)
    return Call(
        frame.data,
        path=path,
        query=[
            (name, value)
            for name, value in sorted(tags.items())
            if name not in _BUILT_IN and not name.startswith((HEADER_PREFIX, "ts@"))
        ],
        headers={
            name.removeprefix(HEADER_PREFIX): value
            for name, value in tags.items()
            if name.startswith(HEADER_PREFIX)
        },
        environ={
            "EASQ_INDEX": str(frame.index),
            "EASQ_REQUEST_ID": frame.request_id,
            "EASQ_ATTEMPT": str(attempt_of(frame)),
            "EASQ_TAGS_JSON": json.dumps(dict(tags), ensure_ascii=False, sort_keys=True),
        },
    )


def inherited(tags: Tags) -> dict[str, str]:
    """Return the tags that a result inherits from its item: all except those of the delivery and of the data."""
    left = {DELIVERY_COUNT, LAST_CODE, LAST_REASON, TS_SINK}
    return {
        name: value for name, value in tags.items() if name not in left and name.lower() not in _NOT_INHERITED
    }


def result_key(queue: str, group: str, frame: Frame, number: int = 0) -> str:
    """Return the idempotency key of an item's result; several results of one item differ in `number`."""
    parts = (queue, group, frame.request_id, str(frame.index), str(number))
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def outcome_of(
    frame: Frame, fate: Fate, began: float, *, code: str = "", reason: str = "", size: int = 0
) -> Outcome:
    """Return the outcome of a delivery; `began` is on the monotonic clock."""
    seconds = time.monotonic() - began
    return Outcome(frame.index, frame.request_id, attempt_of(frame), fate, code, reason, size, seconds)


def answer_tags(frame: Frame, answer: Answer) -> Tags:
    """Return the tags of a result: the item's, and the content encoding of the answer, which is not decoded."""
    encoding = next((value for name, value in answer.headers if name.lower() == "content-encoding"), "")
    given = {f"{HEADER_PREFIX}Content-Encoding": encoding} if _CONTENT_TYPE.fullmatch(encoding) else {}
    return inherited(frame.tags) | given


def answer_type(answer: Answer) -> str:
    """Return the Content-Type of the answer if it is valid for a put; else an empty text, and the sink guesses it."""
    return answer.content_type if _CONTENT_TYPE.fullmatch(answer.content_type) else ""


def result_put(queue: str, group: str, frame: Frame, answer: Answer) -> Put:
    """Return the put of an item's result into the sink."""
    key = result_key(queue, group, frame)
    return Put(answer.data, answer_tags(frame, answer), content_type=answer_type(answer), key=key)


def too_large_put(queue: str, group: str, frame: Frame, error: PayloadTooLarge | ModelAnswerTooLarge) -> Put:
    """Return the put of an error frame, in place of a result that is too large; its data says why.

    Args:
        error: the sink's refusal, or that of an answer too large to be read.
    """
    reason = f"the result is too large: {error.message}"
    tags = {**inherited(frame.tags), LAST_CODE: str(PayloadTooLarge.status), LAST_REASON: reason}
    key = result_key(queue, group, frame)
    return Put(reason.encode(), tags, content_type="text/plain; charset=utf-8", key=key)


def is_model_failing(error: ModelFailed) -> bool:
    """Return whether a failed call is the model's fault: it was not cancelled, and the item was not refused."""
    return error.code != SHUTDOWN and error.status not in ABOUT_THE_ITEM


def negative_of(
    frame: Frame, error: ModelFailed | Refused | UsageError, *, knows_busy: bool = True
) -> Negative:
    """Return the negative for an item whose call failed, or whose result the sink refused, with `error`.

    Args:
        knows_busy: whether the service knows the code Busy, with which an item waits without a failure.
    """
    if not isinstance(error, ModelFailed):
        return Negative((frame.index,), str(error.status), f"the result was refused: {error.message}")
    if error.busy and knows_busy:
        return Negative((frame.index,), BUSY, reason_of(error), error.retry_after_s)
    return Negative((frame.index,), error.code, reason_of(error))


def reason_of(error: ModelFailed) -> str:
    """Return the reason for the reader of the result: the body of the model's refusal, else the message of `error`."""
    if error.answer.status >= 400 and error.data:
        try:  # the cut may go through a character
            return getincrementaldecoder("utf-8")().decode(error.data[:MAX_REASON])
        except UnicodeDecodeError:
            pass
    return error.message
