"""Headers of one connection stay behind."""

from __future__ import annotations

from easq.protocol.hop_by_hop import end_to_end


def test_headers_of_the_content_go_on_in_order() -> None:
    """Those of the connection do not, in any case of letters, nor those that `Connection` names."""
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
