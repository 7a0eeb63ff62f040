"""The Lua scripts of the Redis engine, by name."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def source(name: str) -> str:
    """The text of the script `lua/NAME.lua`."""
    return (files("easq.storage") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
