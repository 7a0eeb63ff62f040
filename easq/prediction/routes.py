"""Routes of a prediction: the options of each route, and the exchange of a request on it.

queue       put into the input, wait for the result in the sink
gateway     one HTTP exchange with the gateway of the service
direct      one HTTP exchange with an instance that EAS discovery lists
modelarts   one HTTP exchange with an instance that ModelArts lists
websocket   messages
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easq.errors import AuthFailed, EasqError, Refused, ServerError, UsageError
from easq.model import LAST_CODE, LAST_REASON, Frame

if TYPE_CHECKING:
    from easq.client.items import Item
    from easq.client.queue import QueueClient
    from easq.net.http import Transport
    from easq.net.retry import Steps, Times
    from easq.net.settings import NetworkSettings
    from easq.prediction.conversation import Conversation
    from easq.prediction.discovery import Discovery
    from easq.prediction.exchanges import Served
    from easq.protocol.operations import Caller

QUEUE, GATEWAY, DIRECT, MODELARTS, WEBSOCKET = ("queue", "gateway", "direct", "modelarts", "websocket")
#: option -> the routes that support it; all routes support an option that is not listed
GOES_WITH: Mapping[str, tuple[str, ...]] = {
    "tags": (QUEUE,),
    "priority": (QUEUE,),
    "content-type": (QUEUE, GATEWAY, DIRECT, MODELARTS),
    "sign": (GATEWAY, DIRECT),
    "endpoint": (DIRECT, MODELARTS),
    "service": (DIRECT, MODELARTS),
    "refresh": (DIRECT, MODELARTS),
    "project": (MODELARTS,),
    "show-instance": (GATEWAY, DIRECT, MODELARTS, WEBSOCKET),
    "binary": (WEBSOCKET,),
    "idle-timeout": (WEBSOCKET,),
}
#: headers with credentials: they are never sent to an instance of ModelArts; one of them replaces the token of a
#: WebSocket service
_CREDENTIALS = ("authorization", "x-auth-token", "x-apig-appcode")


@dataclass(frozen=True, slots=True)
class Terms:
    """Parameters that all requests of one command share."""

    timeout_s: float
    path: str = ""
    content_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    single: bool = False  #: there is exactly one request
    #: indexes of the items without a result, so that the caller can delete these items
    unanswered: set[int] | None = None
    #: request ids without an answer, and whether the item is certainly in the queue
    asked: dict[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to a request, and the instance that answered, if it is known."""

    frame: Frame
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The exchange of a request, and a transport that runs one exchange at a time."""

    steps: Callable[[Item, Times | None], Steps[Prediction]]
    transport: Transport
    delete: Callable[[Iterable[Frame]], object] | None = None  #: deletes results; None if none are stored


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials of requests: the token, the form in which it is sent, and the headers that the user gave."""

    token: Callable[[], str]  #: returns the token, empty if there is none; may raise ConfigError
    sign: str = "auto"  #: `token`, `hmac`, `none`, or `auto`: as the route prefers
    headers: Sequence[tuple[str, str]] = ()
    on_sent: Callable[..., None] = lambda *_urls: (
        None
    )  #: called with the URLs to which the token itself is sent

    @property
    def given(self) -> list[str]:
        """The names of the headers that carry credentials."""
        return [name for name, _ in self.headers if name.lower() in _CREDENTIALS]

    def refuse_headers(self) -> None:
        """Raise UsageError for a header with credentials: instances of ModelArts get none."""
        for name in self.given:
            raise UsageError(
                f"--header {name} cannot be used with --via modelarts: instances get no credentials",
                hint="the token of the look-up is given with --token-file",
            )

    def signer(self, preferred: str) -> tuple[str, Callable[[bytes, str, str], Mapping[str, str]]]:
        """Return the kind of signature, and a function: body, content type and path -> headers of a request.

        Raises AuthFailed if a token is needed and there is none.
        """
        from easq.prediction.exchanges import signed

        sign = preferred if self.sign == "auto" and self.token() else self.sign
        if sign in ("token", "hmac") and not self.token():
            raise AuthFailed(f"--sign {sign} needs a token", hint="--token-file, or EASQ_TOKEN")
        typed = {name.lower(): value for name, value in self.headers}.get("content-type", "")

        def headers(data: bytes, content_type: str, path: str) -> Mapping[str, str]:
            if sign == "hmac":
                return signed(self.token(), data, typed or content_type, path)
            sent = {"Content-Type": content_type} if content_type else {}
            return {**sent, "Authorization": self.token()} if sign == "token" else sent

        return sign, headers


def check_options(via: str, given: Iterable[str]) -> None:
    """Raise UsageError for the first of the options `given` that `via` does not support."""
    for name in given:
        routes = GOES_WITH.get(name, (via,))
        if via not in routes:
            *most, last = routes
            raise UsageError(f"--{name} is only for --via {', '.join(most)}{' and ' if most else ''}{last}")


