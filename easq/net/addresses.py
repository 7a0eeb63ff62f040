"""The addresses of a host, tried one after the other within one timeout."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_turn(host: str, port: int, timeout_s: float, connect: Callable[[str, float], T]) -> T:
    """Return the connection to the first address of `host` for which `connect` succeeds.

    Each address gets an equal part of the time that is left, so that one that does not answer (an IPv6 address
    without a route) leaves time for the next. Raises socket.gaierror, or the error of the last address.
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
