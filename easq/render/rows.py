"""Rendering of frames, attributes and acks: as lines of eascmd, as JSON records and as rows of a table."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

from easq.model import TS_SINK, TS_SOURCE, Ack, Attributes, Frame
from easq.protocol.replies import format_tags
from easq.render.payload import MAX_CELL, one_line, shown

FRAME_COLUMNS = ("n", "index", "request_id", "tags", "size", "data")
ATTRIBUTE_COLUMNS = ("key", "value")
ACK_COLUMNS = ("n", "index", "request_id", "size")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def frame_line(number: int, frame: Frame, *, terminal: bool, instead: str | None = None) -> bytes:
    """Return `[OK] [0 - 1] tags[k=v] data1` without a newline; on a terminal, with control characters escaped.

    `instead` replaces the payload in the line, for example by the path of a file.
    """
    head = f"[OK] [{number} - {frame.index}] {format_tags(frame.tags)} "
    if instead is not None:
        return encode((one_line(head) if terminal else head) + (one_line(instead) if terminal else instead))
    if terminal:
        return encode(one_line(head) + shown(frame.data))
    return encode(head) + frame.data


def frame_record(number: int, frame: Frame) -> dict[str, object]:
    """Return the record of one item; `index` is text, because jq and JavaScript round 63-bit numbers."""
    return {
        "n": number,
        "index": str(frame.index),
        "request_id": frame.request_id,
        "tags": {key: frame.tags[key] for key in sorted(frame.tags)},
        **payload_record(frame.data),
        "source_time": _time(frame.tags.get(TS_SOURCE)),
        "sink_time": _time(frame.tags.get(TS_SINK)),
        "message": frame.message,
    }


def payload_record(data: bytes) -> dict[str, object]:
    """Return size, encoding and text of a payload: `utf8` if possible, else `base64`."""
    try:
        return {"size": len(data), "encoding": "utf8", "data": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"size": len(data), "encoding": "base64", "data": base64.b64encode(data).decode()}


def frame_row(number: int, frame: Frame) -> tuple[str, ...]:
    """Return the row of one item under FRAME_COLUMNS; the payload is cut to the length of a cell."""
    return (
        str(number),
        str(frame.index),
        frame.request_id,
        format_tags(frame.tags),
        str(len(frame.data)),
        shown(frame.data, limit=MAX_CELL),
    )


def attribute_lines(attributes: Attributes) -> list[str]:
    """Return eascmd's `key : value` lines, sorted by key."""
    return [f"{key} : {attributes[key]}" for key in sorted(attributes)]


def ack_line(ack: Ack) -> str:
    """Return eascmd's line, `[OK] 1`."""
    return f"[OK] {ack.index}"


def ack_record(number: int, ack: Ack, size: int) -> dict[str, object]:
    """Return the record of one stored item."""
    return {"n": number, "index": str(ack.index), "request_id": ack.request_id, "size": size}


def ack_row(number: int, ack: Ack, size: int) -> tuple[str, ...]:
    """Return the row of one stored item under ACK_COLUMNS."""
    return (str(number), str(ack.index), ack.request_id, str(size))


def encode(text: str) -> bytes:
    """Return `text` in UTF-8. Undecodable bytes of a file name are restored; other lone surrogates are escaped."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace")


def _time(milliseconds: str | None) -> str | None:
    """Return Unix milliseconds as UTC time with three decimals; None for any other text."""
    if not milliseconds or not milliseconds.isascii() or not milliseconds.isdigit() or len(milliseconds) > 18:
        return None
    try:
        moment = _EPOCH + timedelta(milliseconds=int(milliseconds))
    except OverflowError:
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
