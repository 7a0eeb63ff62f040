"""A network that takes its time: what goes through it arrives a fixed while later, in both directions together."""

from __future__ import annotations

import asyncio
import threading


class Delay:
    """Forwards a port of its own to `port`, adding `round_trip_s` to each round trip; a context manager."""

    def __init__(self, port: int, round_trip_s: float) -> None:
        self._to, self._one_way_s = port, round_trip_s / 2
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )
        self.port = 0

    def __enter__(self) -> Delay:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._to)
        await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What is read is written once its time has come; a timer for each piece keeps them in order."""
        while data := await reader.read(65536):
            self._loop.call_later(self._one_way_s, writer.write, data)
        self._loop.call_later(self._one_way_s, writer.close)
