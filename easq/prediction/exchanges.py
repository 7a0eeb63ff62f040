"""The exchanges of a prediction: through the queue, with the gateway, or with an instance.

Each exchange is a generator of steps (`easq.net.retry`). A transport runs one exchange; a pipeline runs many at once.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from urllib.parse import parse_qsl, quote

from easq.client.queue import QueueClient, put_operation, sub_path
from easq.errors import DeadlineExceeded, EasqError, NotAQueueService, QueueFull, ServerError, Unreachable
from easq.model import REQUEST_ID, Frame, Tags
from easq.net.failures import Unanswered, Unconnected, had_no_effect
from easq.net.retry import ATTEMPT_PART, OVERTIME_S, Attempt, Retry, Steps, Times, exchange, full_jitter
from easq.net.settings import NetworkSettings
from easq.net.url import PATH_SAFE, address_of, shown
from easq.prediction.discovery import Discovery
from easq.protocol.operations import Caller, Request
from easq.protocol.replies import read_error, read_put
from easq.protocol.request_ids import new_request_id
from easq.protocol.signatures import sign


def predict_queue(
    input: QueueClient,
    sink: QueueClient,
    data: bytes,
    *,
    timeout_s: float,
    tags: Tags | None = None,
    priority: int = 0,
    path: str = "",
    content_type: str = "",
    times: Times | None = None,
    unanswered: set[int] | None = None,
    asked: dict[str, bool] | None = None,
) -> Steps[Frame]:
    """Put `data` into the input, and return the result from the sink. The caller has to delete the result.

    Raises DeadlineExceeded with the request id if no result came within `timeout_s`.

    Args:
        times: is filled with the attempts and times of the put.
        unanswered: has the index of the item while its result is missing.
        asked: has the request id from the put on, and whether the item is certainly in the queue. The request id is
            removed if the put is refused, or if an error with the request id is raised.
    """
    end = time.monotonic() + timeout_s
    input, sink = input.bounded(end + OVERTIME_S), sink.bounded(end + OVERTIME_S)
    # chosen here, so that it is known even if the answer to the put is lost
    own_id = (tags or {}).get(REQUEST_ID) or new_request_id(time.time_ns() // 1_000_000)
    put = put_operation(
        data,
        tags={**(tags or {}), REQUEST_ID: own_id},
        priority=priority,
        path=path,
        content_type=content_type,
        key=uuid.uuid4().hex,
    )
    asked, times = {} if asked is None else asked, times or Times()
    asked[own_id] = False
    try:
        ack = yield from input.asking(put, read_put, times=times)
    except EasqError as error:
        asked.pop(own_id, None)
        if not times.doubt and had_no_effect(error):
            raise
        text = f"{error.message}; whether request {own_id} was stored is not known"
        hint = f"fetch its result, if it was, with: easq get -k --request-id {own_id}"
        raise type(error)(text, hint=hint, status=error.http_status) from error
    asked.pop(own_id, None)
    if not ack.request_id:
        raise NotAQueueService("the put was answered without a request id, so its result cannot be found")
    asked[ack.request_id] = True
    if unanswered is not None:
        unanswered.add(ack.index)
    later = f"the item stays queued; fetch its result with: easq get -k --request-id {ack.request_id}"
    try:
        left_s = max(end - time.monotonic(), 0.0)
        frames = yield from sink.getting(timeout_s=left_s, tags={REQUEST_ID: ack.request_id})
    except EasqError as error:
        asked.pop(ack.request_id, None)
        if time.monotonic() >= end and isinstance(error, Unreachable | ServerError):
            text = f"no result of request {ack.request_id} within {timeout_s:g} s: {error.message}"
            raise DeadlineExceeded(text, hint=later) from error
        text = f"{error.message} (while waiting for the result of request {ack.request_id})"
        raise type(error)(text, hint=later, status=error.http_status) from error
    if not frames:
        asked.pop(ack.request_id, None)
        raise DeadlineExceeded(f"no result of request {ack.request_id} within {timeout_s:g} s", hint=later)
    if unanswered is not None:
        unanswered.discard(ack.index)
    return frames[0]


@dataclass(frozen=True, slots=True)
class Served:
    """An answer with unchanged bytes, the address of its server, and its times."""

    data: bytes
    address: str  #: `HOST:PORT` or `IP:PORT` of the server that answered
    times: Times  #: connect and first byte of the last attempt, total of all


def predict_gateway(
    url: str,
    caller: Caller,
    settings: NetworkSettings,
    data: bytes,
    *,
    path: str = "",
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
    times: Times | None = None,
) -> Steps[Served]:
    """POST `data` to the service, and return its answer.

    A failed request is repeated until `timeout_s`, also after a lost connection. An attempt may take all the time that
    is left. `headers` replace the default headers, such as that of the token.

    Args:
        path: sub-path after the service's address, with its query.
        times: is filled, see `Served.times`.
    """
    route, _, query = path.partition("?")
    sent = {"Authorization": caller.token} if caller.token else {}
    if content_type:
        sent["Content-Type"] = content_type
    sent |= headers or {}
    request = Request("POST", tuple(parse_qsl(query, keep_blank_values=True)), sent, data, sub_path(route))
    began, times = time.monotonic(), times or Times()
    try:
        reply = yield from exchange(
            url,
            request,
            None,
            settings,
            times=times,
            deadline_s=timeout_s,
            retry=Retry.PREDICT,
        )
    except Unanswered as error:
        raise in_time(error, url, "", settings, timeout_s) from error
    times.total_s = time.monotonic() - began
    return Served(reply.body, address_of(url), times)


def predict_direct(
    discovery: Discovery,
    settings: NetworkSettings,
    data: bytes,
    *,
    path: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
    times: Times | None = None,
) -> Steps[Served]:
    """POST `data` to an instance of `discovery`, and return its answer.

    After a failure that another instance may not have, the request is sent to an instance that was not tried yet. After
    all instances were tried, there is a pause, and all are tried again, until `timeout_s`. While there is an instance
    that was not tried yet, an attempt takes at most a third of that time; the last one may take all that is left. More
    than one instance may receive the request.

    Args:
        times: is filled, see `Served.times`.
    """
    began = time.monotonic()
    end = began + timeout_s
    request = Request("POST", headers=headers or {}, body=data, path=discovery.lookup.path(path))
    times = times or Times()
    ever: set[str] = set()
    this_round: set[str] = set()
    rounds = 0
    error: EasqError = Unreachable(f"{discovery.lookup.service} has no instance")
    url, limit_s = "", timeout_s  # of the attempt that failed with `error`
    asked_s: list[float] = []  # Retry-After of each instance that failed in this round; 0 without one
    while True:
        # an instance that is new in the list goes before all that were tried
        instance = discovery.next(ever) or discovery.next(this_round)
        if instance is None:
            rounds += 1
            pause_s = max(full_jitter(rounds), min(asked_s, default=0.0))
            if time.monotonic() + pause_s >= end:
                raise in_time(error, url, _tried(times.attempts, ever), settings, timeout_s, limit_s)
            if settings.on_retry is not None:
                settings.on_retry(error)
            yield pause_s
            this_round.clear()
            asked_s.clear()
            continue
        address = instance.address
        ever.add(address)
        this_round.add(address)
        now = time.monotonic()
        times.attempts += 1
        # a hung instance must not take the time of another that may answer
        share_s = timeout_s / ATTEMPT_PART if discovery.has_other(this_round) else timeout_s
        until = min(now + min(share_s, settings.request_timeout_s), end)
        try:
            reply = yield Attempt(instance.url, request, None, max(now + 0.001, until), times)
            assert reply is not None, "an attempt has a reply, or failed"
            if not 200 <= reply.status < 300:
                raise read_error(reply)
        except EasqError as failure:
            if not another_may_do_better(failure):
                raise
            asked_s.append(failure.retry_after_s or 0.0)
            if isinstance(failure, Unconnected):
                cut_short = failure.timed_out and end - now < settings.connect_timeout_s
            else:
                cut_short = isinstance(failure, Unanswered) and end - now < timeout_s / ATTEMPT_PART
            if not cut_short or times.attempts == 1:
                # the error of an attempt that the time limit cut short says less than earlier ones
                error, url, limit_s = failure, instance.url, share_s
            if time.monotonic() >= end:
                tried = _tried(times.attempts, ever)
                raise in_time(error, url, tried, settings, timeout_s, limit_s) from failure
            continue
        times.total_s = time.monotonic() - began
        return Served(reply.body, address, times)


def signed(token: str, data: bytes, content_type: str, path: str) -> dict[str, str]:
    """Return the headers with the signature of a POST of `data` to the decoded `path`, dated now."""
    sent_path = quote(path, safe=PATH_SAFE)
    return sign(
        token,
        data,
        content_type=content_type or "application/octet-stream",
        date=formatdate(usegmt=True),
        path=sent_path,
    )


def another_may_do_better(error: EasqError) -> bool:
    """Return whether another attempt may help.

    True if there was no connection, it was lost, or no answer came in time; for status 502, 503 and 504; and for 429
    and 450 with Retry-After. False for any other answer, because it comes from the model itself.
    """
    if isinstance(error, NotAQueueService):
        return False
    if isinstance(error, QueueFull):
        return error.retry_after_s is not None
    return isinstance(error, Unreachable) or (
        isinstance(error, ServerError) and error.status in (502, 503, 504)
    )


def _tried(attempts: int, addresses: Collection[str]) -> str:
    if attempts == 1:
        return ""
    return f"{attempts} attempts on {len(addresses)} instance{'' if len(addresses) == 1 else 's'}"


def in_time(
    error: EasqError,
    url: str,
    tried: str,
    settings: NetworkSettings,
    timeout_s: float,
    limit_s: float | None = None,
) -> EasqError:
    """Return a copy of the last error with the number of attempts; DeadlineExceeded if no answer came in time.

    Args:
        url: the address of the attempt that failed with `error`.
        tried: the attempts in words; empty for one.
        limit_s: time limit of that attempt, without the request timeout, in seconds; by default `timeout_s`.
    """
    if isinstance(error, Unanswered):
        counted = f" ({tried})" if tried else ""
        whole_s = round(timeout_s, 1) or timeout_s
        if settings.request_timeout_s < (timeout_s if limit_s is None else limit_s):
            text = f"no answer within {whole_s:g} s: {error.message}{counted}"
            return DeadlineExceeded(text, hint=error.hint)
        text = f"no answer from {shown(url)} within {whole_s:g} s{counted}"
        return DeadlineExceeded(text, hint="raise --timeout if it is slow")
    counted = f" (the last of {tried})" if tried else ""
    return type(error)(f"{error.message}{counted}", hint=error.hint, status=error.http_status)
