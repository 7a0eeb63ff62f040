"""The lines about consumers, groups and filters in the attributes of a queue, as text and as values.

A module of its own: most clients read none of them, and importing these classes takes a hundredth of a one-shot put.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from easq.model import Tags
from easq.protocol.durations import format_duration_ms, parse_duration
from easq.protocol.replies import format_tags

#: longest line of a consumer or group that is parsed, in characters; tags have at most 16 KiB
_MAX_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class ConsumerLine:
    """One consumer in the attributes: the value of `consumers.list.[i]`."""

    id: str
    index: int = 0
    pending: int = 0
    status: str = "Running"
    idle_s: float = 0.0
    window: int = 0
    slots: int = 0
    auto_commit: bool = False
    tags: Tags = field(default_factory=dict)

    def text(self) -> str:
        """Return the line in the service's format; with tags if the watch had some."""
        line = (
            f"Id: {self.id}, Index: {self.index}, Pending: {self.pending}, Status: {self.status}, "
            f"Idle: {format_duration_ms(self.idle_s)}, Window: {self.window}, Slots: {self.slots}, "
            f"AutoCommit: {'true' if self.auto_commit else 'false'}"
        )
        return f"{line}, Tags: {format_tags(self.tags)}" if self.tags else line

    @classmethod
    def parse(cls, text: str) -> ConsumerLine:
        """Return the consumer of a line. Raises ValueError for any other text.

        Tags are not quoted. So a tag value that contains a blank followed by `word=` is read as two tags.
        """
        found = _columns(text)
        return cls(
            found["Id"],
            int(found["Index"]),
            int(found["Pending"]),
            found["Status"],
            parse_duration(found["Idle"]),
            int(found["Window"]),
            int(found["Slots"]),
            auto_commit=found["AutoCommit"] == "true",
            tags=_parse_tags(found.get("Tags", "tags[]")),
        )


@dataclass(frozen=True, slots=True)
class GroupLine:
    """One consumer group in the attributes: the value of `groups.list.[i]`."""

    id: str
    index: int = 0
    pending: int = 0
    delivered: int = 1
    consumers: int = 0

    def text(self) -> str:
        """Return the line in the service's format."""
        return (
            f"Id: {self.id}, Index: {self.index}, Pending: {self.pending}, "
            f"Delivered: {self.delivered}, Consumers: {self.consumers}"
        )

    @classmethod
    def parse(cls, text: str) -> GroupLine:
        """Return the group of a line. Raises ValueError for any other text."""
        found = _columns(text)
        numbers = (int(found[name]) for name in ("Index", "Pending", "Delivered", "Consumers"))
        return cls(found["Id"], *numbers)


def consumers_of(attributes: Mapping[str, str], group: str) -> int:
    """Return how many consumers a group has; 0 if the service does not describe its groups as easq does."""
    try:
        lines = [GroupLine.parse(text) for key, text in attributes.items() if key.startswith("groups.list.")]
    except ValueError:
        return 0
    return next((line.consumers for line in lines if line.id == group), 0)


@dataclass(frozen=True, slots=True)
class HeldLine:
    """The items that one filter of a group retains: the value of `groups.held.[i]`, an extension of easq."""

    id: str
    #: number of items; None for a filter with tags, since counting would compare the tags with each item
    items: int | None = None
    #: seconds until the filter no longer retains items; None while a consumer with this filter is connected
    left_s: float | None = None
    tags: Tags = field(default_factory=dict)

    def text(self) -> str:
        """Return the line in the service's format."""
        parts = [f"Id: {self.id}"]
        if self.items is not None:
            parts.append(f"Items: {self.items}")
        if self.left_s is not None:
            parts.append(f"Left: {format_duration_ms(self.left_s)}")
        if self.tags:
            parts.append(f"Tags: {format_tags(self.tags)}")
        return ", ".join(parts)

    @classmethod
    def parse(cls, text: str) -> HeldLine:
        """Return the parsed line. Raises ValueError for any other text."""
        found = _columns(text)
        items, left = found.get("Items"), found.get("Left")
        return cls(
            found["Id"],
            None if items is None else int(items),
            None if left is None else parse_duration(left),
            _parse_tags(found.get("Tags", "tags[]")),
        )


class _Columns(dict[str, str]):
    """The columns of a line. Reading one that is missing raises ValueError."""

    def __missing__(self, name: str) -> str:
        raise ValueError(f"no {name} in the line")


def _columns(text: str) -> _Columns:
    if len(text) > _MAX_LINE:
        raise ValueError(f"a line of more than {_MAX_LINE} characters")
    line, _, tags = text.partition(", Tags: ")
    parts = (part.partition(": ") for part in line.split(", "))
    columns = _Columns({name: value for name, colon, value in parts if colon})
    if tags:
        columns["Tags"] = tags
    return columns


def _parse_tags(text: str) -> dict[str, str]:
    if not text.startswith("tags[") or not text.endswith("]"):
        raise ValueError("no tags[...] in the line")
    inner = text[5:-1]
    pairs = re.split(r" (?=[^ =]+=)", inner) if inner else []
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
