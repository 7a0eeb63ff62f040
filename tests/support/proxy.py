"""A TCP proxy in a thread of its own: what comes to its port goes on to a service, and back."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Sequence
from typing import TypeVar

SelfT = TypeVar("SelfT", bound="Proxy")
_CONNECTION = re.compile(rb"\r\nconnection: [^\r]*", re.IGNORECASE)
_UPGRADE = re.compile(rb"\r\nupgrade: ", re.IGNORECASE)


class Proxy:
    """Forwards each connection to a port of its own, `ports` in turns; a context manager."""

    def __init__(self, *ports: int) -> None:
        self._ports: Sequence[int] = ports
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )
        self.port = 0

    def __enter__(self: SelfT) -> SelfT:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # connections that were aborted are closed now

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = self._ports[self.connections % len(self._ports)]
        self.connections += 1
        writers = [writer]
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(inner_writer)
            await self._first(reader, inner_writer)
            await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))
            await asyncio.gather(*(each.wait_closed() for each in writers))
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side is gone, so the other one goes too
        finally:
            for each in writers:
                each.transport.abort()

    async def _first(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What is done before bytes are passed on as they come."""

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


class Alternating(Proxy):
    """A load balancer before HTTP services that sends each request to the next one.

    It asks the service to close after its answer, so that a client that keeps connections has to make a new one for its
    next request. A WebSocket stays where its handshake went.
    """

    async def _first(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if not _UPGRADE.search(head):
            line, _, rest = _CONNECTION.sub(b"", head).partition(b"\r\n")
            head = line + b"\r\nConnection: close\r\n" + rest
        writer.write(head)
