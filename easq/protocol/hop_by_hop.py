"""Separates end-to-end headers from hop-by-hop headers. Source: RFC 9110, section 7.6.1."""

from __future__ import annotations

from collections.abc import Iterable

#: headers of one connection, and headers that each connection sets itself (Host, Content-Length, Expect)
_HOP_BY_HOP = frozenset(
    {
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te"),
        *("trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect"),
    }
)


def end_to_end(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the end-to-end headers. Omit hop-by-hop headers and those that a `Connection` header names."""
    given = list(headers)
    named = {
        word.strip().lower()
        for name, value in given
        if name.lower() == "connection"
        for word in value.split(",")
    }
    return tuple((name, value) for name, value in given if name.lower() not in _HOP_BY_HOP | named)
