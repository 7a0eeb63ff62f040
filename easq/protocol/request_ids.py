"""Request ids, which link an item of the input to its result in the sink."""

from __future__ import annotations

import os
from functools import lru_cache
from random import Random

#: a generator of easq's own, since a program that imports easq may seed the one of `random`. It is seeded once by the
#: system: a call of the system for each id would take 1 us
_RANDOM = Random()
if hasattr(os, "register_at_fork"):  # without a new seed, forked processes would make the same ids
    os.register_at_fork(after_in_child=_RANDOM.seed)
#: masks for the last 80 bits of an id (UUID version 7, variant 1): random bits, and bits that are always set
_RANDOM_BITS, _VERSION_BITS = 0xFFF_3FFF_FFFF_FFFF_FFFF, 0x7000_8000_0000_0000_0000


def new_request_id(moment_ms: int) -> str:
    """Return a UUID of version 7 (RFC 9562). Its first 48 bits are the time, so new ids are neighbours in an index."""
    text = (_RANDOM.getrandbits(76) & _RANDOM_BITS | _VERSION_BITS).to_bytes(10, "big").hex()
    return f"{_time_in_id(moment_ms)}-{text[:4]}-{text[4:8]}-{text[8:]}"


@lru_cache(maxsize=1)
def _time_in_id(moment_ms: int) -> str:
    text = f"{moment_ms & 0xFFFFFFFFFFFF:012x}"
    return f"{text[:8]}-{text[8:]}"
