"""A data file with queues that are filled already, faster than by way of the service."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping
from pathlib import Path

from easq.model import NO_INDEX, REQUEST_ID, Frame
from easq.storage.base import Limits
from easq.storage.open import open_storage

#: appends under way at a time
_BATCH = 1000


def fill(file: Path, queues: Mapping[str, int], size: int) -> None:
    """`file` holds so many items of `size` bytes in each queue, each with a request id, as puts would leave them."""
    asyncio.run(_fill(file, queues, size))


async def _fill(file: Path, queues: Mapping[str, int], size: int) -> None:
    storage = open_storage(f"sqlite:{file}", durability="os")
    await storage.start(lambda error: print(error))
    try:
        for stream, count in queues.items():
            await storage.open(stream)
            limits = Limits(max_items=count)
            for at in range(0, count, _BATCH):
                frames = [
                    Frame(NO_INDEX, {REQUEST_ID: str(uuid.uuid4())}, b"%-*d" % (size, number))
                    for number in range(at, min(at + _BATCH, count))
                ]
                await asyncio.gather(
                    *(storage.append(stream, frame, priority=0, limits=limits) for frame in frames)
                )
    finally:
        await storage.close()
