"""The figures of a load test as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from easq.protocol.durations import format_duration
from easq.render.payload import size

#: length of the longest bar, in characters
_BAR = 40


def figure_lines(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return the name and the text of every figure that has a value, in the order of `record`."""
    return [
        (name.removesuffix("_ms").replace("p99_9", "p99.9"), text) for name, text in _texts(record) if text
    ]


def _texts(record: Mapping[str, object]) -> list[tuple[str, str]]:
    found = []
    for name, value in record.items():
        if value is None:
            continue
        if name.endswith("_ms"):
            text = format_duration(round(float(str(value)) / 1000, 6))
        elif name == "seconds":
            text = format_duration(round(float(str(value)), 3))
        elif name == "throughput":
            text = f"{float(str(value)):.1f}/s"
        elif name == "bytes_per_second":
            text = f"{size(int(str(value)))}/s"
        elif name == "size":
            text = size(int(str(value)))
        else:
            text = str(value)
        found.append((name, text))
    return found


def histogram_lines(bars: Sequence[tuple[float, int]]) -> list[str]:
    """Return a bar for each bound in seconds; its length is the count, relative to the largest."""
    most = max((count for _, count in bars), default=0) or 1
    return [
        f"{'<= ' + format_duration(round(bound, 6)):>16} {'#' * -(-count * _BAR // most):<{_BAR}} {count}"
        for bound, count in bars
    ]
