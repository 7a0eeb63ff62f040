"""Starts the service until `easq serve` does."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from easq.broker.queue import Rules
from easq.errors import EasqError
from easq.service.server import Settings, serve
from easq.service.watch import Liveness
from easq.storage.base import Limits, Timing
from easq.wire.durations import parse_duration


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("serve")
    parser.add_argument("--port", type=int)
    parser.add_argument("--storage")
    parser.add_argument("--queue", action="append")
    parser.add_argument("--max-length", type=int, default=1_000_000)
    parser.add_argument("--leave-grace", type=parse_duration, default=2.0)
    parser.add_argument("--silent-after", type=parse_duration, default=10.0)
    given = parser.parse_args()
    rules = Rules(limits=Limits(given.max_length))
    settings = Settings(
        port=given.port,
        storage=given.storage,
        queues=given.queue or ("qservice",),
        token=os.environ.get("EASQ_TOKEN", ""),
        rules=rules,
        sink_rules=rules,
        timing=Timing(leave_grace_s=given.leave_grace),
        liveness=Liveness(given.silent_after),
    )
    try:
        asyncio.run(serve(settings, lambda server: print(f"EASQ_URL={server.url()}", flush=True)))
    except EasqError as error:
        print(f"easq: {error}", file=sys.stderr)
        return int(error.exit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
