"""Three instances that echo, and the discovery that names them, in one lean process: what is measured is the client.

`python -m tests.bench.lean` prints the port of discovery on its first line, and serves until it is killed. It reads
HTTP just as far as the two clients need it.
"""

from __future__ import annotations

import asyncio
import json

INSTANCES = 3
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n%b"


class Echo(asyncio.Protocol):
    """Answers each request with its body, or with `fixed` where that is not empty."""

    def __init__(self, fixed: bytes = b"") -> None:
        self._fixed = fixed
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        held = self._held + data
        while (end := held.find(b"\r\n\r\n") + 4) >= 4:
            _, found, rest = held[:end].lower().partition(b"\r\ncontent-length:")
            size = int(rest.split(b"\r\n", 1)[0]) if found else 0
            if len(held) < end + size:
                break
            body, held = held[end : end + size], held[end + size :]
            answer = self._fixed or body
            self._transport.write(_ANSWER % (len(answer), answer))
        self._held = held


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Echo, "127.0.0.1", 0) for _ in range(INSTANCES)]
    ports = [server.sockets[0].getsockname()[1] for server in servers]
    items = [{"app": "model", "ip": "127.0.0.1", "port": port, "weight": 1} for port in ports]
    known = json.dumps({"correlative": ["model"], "endpoints": {"items": items}}).encode()
    discovery = await loop.create_server(lambda: Echo(known), "127.0.0.1", 0)
    print(discovery.sockets[0].getsockname()[1], flush=True)
    await discovery.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