def failure_of(frame: Frame) -> EasqError | None:
    """Return the failure that the model reports in an answer; None for 2xx.

    The error is Refused for 4xx, and ServerError for any other code.
    """
    code = frame.tags.get(LAST_CODE, "")
    if not code or (len(code) == 3 and code.startswith("2") and code.isdigit()):
        return None
    reason = frame.tags.get(LAST_REASON, "")
    message = f"the model answered {code}{f': {reason}' if reason else ''}"
    status = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    return (Refused if status is not None and 400 <= status < 500 else ServerError)(message, status=status)


def queue_route(queue: QueueClient, sink: QueueClient, transport: Transport, terms: Terms) -> Route:
    """Return the route through the queue. Raises ConfigError if input and sink are the same stream."""
    from easq.client.queue import check_pair
    from easq.net.retry import OVERTIME_S
    from easq.prediction.exchanges import predict_queue

    began = time.monotonic()
    check_pair(queue, sink)

    def steps(item: Item, times: Times | None = None) -> Steps[Prediction]:
        frame = yield from predict_queue(
            queue,
            sink,
            item.data,
            timeout_s=terms.timeout_s,
            tags={**item.tags, **terms.tags},
            priority=terms.priority or item.priority or 0,
            path=terms.path,
            content_type=terms.content_type or item.content_type,
            times=times,
            unanswered=terms.unanswered,
            asked=terms.asked,
        )
        return Prediction(frame)

    def delete(frames: Iterable[Frame]) -> None:
        # a single request shares its time limit with the delete; with several, a delete has its own time limit
        since = began if terms.single else time.monotonic()
        sink.bounded(since + terms.timeout_s + OVERTIME_S).delete(frame.index for frame in frames)

    return Route(steps, transport, delete)


def gateway_route(
    url: str, caller: Caller, transport: Transport, terms: Terms, credentials: Credentials
) -> Route:
    """Return the route to the gateway. Raises AuthFailed if a token is needed and there is none."""
    from dataclasses import replace
    from urllib.parse import unquote, urlsplit

    from easq.client.queue import sub_path
    from easq.prediction.exchanges import predict_gateway

    caller = replace(caller, token="")
    sign, headers = credentials.signer("token")
    if sign == "token":
        credentials.on_sent(url)
    signed_path = unquote(urlsplit(url).path) + sub_path(terms.path)

    def steps(item: Item, times: Times | None = None) -> Steps[Prediction]:
        content_type = terms.content_type or item.content_type
        served = yield from predict_gateway(
            url,
            caller,
            transport.settings,
            item.data,
            path=terms.path,
            content_type=content_type,
            headers=headers(item.data, content_type, signed_path),
            timeout_s=terms.timeout_s,
            times=times,
        )
        return _answer(served)

    return Route(steps, transport)


def direct_route(
    discovery: Discovery, transport: Transport, terms: Terms, credentials: Credentials | None
) -> Route:
    """Return the route to the instances of EAS or ModelArts. With `credentials` None, requests have no credentials.

    Raises AuthFailed if a token is needed and there is none, and an error if there is no list of instances.
    """
    from easq.prediction.exchanges import predict_direct

    # by default a signature: it is valid for one request only, and the addresses of instances come from discovery alone
    sign, headers = (credentials or Credentials(lambda: "", "none")).signer("hmac")
    signed_path = discovery.lookup.path(terms.path)
    # once, before all requests: if there is no list, not every request has to find that out
    began = time.monotonic()
    discovery.fill(within_s=terms.timeout_s)
    discovery.keep_fresh()
    spent_s = time.monotonic() - began if terms.single else 0.0
    if sign == "token" and credentials is not None:
        credentials.on_sent(*(one.url for one in discovery.instances))

    def steps(item: Item, times: Times | None = None) -> Steps[Prediction]:
        content_type = terms.content_type or item.content_type
        served = yield from predict_direct(
            discovery,
            transport.settings,
            item.data,
            path=terms.path,
            headers=headers(item.data, content_type, signed_path),
            timeout_s=max(0.001, terms.timeout_s - spent_s),
            times=times,
        )
        return _answer(served)

    return Route(steps, transport)


def websocket_route(
    url: str,
    settings: NetworkSettings,
    credentials: Credentials,
    *,
    path: str,
    binary: bool,
    warn: Callable[[str], None],
) -> Callable[[], Conversation]:
    """Return a function that prepares a conversation with the WebSocket service at `url`.

    `warn` is called at most once, for all conversations together. Raises ConfigError for a malformed URL.
    """
    from easq.net.url import websocket_url
    from easq.prediction.conversation import Conversation

    address = websocket_url(url, path=path)
    # ModelArts accepts a token in this header; for any other authentication the user gives a header
    headers = {} if credentials.given or not credentials.token() else {"X-Auth-Token": credentials.token()}
    if credentials.given or headers:
        credentials.on_sent(address)
    warned: list[str] = []

    def warn_once(text: str) -> None:
        if not warned:
            warned.append(text)
            warn(text)

    return lambda: Conversation(address, headers, settings, text=not binary, warn=warn_once)


def _answer(served: Served) -> Prediction:
    return Prediction(Frame(0, data=served.data), served)
