"""Bytes from the network as text that cannot control a terminal; sizes as eascmd prints them."""

from __future__ import annotations

import re
import unicodedata

#: maximum number of characters of one payload on a terminal; the size of the rest is shown
MAX_SHOWN = 64 * 1024

#: maximum number of characters of a payload in a cell of a table
MAX_CELL = 60

#: characters that Unicode calls printable but that show nothing, and so can hide text: fillers and variation selectors.
#: U+FE0E and U+FE0F, the selectors of emoji, are not among them
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE0E), *range(0xE0100, 0xE01F0))))
)

_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f]"

_SHORT = {"\r": "\\r", "\n": "\\n", "\t": "\\t"}

#: characters that are escaped in a JSON line in addition to those that JSON requires: control and format characters,
#: fillers, variation selectors, tags, surrogates
_UNSAFE_IN_JSON = (
    "[\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0d\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)


def escape(text: str) -> str:
    """Return `text` with control characters and invisible characters escaped, except newline and tab."""
    return "".join(c if c in "\n\t" or _safe(c) else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """Return `text` escaped, newline and tab too."""
    if text.isprintable() and not _INVISIBLE.intersection(text):
        return text
    return "".join(c if _safe(c) else _escaped(c) for c in text)


def cell(text: str) -> str:
    """Return `text` as a cell of tab-separated values. The escaping is reversible, because backslashes are doubled."""
    return one_line(text.replace("\\", "\\\\"))


def json_safe(line: str) -> str:
    """Return a JSON text of the same value, with control, format and surrogate characters escaped."""
    import json

    return re.sub(_UNSAFE_IN_JSON, lambda match: json.dumps(match[0])[1:-1], line)


def shown(data: bytes, *, limit: int = MAX_SHOWN) -> str:
    """Return `data` for a terminal: escaped text cut at `limit`, or a placeholder for binary data."""
    text = as_text(data)
    if text is None:
        return f"<binary {brief_size(len(data))}, use -o raw>"
    if len(text) > limit:
        rest = len(text[limit:].encode())
        return f"{escape(text[:limit])}… <{brief_size(rest)} more, use -o raw>"
    return escape(text)


def drives_terminal(data: bytes) -> bool:
    """Return whether `data` has control characters other than newline and tab, or is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return re.search(_CONTROL, text) is not None


def as_text(data: bytes) -> str | None:
    """Return `data` as text; None if it is not UTF-8 or has a NUL."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def size(count: int) -> str:
    """Return a size in bytes as text with two decimals: `3.00 B`."""
    return _sized(count, 2)


def brief_size(count: int) -> str:
    """Return a size in bytes as short text: `812 B`, `10.2 KiB`."""
    return f"{count} B" if count < 1024 else _sized(count, 1)


def _sized(count: int, decimals: int) -> str:
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.{decimals}f} {unit}"
        amount /= 1024
    return f"{amount:.{decimals}f} TiB"


def _safe(char: str) -> bool:
    # Zs beyond the space (U+00A0, U+3000) is ordinary text, though Python calls it unprintable.
    return (char.isprintable() or unicodedata.category(char) == "Zs") and char not in _INVISIBLE


def _escaped(char: str) -> str:
    if char in _SHORT:
        return _SHORT[char]
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
