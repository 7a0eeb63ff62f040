"""Durations in the format of the wire: Go's `time.Duration`, or a bare number of seconds.

Source: Go's `time.ParseDuration` and `Duration.String`; samples of the vendor's page (`3s`, `401.892141ms`,
`19.997s`).
"""

from __future__ import annotations

import re

#: nanoseconds of a second, and of each unit
_NS_PER_S = 1_000_000_000
_UNIT_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, what Go writes
    "μs": 1_000,  # U+03BC, what a Greek keyboard writes; Go reads both
    "ms": 1_000_000,
    "s": _NS_PER_S,
    "m": 60 * _NS_PER_S,
    "h": 3600 * _NS_PER_S,
}
#: longest text that is parsed: every duration that fits Go's 63 bits is shorter
_MAX_TEXT = 64
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)"
_WHOLE = rf"(?:{_NUMBER}(?:ns|us|µs|μs|ms|s|m|h))+"


def parse_duration(text: str) -> float:
    """Return the seconds of `text`: `1m30s`, `500ms`, `1.5h`, or a bare number of seconds.

    Raises ValueError for any other text, also for a negative duration.
    """
    shown = repr(text if len(text) <= 80 else text[:80] + "...")
    if len(text) <= _MAX_TEXT:
        if re.fullmatch(_NUMBER, text):
            return _nanoseconds(text, _NS_PER_S) / _NS_PER_S
        if re.fullmatch(_WHOLE, text):
            parts = re.findall(_PART, text)
            return sum(_nanoseconds(number, _UNIT_NS[unit]) for number, unit in parts) / _NS_PER_S
        if text.startswith("-") and (re.fullmatch(_NUMBER, text[1:]) or re.fullmatch(_WHOLE, text[1:])):
            raise ValueError(f"a duration is not negative: {shown}")
    raise ValueError(f"not a duration: {shown} (write 500ms, 3s, 1m30s, or seconds)")


def format_duration(seconds: float) -> str:
    """Return `seconds`, to the nanosecond, as Go's `Duration.String`: `0s`, `401.892142ms`, `1m2.5s`."""
    # the fraction alone is multiplied: a float of more than 26 days in nanoseconds is not exact
    whole = int(seconds)
    return _format_ns(whole * _NS_PER_S + round((seconds - whole) * _NS_PER_S))


def format_duration_ms(seconds: float) -> str:
    """Return `seconds` rounded to the millisecond, as in the `Idle` column of a consumer: `19.997s`."""
    return _format_ns(round(seconds * 1000) * 1_000_000)


def _nanoseconds(number: str, unit_ns: int) -> int:
    """Return `number` units in nanoseconds, exactly. A fraction of a nanosecond is cut off, as in Go."""
    whole, _, fraction = number.partition(".")
    return int(whole or "0") * unit_ns + int(fraction or "0") * unit_ns // int("1" + "0" * len(fraction))


def _format_ns(ns: int) -> str:
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    if ns == 0:
        return "0s"
    for unit, unit_ns, above in (("ns", 1, 1_000), ("µs", 1_000, 1_000_000), ("ms", 1_000_000, _NS_PER_S)):
        if ns < above:
            return f"{sign}{_decimal(ns, unit_ns)}{unit}"
    minutes, rest = divmod(ns, 60 * _NS_PER_S)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, _NS_PER_S) + "s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else sign + text


def _decimal(ns: int, unit_ns: int) -> str:
    whole, fraction = divmod(ns, unit_ns)
    if not fraction:
        return str(whole)
    digits = len(str(unit_ns)) - 1
    return f"{whole}.{fraction:0{digits}d}".rstrip("0")
