"""An inference asked for and its result: by way of the queue, or straight from the gateway."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from urllib.parse import parse_qsl

from easq.client.failures import Unanswered
from easq.client.queue import QueueClient, sub_path
from easq.client.transport import Retry, Transport
from easq.errors import DeadlineExceeded, EasqError, NotAQueueService
from easq.model import REQUEST_ID, Frame, Tags
from easq.wire.operations import Caller, Request

#: of the time for a prediction, the part that one attempt may take at most
_ATTEMPT_PART = 3


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
) -> Frame:
    """The sink's item for `data` put into the input. It is still in the sink: who used it may delete it.

    Raises DeadlineExceeded, naming the request id, when it did not come within `timeout_s`.
    """
    end = time.monotonic() + timeout_s
    ack = input.put(
        data, tags=tags, priority=priority, path=path, content_type=content_type, key=uuid.uuid4().hex
    )
    if not ack.request_id:
        raise NotAQueueService("the put was answered without a request id, so its result cannot be found")
    later = f"the item stays queued; fetch its result with: easq get -k --request-id {ack.request_id}"
    try:
        left_s = max(end - time.monotonic(), 0.0)
        frames = sink.get(timeout_s=left_s, tags={REQUEST_ID: ack.request_id})
    except EasqError as error:
        text = f"{error.message} (while waiting for the result of request {ack.request_id})"
        raise type(error)(text, hint=later, status=error.status) from error
    if not frames:
        raise DeadlineExceeded(f"no result of request {ack.request_id} within {timeout_s:g} s", hint=later)
    return frames[0]


def predict_gateway(
    transport: Transport,
    url: str,
    caller: Caller,
    data: bytes,
    *,
    path: str = "",
    content_type: str = "",
    headers: Mapping[str, str] | None = None,
    timeout_s: float,
) -> bytes:
    """The service's answer to a POST of `data` with the caller's token, its bytes untouched.

    It is sent again, also after a connection was lost, while `timeout_s` lasts; one attempt takes a third of
    it at most. `headers` win over what is sent otherwise, so signed ones may be given.

    Args:
        path: what follows the service's address, query included.
    """
    route, _, query = path.partition("?")
    sent = {"Authorization": caller.token} if caller.token else {}
    if content_type:
        sent["Content-Type"] = content_type
    sent |= headers or {}
    request = Request("POST", tuple(parse_qsl(query, keep_blank_values=True)), sent, data, sub_path(route))
    try:
        reply = transport.exchange(
            url,
            request,
            None,
            deadline_s=timeout_s,
            attempt_s=timeout_s / _ATTEMPT_PART,
            retry=Retry.PREDICT,
        )
    except Unanswered as error:
        raise DeadlineExceeded(
            f"no answer within {timeout_s:g} s: {error.message}", hint=error.hint
        ) from error
    return reply.body
