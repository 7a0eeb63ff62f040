"""What every way of talking to a server over HTTP agrees on: settings, what is tried again, and addresses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import quote, urlencode

from easq.net.trace import Trace
from easq.protocol.operations import Request
from easq.protocol.replies import STORED_HEADER, Reply, retry_after_s

#: what stands in the path of a request as it is, beside letters and digits
PATH_SAFE = "/-._~!$&'()*+,;=:@"
#: all header names and values of an answer together, in bytes
MAX_HEADER_BYTES = 64 * 1024
#: seconds after its --timeout at which a waiting command ends at the latest; an answer that comes until then counts
OVERTIME_S = 0.5
#: statuses that say that the queue is full or the caller asks too often: the request had no effect
FULL_STATUSES = (429, 450)
#: attempts of a put to a full queue that sends no Retry-After: a full queue seldom gets room by itself
MAX_FULL_ATTEMPTS = 3


@dataclass(frozen=True)
class Settings:
    """How servers are talked to. `trace` gets lines that are already without secrets.

    `environ` is where proxies are looked up, empty for none.
    """

    connect_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    cacert: str = ""
    insecure: bool = False
    max_answer_bytes: int = 64 * 1024 * 1024
    trace: Trace | None = None
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)


class Retry(Enum):
    """Which failed requests are sent again. Of the 4xx answers only 429 is retried, and 450, EAS's status for it."""

    #: whatever failed: the request changes nothing, or nothing more the second time
    READ = "read"
    #: as READ, but not after a 504: a gateway cut off a wait for items, and the caller asks again with a shorter wait
    POLL = "poll"
    #: only what certainly did not take effect: no connection, 429, 450, 503 that says so
    WRITE = "write"
    #: failures that another instance may not have: no connection, a lost one, no answer in time, 502, 503, 504, and
    #: 429 or 450 with Retry-After
    PREDICT = "predict"
    NEVER = "never"


def target(url: str, request: Request) -> str:
    """The whole address of a request: the path behind `url` and the query percent-encoded, a blank as `+`."""
    path = quote(request.path, safe=PATH_SAFE)
    query = urlencode(request.query)
    return f"{url}{path}?{query}" if query else url + path


def again_after_reply(retry: Retry, reply: Reply) -> bool:
    """Whether a request that was answered with `reply` is worth another attempt."""
    if retry is Retry.READ:
        return reply.status in FULL_STATUSES or reply.status >= 500
    if retry is Retry.POLL:
        return again_after_reply(Retry.READ, reply) and reply.status != 504
    if retry is Retry.WRITE:
        return reply.status in FULL_STATUSES or not_taken(reply)
    if reply.status in FULL_STATUSES:  # without Retry-After it is the model's own answer
        return retry is Retry.PREDICT and retry_after_s(reply) is not None
    return retry is Retry.PREDICT and reply.status in (502, 503, 504)


def not_taken(reply: Reply) -> bool:
    """Whether a 5xx answer says that the request certainly had no effect."""
    return reply.status == 503 and reply.header(STORED_HEADER).lower() == "no"
