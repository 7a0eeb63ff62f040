"""Checks of a WebSocket handshake."""

from __future__ import annotations

from aiohttp import web

from easq.errors import BadRequest, UpgradeRequired


def check_handshake(request: web.BaseRequest, socket: web.WebSocketResponse) -> None:
    """Raise BadRequest for an invalid handshake, UpgradeRequired for another version of WebSocket.

    aiohttp also accepts versions of drafts. RFC 6455, section 4.4, requires an answer with the supported version.
    """
    version = request.headers.get("Sec-WebSocket-Version", "").strip()
    if version not in ("", "13"):
        raise UpgradeRequired("Sec-WebSocket-Version has to be 13")
    try:
        acceptable = socket.can_prepare(request).ok
    except ValueError:  # a key outside ASCII
        acceptable = False
    if not (acceptable and version):
        raise BadRequest("this is no WebSocket handshake: Connection, version 13 or the key is not right")


def check_not_stripped(request: web.BaseRequest) -> None:
    """Raise UpgradeRequired for a WebSocket handshake from which a proxy has removed the Upgrade header."""
    if any(name.lower().startswith("sec-websocket-") for name in request.headers):
        raise UpgradeRequired(
            "this is a WebSocket handshake without its Upgrade header: a proxy on the way removed it"
        )
