"""The ways of a prediction: which options go with which, and how a request goes each way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import click

from easq.cli.command import keep
from easq.cli.param_types import DURATION
from easq.config.keys import SIGNS
from easq.model import Frame

if TYPE_CHECKING:
    from typing import Any

    from easq.cli.app import App
    from easq.cli.items import Item
    from easq.net.http import Transport
    from easq.net.retry import Steps, Times
    from easq.prediction.dialogue import Dialogue
    from easq.prediction.exchanges import Served

F = TypeVar("F", bound="Callable[..., Any]")

QUEUE, GATEWAY, DIRECT, MODELARTS, WEBSOCKET = ("queue", "gateway", "direct", "modelarts", "websocket")
#: option -> the ways that it goes with; one that is not named goes with all
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
#: headers that say who asks: none of them goes to an instance of ModelArts, and any of them stands for the token
#: of a WebSocket service
_CREDENTIALS = ("authorization", "x-auth-token", "x-apig-appcode")


@dataclass(frozen=True, slots=True)
class Terms:
    """What the command line says of every request."""

    timeout_s: float
    path: str = ""
    content_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    binary: bool = False
    single: bool = False  #: there is one request and no more
    #: the indexes of items that were put and whose results did not come yet, for whoever deletes them
    unanswered: set[int] | None = None
    #: request ids without an answer yet, and whether the item is certainly in the queue
    asked: dict[str, bool] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request, and how, where that is known."""

    frame: Frame
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """How to ask: the steps to an answer, who takes them one at a time, and what is left to do once it was printed."""

    steps: Callable[[Item, Times | None], Steps[Answer]]
    transport: Transport
    done: Callable[[Sequence[Frame]], object] = lambda _frames: None


def via_option(*ways: str, text: str) -> Callable[[F], F]:
    """The option --via, which ends in the App."""
    return click.option("--via", type=click.Choice(ways), expose_value=False, callback=keep, help=text)


def sign_option(function: F) -> F:
    """`function` takes the option --sign, which ends in the App."""
    option: Callable[[F], F] = click.option(
        "--sign",
        type=click.Choice(SIGNS),
        expose_value=False,
        callback=keep,
        help="Authenticate with the token, an HMAC signature (hmac) or nothing; auto is hmac with direct and token "
        "with gateway; gateway and direct only.  [default: auto]",
    )
    return option(function)


def service_options(function: F) -> F:
    """`function` takes the options that say which service is called directly, which end in the App."""
    for names, attributes in (
        (
            "--refresh",
            {
                "type": DURATION,
                "help": "Time between look-ups of the instances.  [default: 5s, modelarts 60s]",
            },
        ),
        ("--project", {"metavar": "ID", "help": "Project ID; modelarts only."}),
        (
            "--service",
            {"metavar": "NAME", "help": "Name of the service to call; with modelarts, its ID."},
        ),
        (
            "--endpoint",
            {"metavar": "URL", "help": "URL of EAS discovery or of the ModelArts management API."},
        ),
    ):
        option: Callable[[F], F] = click.option(names, expose_value=False, callback=keep, **attributes)
        function = option(function)
    return function


def check_options(via: str, given: Iterable[str]) -> None:
    """Raises UsageError for the first option of those `given` that does not go with `via`."""
    from easq.errors import UsageError

    for name in given:
        ways = GOES_WITH.get(name, (via,))
        if via not in ways:
            *most, last = ways
            raise UsageError(f"--{name} goes with --via {', '.join(most)}{' and ' if most else ''}{last}")


def route(app: App, via: str, terms: Terms) -> Route:
    """How requests go `via`, which was checked and is not a WebSocket."""
    return {QUEUE: _queue, GATEWAY: _gateway}.get(via, _instances)(app, terms)


def _queue(app: App, terms: Terms) -> Route:
    import time

    from easq.client.queue import check_pair
    from easq.net.retry import OVERTIME_S
    from easq.prediction.exchanges import predict_queue

    began = time.monotonic()
    queue, sink = app.queue(sink=False), app.queue(sink=True)
    check_pair(queue, sink)

    def steps(item: Item, times: Times | None = None) -> Steps[Answer]:
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
        return Answer(frame)

    def done(frames: Sequence[Frame]) -> None:
        for frame in frames:
            if app.output == "none" or app.printer.shows_whole(frame.data):
                continue
            stays = f"result {frame.index} was not shown in full, and stays in the sink"
            app.printer.warn(f"{stays}: easq get -k {frame.index} --output-dir DIR")
        # within the time of the one request, or of another one
        since = began if terms.single else time.monotonic()
        bounded = sink.bounded(since + terms.timeout_s + OVERTIME_S)
        bounded.delete(f.index for f in frames if app.output == "none" or app.printer.shows_whole(f.data))

    return Route(steps, app.transport, done)


