"""WebSockets of models: accepting one, and sending a message."""

from __future__ import annotations

import asyncio

from aiohttp import ClientWebSocketResponse, WSCloseCode, web

from easq.server.connection import on_unmasked
from easq.server.deadline import Deadline
from easq.server.handshake import check_handshake
from easq.server.watch import WRITE_DEADLINE_S

#: time limit of the peer's answer to a close frame, in seconds
_CLOSE_S = 1.0


def is_upgrade(request: web.BaseRequest) -> bool:
    """Return whether the request asks for a WebSocket."""
    return request.method == "GET" and request.headers.get("Upgrade", "").lower() == "websocket"


def accept_socket(request: web.BaseRequest, max_payload: int) -> web.WebSocketResponse:
    """Return a WebSocket without extensions; the caller prepares it. An unmasked frame closes it with 1002.

    Raises BadRequest for an invalid handshake, and UpgradeRequired for another version of WebSocket.
    """
    socket = web.WebSocketResponse(compress=False, max_msg_size=max_payload + 1, timeout=_CLOSE_S)
    check_handshake(request, socket)
    closing: set[asyncio.Task[bool]] = set()  # a task without a reference may be freed before it ends

    def close() -> None:
        end = socket.close(code=WSCloseCode.PROTOCOL_ERROR, message=b"a frame was not masked")
        closing.add(asyncio.create_task(end))

    on_unmasked(request, close)
    return socket


async def send_message(
    socket: web.WebSocketResponse | ClientWebSocketResponse, data: bytes, *, text: bool
) -> None:
    """Send a message: as text if `text` is true and `data` is UTF-8, else as bytes. Raises TimeoutError."""
    async with Deadline(WRITE_DEADLINE_S):
        try:
            decoded = data.decode() if text else None
        except UnicodeDecodeError:
            decoded = None
        if decoded is None:
            await socket.send_bytes(data)
        else:
            await socket.send_str(decoded)
