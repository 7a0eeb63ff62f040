"""The rules of an exchange, without I/O: its attempts, the pauses between them, and its deadline.

An exchange is a generator. It yields an Attempt, or the length of a pause in seconds. The runner sends the reply to an
Attempt into the generator, or throws its error. The generator returns the answer. `Transport.run` runs one exchange,
blocking; `Sender.run` and `Pipeline` run many on an event loop.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias, TypeVar

from easq.errors import EasqError, Unreachable
from easq.net.failures import Unanswered, Unconnected, last_known, refused_by_proxy
from easq.net.settings import NetworkSettings
from easq.net.url import proxy_for
from easq.protocol.operations import Caller, Request
from easq.protocol.replies import STORED_HEADER, Reply, read_error, retry_after_s

R = TypeVar("R")

#: longest time that a waiting command runs beyond its --timeout, in seconds; it still accepts an answer in this time
OVERTIME_S = 0.5
#: part of a prediction's time limit that one attempt may take while there is another instance to try; also the least
#: part that an attempt needs, so that its missing answer says more than the error before it
ATTEMPT_PART = 3
#: statuses of a full queue, and of a caller who asks too often: the request had no effect
FULL_STATUSES = (429, 450)
#: attempts of a put to a full queue that sends no Retry-After: a full queue seldom gets room by itself
MAX_FULL_ATTEMPTS = 3
#: limit of the first pause, in seconds; doubled for each further one
BASE_S = 0.1
#: limit of any pause, in seconds
CAP_S = 5.0
#: number of failures after which a short pause no longer gets longer
_SHORT_FAILURES = 4
#: time limit of an attempt that begins after the deadline, in seconds: it fails like other unanswered attempts
LEAST_S = 0.001


class Retry(Enum):
    """The failed requests that are sent again. 4xx answers are final, except 429 and 450 (EAS's full queue)."""

    #: after any failure: the request is idempotent
    READ = "read"
    #: as READ, but not after a 504: a gateway ended the wait for items, and the caller asks again with a shorter wait
    POLL = "poll"
    #: only if the request certainly had no effect: no connection, 429, 450, a 503 that says so
    WRITE = "write"
    #: after failures that another instance may not have: no connection, a lost one, no answer in time, 502, 503, 504,
    #: and 429 or 450 with Retry-After
    PREDICT = "predict"
    NEVER = "never"


@dataclass(slots=True)
class Times:
    """The times of an exchange's last attempt, in seconds from its beginning, and facts about earlier attempts."""

    connect_s: float | None = None  #: None if the connection was reused
    first_byte_s: float | None = None  #: of the answer; None without one
    total_s: float = 0.0
    attempts: int = 0
    doubt: bool = False  #: an attempt before the one that is reported may have taken effect
    #: error of the last attempt during the pause before the next; None while an attempt is in flight
    pausing: EasqError | None = None


class Attempt(NamedTuple):
    """A request to send once. It fails unless the reply is complete by `until` on the monotonic clock."""

    url: str
    request: Request
    caller: Caller | None  #: identity and token that are sent; None if the request has its own
    until: float
    times: Times  #: filled in by the sender


#: an exchange whose result is an R
Steps: TypeAlias = "Generator[Attempt | float, Reply | None, R]"


def exchange(
    url: str,
    request: Request,
    caller: Caller | None,
    settings: NetworkSettings,
    *,
    deadline_s: float | None = None,
    until: float | None = None,
    retry: Retry = Retry.READ,
    times: Times | None = None,
) -> Steps[Reply]:
    """Return the 2xx reply to `request`. Raise the error of the last attempt if there is none.

    Args:
        caller: identity and token that are sent; None if the request has its own.
        deadline_s: time limit of the exchange with all retries; by default the request timeout. Without `deadline_s`,
            connecting is retried only during the connect timeout.
        until: latest end of the exchange on the monotonic clock; it overrides longer limits.
        times: filled in during the exchange.
    """
    start = now = time.monotonic()
    end = start + (settings.request_timeout_s if deadline_s is None else deadline_s)
    if until is not None:
        end = max(min(end, until), start + LEAST_S)
    connect_end = end if deadline_s is not None else min(end, start + settings.connect_timeout_s)
    times = Times() if times is None else times
    failures = full = 0
    why: EasqError | None = None
    while True:
        give_up = end
        times.attempts += 1
        try:
            reply = yield Attempt(url, request, caller, min(end, now + settings.request_timeout_s), times)
            assert reply is not None, "an attempt has a reply, or failed"
            if 200 <= reply.status < 300:
                return reply
            error: EasqError = read_error(reply)
            if reply.status == 407 and (proxy := proxy_for(url, settings.environ)):
                error = refused_by_proxy(url, proxy, "407 Proxy Authentication Required")
            full += reply.status in FULL_STATUSES and request.method == "POST" and error.retry_after_s is None
            again = full < MAX_FULL_ATTEMPTS and again_after_reply(retry, reply)
            unsure = reply.status >= 500 and not not_taken(reply)
        except Unconnected as failure:
            error, again, give_up = failure, retry is not Retry.NEVER and not failure.lasting, connect_end
            unsure = False
        except Unreachable as failure:
            error, again, unsure = failure, retry in (Retry.READ, Retry.POLL, Retry.PREDICT), True
        had_s, now = end - now, time.monotonic()
        had_time = (
            retry is Retry.PREDICT and isinstance(error, Unanswered) and had_s >= (end - start) / ATTEMPT_PART
        )
        if had_time and now >= end:
            raise error
        if why is not None and isinstance(error, Unreachable) and now >= end:
            # the last attempt was cut short, so the error before it says more; but a write in doubt must be reported
            times.doubt = times.doubt or unsure
            raise error if unsure and retry is Retry.WRITE else why
        failures += 1
        pause_s = pause_after(error, failures)
        if not again or now + pause_s >= give_up:
            raise last_known(error, why)
        why = error
        times.doubt = times.doubt or unsure
        times.pausing = error
        if settings.on_retry is not None:
            settings.on_retry(error)
        yield pause_s
        times.pausing = None
        now = time.monotonic()


def full_jitter(failures: int) -> float:
    """Return the pause in seconds after consecutive failures, as in AWS's "Exponential Backoff And Jitter"."""
    return random.uniform(0.0, min(CAP_S, BASE_S * 2.0 ** min(failures - 1, 10)))


def pause_after(error: EasqError, failures: int) -> float:
    """Return the seconds to pause after `error`: the server's Retry-After if it sent one, else full jitter.

    A little jitter is added to Retry-After, so that clients do not all come back at once.
    """
    if error.retry_after_s is None:
        return full_jitter(failures)
    return error.retry_after_s + full_jitter(1)


def short_pause_after(error: EasqError, failures: int) -> float:
    """Return a shorter pause in seconds, for errors that may soon end: a full sink has room once somebody reads."""
    return pause_after(error, min(failures, _SHORT_FAILURES))


def again_after_reply(retry: Retry, reply: Reply) -> bool:
    """Return whether a request that was answered with `reply` is sent again."""
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
    """Return whether a 5xx answer says that the request had no effect."""
    return reply.status == 503 and reply.header(STORED_HEADER).lower() == "no"
