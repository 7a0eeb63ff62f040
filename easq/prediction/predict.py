"""One prediction as a function call: through the queue, to the gateway, or to an instance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Literal

from easq.client.items import Item
from easq.client.queue import QueueClient, as_bytes
from easq.errors import EasqError, UsageError
from easq.model import Tags
from easq.net.files import easq_folder
from easq.net.http import Transport
from easq.net.settings import DEFAULT_REQUEST_TIMEOUT_S, NetworkSettings
from easq.net.url import stream_url
from easq.prediction.discovery import Discovery
from easq.prediction.lookup import EasLookup
from easq.prediction.routes import (
    Credentials,
    Route,
    Terms,
    direct_route,
    failure_of,
    gateway_route,
    queue_route,
)
from easq.protocol.operations import Caller


def predict(
    data: bytes | str,
    url: str | QueueClient = "",
    *,
    via: Literal["queue", "gateway", "direct"] = "queue",
    token: str = "",
    endpoint: str = "",
    service: str = "",
    timeout_s: float = 60.0,
    path: str = "",
    content_type: str = "",
    tags: Tags | None = None,
    priority: int = 0,
    sign: Literal["auto", "token", "hmac", "none"] = "auto",
    connect_timeout_s: float = 5.0,
    headers: Mapping[str, str] | None = None,
    cacert: str = "",
    insecure: bool = False,
) -> bytes:
    """Send `data` to a model, and return its answer.

    Through the queue, the data is put into the input, and the result is read from the sink and deleted there. If no
    result comes in time, the error has the request id, with which the result can be fetched later. On the other routes
    the request is repeated after a lost connection or status 502, 503 or 504, and with several instances also after no
    answer within a third of `timeout_s`. The model may therefore get it twice.

    Raises DeadlineExceeded if no answer came in time, Refused if the model answers 4xx, ServerError if it fails,
    UsageError and ConfigError for arguments that do not fit together, and the errors of `QueueClient`.

    Args:
        data: the request; text is sent as UTF-8.
        url: for `queue` the address of the queue, or a client of its input; for `gateway` the address of the service.
        via: the route: `queue`; `gateway`, a POST to `url`; `direct`, a POST to an instance, chosen by weight.
        token: the token of the service; empty for none. If `url` is a client, the client's token is used.
        endpoint: for `direct`: the address of discovery, `http://HOST[:PORT]`. The list of instances is cached in the
            user's cache folder for 5 s.
        service: for `direct`: the name of the service.
        timeout_s: time limit, in seconds, above 0.
        path: sub-path of the model, percent-encoded as in a URL.
        content_type: media type of `data`.
        tags: for `queue`: tags of the item.
        priority: for `queue`: 0 or more; items with a higher priority are delivered first.
        sign: for `gateway` and `direct`: send the token itself (`token`), an HMAC signature (`hmac`), or nothing
            (`none`). `auto` is `hmac` for `direct` and `token` for `gateway`.
        connect_timeout_s: maximum time to connect, in seconds.
        headers: additional headers of every request.
        cacert: path of a file of CA certificates; empty for those of the system.
        insecure: accept any TLS certificate.
    """
    if timeout_s <= 0:
        raise UsageError(f"the time limit {timeout_s:g} s is not above 0")
    if via not in ("queue", "gateway", "direct"):
        raise UsageError(f"there is no way {via!r}", hint="queue, gateway or direct")
    if via != "queue" and (tags or priority or isinstance(url, QueueClient)):
        raise UsageError("tags, priority and a QueueClient are for the way through the queue")
    if (via == "direct") != bool(endpoint and service) or (via != "direct" and (endpoint or service)):
        raise UsageError("endpoint and service go with direct calls, both of them")
    request_timeout_s = DEFAULT_REQUEST_TIMEOUT_S
    if via != "queue":  # one request may take all of the time: a slow model is not asked again
        request_timeout_s = max(request_timeout_s, timeout_s)
    settings = NetworkSettings(
        connect_timeout_s, request_timeout_s, dict(headers or {}), cacert=cacert, insecure=insecure
    )
    terms = Terms(timeout_s, path, content_type, tags or {}, priority, single=True)
    with ExitStack() as at_end:
        route = _route(url, via, token, sign, endpoint, service, settings, terms, at_end)
        frame = route.transport.run(route.steps(Item(as_bytes(data)), None)).frame
        if route.delete is not None:
            # an error here would lose the answer, which is worse than a result that stays in the sink
            with suppress(EasqError):
                route.delete([frame])
    if (error := failure_of(frame)) is not None:
        raise error
    return frame.data


def _route(
    url: str | QueueClient,
    via: str,
    token: str,
    sign: str,
    endpoint: str,
    service: str,
    settings: NetworkSettings,
    terms: Terms,
    at_end: ExitStack,
) -> Route:
    """Return the route of one request. `at_end` closes the connections and the discovery of the route."""
    if isinstance(url, QueueClient):
        return queue_route(url, url.sink, url.transport, terms)
    credentials = Credentials(lambda: token, sign, tuple(settings.headers.items()))
    if via == "direct":
        folder = easq_folder(os.environ, "XDG_CACHE_HOME", ".cache")
        discovery = at_end.enter_context(Discovery(EasLookup(endpoint, service), settings, folder=folder))
        # instances are never called through a proxy
        transport = at_end.enter_context(Transport(replace(settings, environ={})))
        return direct_route(discovery, transport, terms, credentials)
    transport, address = at_end.enter_context(Transport(settings)), stream_url(url, sink=False)
    if via == "gateway":
        return gateway_route(address, Caller(), transport, terms, credentials)
    queue = QueueClient.over(transport, address, Caller(token=token))
    return queue_route(queue, queue.sink, transport, terms)
