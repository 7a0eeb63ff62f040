"""Types of options and arguments: each converts one text of the command line, or rejects it with a message."""

from __future__ import annotations

import re
from math import inf
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]  # generic for mypy, and a plain class in click 8.1
else:
    ParamType = click.ParamType

_HEADER_NAME = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_FORBIDDEN_IN_HEADER = r"[\x00-\x08\x0a-\x1f\x7f]"


class Duration(ParamType):
    """A duration as Go writes it, such as `1m30s`, or a number of seconds. Converted to seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return `value` in seconds."""
        from easq.protocol.durations import parse_duration

        if isinstance(value, float):
            return value
        try:
            seconds = parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if seconds < 0:
            self.fail(f"{value!r} is negative", param, ctx)
        return seconds


class WholeNumber(ParamType):
    """A whole number from `lowest` to `highest`."""

    name = "number"

    def __init__(self, lowest: int, highest: int | None = None) -> None:
        self.lowest, self.highest = lowest, highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return `value` as a number."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[+-]?[0-9]{1,40}", value):
            self.fail(f"{value!r} is not a whole number", param, ctx)
        number = int(value)
        if number < self.lowest or (self.highest is not None and number > self.highest):
            bounds = f"x>={self.lowest}" if self.highest is None else f"{self.lowest}<=x<={self.highest}"
            self.fail(f"{number} is not in the range {bounds}", param, ctx)
        return number


class Rate(ParamType):
    """A number per second, above 0."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return `value` as a number."""
        try:
            rate = float(value)
        except ValueError:
            rate = 0.0
        if not 0 < rate < inf:  # also rejects NaN
            self.fail(f"{value!r} is not a number above 0", param, ctx)
        return rate


class Index(ParamType):
    """The index of an item; with `lowest` 0 also 0 for the head, with `newest` also that word."""

    name = "index"

    def __init__(self, *, lowest: int = 1, newest: bool = False) -> None:
        self.lowest, self.newest = lowest, newest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return `value` as a number."""
        from easq.model import NEWEST, parse_index

        if isinstance(value, int):
            return value
        if self.newest and value == "newest":
            return NEWEST
        try:
            return parse_index(value, lowest=self.lowest)
        except ValueError as error:
            self.fail(f"{error}{', or newest' if self.newest else ''}", param, ctx)


class Tag(ParamType):
    """A tag, `k=v`. Converted to a pair."""

    name = "k=v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the value of the tag."""
        from easq.model import tag_problem

        if isinstance(value, tuple):
            return value[0], value[1]
        problem = tag_problem(*(value.split("=", 1) if "=" in value else (value, None)))
        if problem:
            self.fail(f"{value!r} {problem}", param, ctx)
        name, _, text = value.partition("=")
        return name, text


class Header(ParamType):
    """A header, `K: V`. Converted to a pair."""

    name = "k: v"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the name and the value of the header."""
        if isinstance(value, tuple):
            return value[0], value[1]
        name, colon, text = value.partition(":")
        if not colon or not re.fullmatch(_HEADER_NAME, name.strip()):
            # the value is not shown, as it may be a token; without a colon that may be the whole text
            self.fail("a header is written 'Name: value', with a name of letters, digits and '-'", param, ctx)
        if re.search(_FORBIDDEN_IN_HEADER, text) or not text.isascii():
            self.fail(f"the value of {name.strip()} holds characters that no header may carry", param, ctx)
        return name.strip(), text.strip()


class HeaderText(ParamType):
    """Text that can be sent in a header: visible ASCII and spaces."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` unchanged."""
        if not value.isascii() or not value.isprintable():
            self.fail(f"{value!r} holds characters that no header may carry", param, ctx)
        return str(value)


class PathText(ParamType):
    """A path below the URL of a queue, without control characters, query, fragment or `..`."""

    name = "suffix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value` with one leading slash."""
        if any(not c.isprintable() or c in "?#\\" for c in value):
            self.fail(f"{value!r} is not a path: it contains a control character or one of ?#\\", param, ctx)
        if any(part in (".", "..") for part in value.split("/")):
            self.fail(f"{value!r} is not a path: a part of it is . or ..", param, ctx)
        text = "/" + value.strip("/")
        return "" if text == "/" else text


DURATION, TAG, HEADER, HEADER_TEXT, PATH_TEXT = Duration(), Tag(), Header(), HeaderText(), PathText()


RATE = Rate()


INDEX, INDEX_OR_HEAD = Index(), Index(lowest=0)


INDEX_OR_NEWEST = Index(lowest=0, newest=True)


_SIZE = r"(?ai)([0-9]{1,15})\s?([kmgt]?)(i?b)?"
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Size(ParamType):
    """A number of bytes; `k`, `M`, `G` and `T`, with or without `iB`, are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return `value` in bytes."""
        found = re.fullmatch(_SIZE, str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size such as 512, 10k or 1MiB", param, ctx)
        return int(found[1]) << (10 * _POWERS[found[2].lower()])


SIZE = Size()
