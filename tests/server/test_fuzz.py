"""Random requests: each is answered, never with a 5xx, and a refused request changes nothing."""

from __future__ import annotations

import os
import random
from functools import partial
from urllib.parse import quote

import pytest

from tests.server.conftest import Open
from tests.support.http import Stream, ask
from tests.support.waiting import promptly

SEED = int(os.environ.get("EASQ_SEED", "20240601"))
REQUESTS = 400

#: edge values of numbers, and texts that only some parsers read as numbers
NUMBERS = ["-1", "0", "1", "2", "00", "+1", "1.0", "1e3", "0x10", "０１", "", " 1", "1 ", "9", "2147483648"]
NUMBERS += [str(2**power + delta) for power in (53, 63, 64) for delta in (-1, 0, 1)] + [
    "9" * 400,
    "1_0",
    "-0",
    "NaN",
]
LISTS = [
    "1",
    "1,2",
    "1,,2",
    ",",
    "1,1,1",
    " 1 , 2 ",
    "1;2",
    "0",
    ",".join(map(str, range(3999))),
    "x",
    "1," * 4001,
]
BOOLEANS = ["true", "TRUE", "false", "1", "0", "yes", "", "junk", "true ", "ｔｒｕｅ"]
DURATIONS = ["0", "0s", "1ns", "-1s", "9e99h", "1h1", "soon", "", ".", "0.001", "1ms", "1µs", "0h0m0s", "∞"]
TEXTS = [
    "",
    "a",
    "b c",
    "ü",
    "\x00",
    "a\r\nb",
    "\u202e",
    "x" * 300,
    "x" * 20_000,
    "%",
    "&=?#",
    "'",
    "../..",
    "\ud800",
]
PATHS = [
    "",
    "/sink",
    "/sink/sink",
    "/v1/x",
    "/..",
    "/%2e%2e",
    "//",
    "/%00",
    "/../../etc/passwd",
    "/a%0d%0ab",
    "/%ff",
]
METHODS = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND"]
PARAMETERS = {
    "_index_": NUMBERS,
    "_length_": NUMBERS,
    "_timeout_": DURATIONS,
    "_auto_delete_": BOOLEANS,
    "_raw_": BOOLEANS,
    "_attrs_": BOOLEANS,
    "_search_": BOOLEANS,
    "_count_": BOOLEANS,
    "_priority_": NUMBERS,
    "_indexes_": LISTS,
    "_trunc_": BOOLEANS,
    "_negative_": BOOLEANS,
    "_unknown_": TEXTS,
    "requestId": TEXTS,
    "tag": TEXTS,
    "": TEXTS,
}
HEADERS = {
    "Accept": [
        "*/*",
        "application/json",
        "application/vnd.google.protobuf",
        "application/x-flatbuffers",
        "",
        ";;",
    ],
    "Content-Type": [
        "application/json",
        "text/html",
        "",
        "a" * 2000,
        "application/x-www-form-urlencoded",
        "ü",
    ],
    "Content-Encoding": ["gzip", "identity", "", "x" * 2000],
    "X-EAS-QueueService-Uid": ["u", "", "a b", "x" * 129, "ü"],
    "X-EAS-QueueService-Priority": NUMBERS[:12],
    "Idempotency-Key": ["k", "", "a b", "x" * 129],
    "Authorization": ["", "Bearer", "EAS x", "ü"],
    "Upgrade": ["h2c", "", "websockets"],
    "Origin": ["null", "http://evil.test"],
}
BODIES = [
    b"",
    b"x",
    b"_code_=Shutdown&_reason_=r",
    b"_code_=%ff",
    b"\x00" * 100,
    b"_code_=" + b"A" * 1_000,
    b"&&&===",
]


def random_target(chance: random.Random, base: str) -> str:
    """Return a path and a query, mostly of known parameters with edge values."""
    names = chance.choices(list(PARAMETERS), k=chance.randint(0, 4))
    pairs = []
    for name in names:
        value = chance.choice(PARAMETERS[name])
        safe = "" if chance.random() < 0.9 else "%&=+"
        pairs.append(f"{quote(name)}={quote(value, safe=safe, errors='surrogatepass')}")
    return f"{base}{chance.choice(PATHS)}{'?' if pairs else ''}{'&'.join(pairs)}"


@pytest.mark.parametrize("course", range(4))
def test_no_request_breaks_the_service(start: Open, course: int) -> None:
    """Every status of a random sequence is below 500, and refused requests change nothing."""
    chance = random.Random(SEED + course)
    queue = start().queue
    statuses: dict[int, int] = {}
    for number in range(REQUESTS):
        queue.put(b"x") if number % 10 == 0 else None
        method = chance.choice(METHODS[:4] if chance.random() < 0.9 else METHODS)
        target = random_target(chance, queue.path)
        headers = [
            (name, chance.choice(HEADERS[name]))
            for name in chance.sample(list(HEADERS), chance.randint(0, 3))
        ]
        body = chance.choice(BODIES) if method in {"POST", "PUT"} or chance.random() < 0.1 else None
        before = state(queue)
        answer = promptly(partial(ask, queue.port, method, target, headers, body))
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
        told = f"seed {SEED + course}, request {number}: {method} {target[:300]} {headers} {body!r}: {answer}"
        assert 200 <= answer.status < 500, told
        if answer.status >= 400:
            assert state(queue) == before, told
            assert len(answer.body) <= 600, told
    assert {200, 400} <= set(statuses)
    assert queue.put(b"still alive") > 0


def state(queue: Stream) -> list[tuple[str, ...]]:
    """Return a summary of the contents of input and sink."""
    seen = []
    for stream in (queue, queue.sink):
        found = stream.attributes()
        seen.append(tuple(found[f"stream.{key}"] for key in ("length", "firstEntry", "lastEntry", "bytes")))
    return seen
