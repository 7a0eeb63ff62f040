"""The test whether instances can be reached: connect to each, and send nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from easq.model import Instance

#: connections that are opened at the same time
_AT_ONCE = 64


def probe(instances: Sequence[Instance], *, timeout_s: float) -> list[float | None]:
    """Return for each instance the seconds that connecting took; None for one not connected in `timeout_s`."""
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
