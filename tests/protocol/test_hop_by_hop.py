"""Hop-by-hop headers are not forwarded."""

from __future__ import annotations

from easq.protocol.hop_by_hop import end_to_end


def test_end_to_end_headers_are_forwarded_in_order() -> None:
    """Hop-by-hop headers in any case of letters are dropped, and headers that `Connection` names."""
    headers = [
        ("Content-Type", "a/b"),
        ("connection", "close, X-Own"),
        ("x-own", "1"),
        ("Keep-Alive", "timeout=5"),
        ("TRANSFER-ENCODING", "chunked"),
        ("Content-Length", "7"),
        ("Host", "h"),
        ("Expect", "100-continue"),
        ("Upgrade", "websocket"),
        ("Proxy-Authorization", "x"),
        ("Content-Encoding", "gzip"),
        ("X-Other", "2"),
        ("X-Other", "3"),
    ]
    assert end_to_end(headers) == (
        ("Content-Type", "a/b"),
        ("Content-Encoding", "gzip"),
        ("X-Other", "2"),
        ("X-Other", "3"),
    )