def _gateway(app: App, terms: Terms) -> Route:
    from dataclasses import replace
    from urllib.parse import unquote, urlsplit

    from easq.client.queue import sub_path
    from easq.prediction.exchanges import predict_gateway

    url, caller, transport = app.stream_url(sink=False), replace(app.caller(), token=""), app.transport
    sign = _sign(app)
    sign = "token" if sign == "auto" and app.token else sign
    if sign == "token":
        app.warn_where_unencrypted(url)
    headers = _headers(app, sign)
    signed_path = unquote(urlsplit(url).path) + sub_path(terms.path)

    def steps(item: Item, times: Times | None = None) -> Steps[Answer]:
        kind = terms.content_type or item.content_type
        served = yield from predict_gateway(
            url,
            caller,
            transport.settings,
            item.data,
            path=terms.path,
            content_type=kind,
            headers=headers(item.data, kind, signed_path),
            timeout_s=terms.timeout_s,
            times=times,
        )
        return _answer(served)

    return Route(steps, transport)


def _instances(app: App, terms: Terms) -> Route:
    """EAS direct connect, or ModelArts' channel, which knows no authentication."""
    import time

    from easq.prediction.exchanges import predict_direct

    modelarts = app.settings.get("via") == MODELARTS
    if modelarts:
        _refuse_credentials(app)
    discovery, transport = app.discovery, app.instances
    # a signature is good for one request, a token for all: the addresses are what discovery says they are
    sign = "none" if modelarts else _sign(app)
    headers = _headers(app, "hmac" if sign == "auto" and app.token else sign)
    signed_path = discovery.lookup.path(terms.path)
    # once, before all requests: where there is no list, not each of them asks for it and fails
    began = time.monotonic()
    discovery.fill(within_s=terms.timeout_s)
    discovery.keep_fresh()
    spent_s = time.monotonic() - began if terms.single else 0.0
    if sign == "token":
        app.warn_where_unencrypted(*(one.url for one in discovery.instances))

    def steps(item: Item, times: Times | None = None) -> Steps[Answer]:
        kind = terms.content_type or item.content_type
        served = yield from predict_direct(
            discovery,
            transport.settings,
            item.data,
            path=terms.path,
            headers=headers(item.data, kind, signed_path),
            timeout_s=max(0.001, terms.timeout_s - spent_s),
            times=times,
        )
        return _answer(served)

    return Route(steps, transport)


def messages(app: App, terms: Terms) -> Callable[[Item], Answer]:
    """Asks a WebSocket service, in the thread of the caller, one of several.

    As many connections as there are messages at a time: an answer belongs to the message before it."""
    from easq.prediction.dialogue import Dialogues

    dialogues = app.at_end.enter_context(Dialogues(dialogue_maker(app, terms)))

    def ask(item: Item) -> Answer:
        return _answer(dialogues.ask(item.data, timeout_s=terms.timeout_s))

    return ask


def dialogue_maker(app: App, terms: Terms) -> Callable[[], Dialogue]:
    """What makes connections to the WebSocket service of this run. Raises ConfigError where none is known."""
    from easq.errors import ConfigError
    from easq.net.url import websocket_url
    from easq.prediction.dialogue import Dialogue

    if not app.settings.get("url"):
        raise ConfigError("no url of a WebSocket service is known", hint="--url wss://HOST/PATH, or EASQ_URL")
    url = websocket_url(app.settings.get("url"), path=terms.path)
    given = _given_credentials(app)
    # the one way of ModelArts that needs nothing but a token; another way is a header of the user's
    headers = {} if given or not app.token else {"X-Auth-Token": app.token}
    if given or headers:
        app.warn_where_unencrypted(url)
    warned: list[str] = []

    def warn(text: str) -> None:
        if not warned:
            warned.append(text)
            app.warnings.append(text)

    settings = app.transport.settings
    return lambda: Dialogue(url, headers, settings, text=not terms.binary, warn=warn)


def _answer(served: Served) -> Answer:
    return Answer(Frame(0, data=served.data), served)


def _sign(app: App) -> str:
    return app.checked("sign") or "auto"


def _headers(app: App, sign: str) -> Callable[[bytes, str, str], Mapping[str, str]]:
    """The headers of a request by its body, content type and path: who asks, and the type where there is one."""
    from easq.errors import AuthFailed
    from easq.prediction.exchanges import signed

    if sign in ("token", "hmac") and not app.token:
        raise AuthFailed(f"--sign {sign} needs a token", hint="--token-file, or EASQ_TOKEN")
    given = {name.lower(): value for name, value in app.options.get("header", ())}.get("content-type", "")

    def headers(data: bytes, content_type: str, path: str) -> Mapping[str, str]:
        if sign == "hmac":
            return signed(app.token, data, given or content_type, path)
        typed = {"Content-Type": content_type} if content_type else {}
        return {**typed, "Authorization": app.token} if sign == "token" else typed

    return headers


def _given_credentials(app: App) -> list[str]:
    return [name for name, _ in app.options.get("header", ()) if name.lower() in _CREDENTIALS]


def _refuse_credentials(app: App) -> None:
    from easq.errors import UsageError

    for name in _given_credentials(app):
        raise UsageError(
            f"--header {name} does not go with --via modelarts: instances get no credentials",
            hint="the token of the look-up is given with --token-file",
        )
