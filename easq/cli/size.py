"""Sizes on the command line: `10k`, `1MiB`, `512`."""

from __future__ import annotations

import re
from typing import Any

import click

from easq.cli.options import ParamType

_SIZE = re.compile(r"([0-9]{1,15})\s?([kmgt]?)(i?b)?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Size(ParamType):
    """A number of bytes; `k`, `M`, `G` and `T`, with or without `iB`, are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`value` in bytes."""
        found = _SIZE.fullmatch(str(value).strip())
        if found is None:
            self.fail(f"{value!r} is not a size such as 512, 10k or 1MiB", param, ctx)
        return int(found[1]) << (10 * _POWERS[found[2].lower()])


SIZE = Size()
