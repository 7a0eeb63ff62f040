"""A check that instances can be reached: connect to each instance without sending a request."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from easq.model import Instance

#: maximum number of connections that are opened at the same time
_AT_ONCE = 64


def probe(instances: Sequence[Instance], *, timeout_s: float) -> list[float | None]:
    """Return the connect time of each instance in seconds; None if it did not connect within `timeout_s`."""
    if not instances:
        return []

    def connect(instance: Instance) -> float | None:
        began = time.monotonic()
        try:
            with socket.create_connection((instance.ip, instance.port), timeout_s):
                return time.monotonic() - began
        except OSError:
            return None

    pool = ThreadPoolExecutor(min(_AT_ONCE, len(instances)))
    try:
        return list(pool.map(connect, instances))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
