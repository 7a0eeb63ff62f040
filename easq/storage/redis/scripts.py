"""Builds the text of each Lua script: the parts that its first line names, then its own file.

That line is `-- flags: FLAGS; after: PART PART ...`; the flags are those that Redis 7 takes in the first line of a
script. A part is a Lua file with functions for several scripts.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_HEAD = re.compile(r"-- flags: ?(?P<flags>[a-z,-]*); after: ?(?P<parts>[a-z ]*)")


@cache
def source(name: str) -> str:
    """Return the script `lua/NAME.lua` as Redis takes it."""
    own = _text(name)
    head = _HEAD.fullmatch(own.partition("\n")[0])
    assert head is not None, f"{name}.lua does not say what comes before it"
    flags = f" flags={head['flags']}" if head["flags"] else ""
    return "\n".join([f"#!lua{flags}", *map(_text, head["parts"].split()), own])


def _text(name: str) -> str:
    return (
        resources.files("easq.storage.redis")
        .joinpath("lua")
        .joinpath(f"{name}.lua")
        .read_text(encoding="utf-8")
    )
