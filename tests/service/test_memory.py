"""What strangers send leaves nothing behind: after thousands of bad requests and frames the service is as large."""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.service.test_fuzz import SEED, random_target
from tests.support.http import Connection, Stream
from tests.support.process import Service
from tests.support.websocket import watch

#: what the allocator may keep for itself, in KiB; a leak of 2 KiB a request would be twice as much
_SLACK_KIB = 8 * 1024
_REQUESTS, _WATCHES = 2000, 150

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc"),
]


def resident_kib(service: Service) -> int:
    status = Path(f"/proc/{service.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def bad_requests(stream: Stream, chance: random.Random, count: int) -> None:
    """Requests with values from the edges, on connections that are often given up in the middle."""
    for number in range(count):
        with Connection(stream.port) as connection, contextlib.suppress(OSError, EOFError):
            method = chance.choice(("GET", "PUT", "DELETE", "BREW", "GET"))
            connection.send_request(method, random_target(chance, stream.path), (), None)
            if number % 4:
                connection.read_answer(has_body=True)


def bad_frames(stream: Stream, chance: random.Random, count: int) -> None:
    """Watches that end with a frame that is none, one that promises 2^62 bytes, a reset, or silence."""
    frames = [
        b"\xff\xff",
        b"\x82\xff" + struct.pack(">Q", 1 << 62) + b"mask",
        b"\x80\x80mask",
        b"\x89\xfe\x01\x00mask" + bytes(256),
        b"\x01\x81mask\xff" * 50,
        b"",
    ]
    for number in range(count):
        watching = watch(stream.as_consumer(f"u{number % 7}"))
        with contextlib.suppress(OSError):
            watching.connection.send(chance.choice(frames))
        watching.reset()


def test_bad_requests_and_frames_leave_nothing_behind(serve: Serve) -> None:
    service = serve("--leave-grace", "0s", storage="memory:")
    stream = service.stream()
    chance = random.Random(SEED)
    bad_requests(stream, chance, _REQUESTS)
    bad_frames(stream, chance, _WATCHES)
    before = resident_kib(service)
    for _ in range(2):
        bad_requests(stream, chance, _REQUESTS)
        bad_frames(stream, chance, _WATCHES)
    grown = resident_kib(service) - before
    assert grown < _SLACK_KIB, f"{grown} KiB more than {before} KiB"
    assert stream.put(b"still alive") > 0
