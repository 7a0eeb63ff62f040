"""The addresses of a host, tried one after the other within one timeout."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_turn(host: str, port: int, timeout_s: float, connect: Callable[[str, float], T]) -> T:
    """Return what `connect` gives of the first address of `host` that it raises nothing for.

    Each address has an equal part of what is left of `timeout_s`: one that nothing answers at (an IPv6 address
    without a way to it) leaves time for the next. Raises socket.gaierror, or what the last address failed with.
    """
    end = time.monotonic() + timeout_s
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        part_s = max((end - time.monotonic()) / left, 0.001)
        try:
            return connect(address, part_s)
        except Exception:
            if left == 1:
                raise
    raise OSError(f"{host} has no address")
