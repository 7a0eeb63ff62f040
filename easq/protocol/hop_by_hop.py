"""Headers that travel with the content, apart from those of one connection. Source: RFC 9110, section 7.6.1."""

from __future__ import annotations

from collections.abc import Iterable

#: belong to one connection, or are made anew for each
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"),
    }
)


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those that belong to the content, not to one connection, nor are named by its `Connection` header."""
    given = list(headers)
    named = {
        word.strip().lower()
        for name, value in given
        if name.lower() == "connection"
        for word in value.split(",")
    }
    return tuple((name, value) for name, value in given if name.lower() not in _HOP_BY_HOP | named)
