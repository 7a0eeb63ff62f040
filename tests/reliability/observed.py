"""`easq serve` that logs the operations of engines: stored results, and commits when they arrive.

python -m tests.reliability.observed FOLDER serve ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easq.cli.main import main
from easq.model import Ack, Consumer
from easq.protocol import operations as op
from easq.server.queue import Queue
from tests.reliability.oplog import Log


def observe(log: Log) -> None:
    """A put is logged after it is stored, a commit before it is processed."""
    put, commit = Queue.put, Queue.commit

    async def logged_put(self: Queue, operation: op.Put) -> Ack:
        done = await put(self, operation)
        request_id = operation.tags.get("requestId", "")
        log.add("answer" if self.is_sink else "put", index=done.index, payload=request_id)
        return done

    async def logged_commit(self: Queue, consumer: Consumer, indexes: Sequence[int]) -> Any:
        log.add("commit", "invoke", indexes=list(indexes), connection=consumer.id)
        return await commit(self, consumer, indexes)

    Queue.put, Queue.commit = logged_put, logged_commit


if __name__ == "__main__":
    folder = Path(sys.argv.pop(1))
    folder.mkdir(parents=True, exist_ok=True)
    observe(Log(folder, "service"))
    main()
