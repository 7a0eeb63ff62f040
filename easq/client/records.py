"""Items as JSON records: the lines that `easq get -o json` prints and `easq put --input-format json` reads."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easq.model import DELIVERY_COUNT, HEADER_PREFIX, REQUEST_ID, Tags, tag_problem


@dataclass(frozen=True, slots=True)
class Record:
    """The parts of a JSON record that `easq put --input-format json` uses."""

    data: bytes
    tags: Tags
    priority: int | None
    content_type: str


def read_record(text: bytes, *, keep_tags: bool) -> Record:
    """Return the record in one line of `easq get -o json`. Its index, number and times are not used.

    Unless `keep_tags` is true, the tags requestId and ts@* are dropped, because the service sets new ones. The tag
    Header:Content-Type becomes the content type. The tag deliveryCount is dropped, because it belongs to a delivery.

    Raises ValueError for a line that is no such record.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    tags = record.get("tags") or {}
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise ValueError("tags is not an object of texts")
    priority = record.get("priority")
    if priority is not None and (type(priority) is not int or priority < 0):
        raise ValueError(f"priority {priority!r} is not a whole number from 0")
    chosen = {k: v for k, v in tags.items() if keep_tags or not (k == REQUEST_ID or k.startswith("ts@"))}
    content_type = chosen.get(f"{HEADER_PREFIX}Content-Type", "")
    if not content_type.isascii() or not content_type.isprintable():
        raise ValueError(f"tag {HEADER_PREFIX}Content-Type is {content_type!r}, which no header may carry")
    chosen = {k: v for k, v in chosen.items() if not k.startswith(HEADER_PREFIX) and k != DELIVERY_COUNT}
    for name, value in chosen.items():
        problem = tag_problem(name, value)
        if problem:
            raise ValueError(f"{f'{name}={value}'!r} {problem}")
    return Record(_payload(record), chosen, priority, content_type)


def _payload(record: Mapping[str, Any]) -> bytes:
    data, encoding = record.get("data"), record.get("encoding", "utf8")
    if not isinstance(data, str):
        raise ValueError("no data, which must be text")
    if encoding == "utf8":
        try:
            return data.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError("data is no UTF-8: it holds a lone surrogate") from error
    if encoding != "base64":
        raise ValueError(f"encoding {encoding!r} is neither utf8 nor base64")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"data is not base64: {error}") from error
