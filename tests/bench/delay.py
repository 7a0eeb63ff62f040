"""A network that takes its time: what goes through it arrives a fixed while later, in both directions together."""

from __future__ import annotations

import asyncio

from tests.support.proxy import Proxy


class Delay(Proxy):
    """Forwards a port of its own to `port`, adding `round_trip_s` to each round trip; a context manager."""

    def __init__(self, port: int, round_trip_s: float) -> None:
        super().__init__(port)
        self._one_way_s = round_trip_s / 2

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What is read is written once its time has come; a timer for each piece keeps them in order."""
        while data := await reader.read(65536):
            self._loop.call_later(self._one_way_s, writer.write, data)
        self._loop.call_later(self._one_way_s, writer.close)
