"""The options that choose the route of a prediction, and the route that they choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from easq.cli.command import keep
from easq.cli.param_types import DURATION
from easq.config.keys import SIGNS

if TYPE_CHECKING:
    from typing import Any

    from easq.cli.app import App
    from easq.prediction.conversation import Conversation
    from easq.prediction.routes import Credentials, Route, Terms

F = TypeVar("F", bound="Callable[..., Any]")


def via_option(*ways: str, text: str) -> Callable[[F], F]:
    """Return a decorator that adds --via; its value is stored in the App."""
    return click.option("--via", type=click.Choice(ways), expose_value=False, callback=keep, help=text)


def sign_option(function: F) -> F:
    """Add --sign to `function`; its value is stored in the App."""
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
    """Add the options for the service that is called directly; their values are stored in the App."""
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


def chosen_route(app: App, via: str, terms: Terms) -> Route:
    """Return the route `via`, which is not `websocket`. Raises ConfigError and others for a wrong configuration."""
    from easq.net.settings import DEFAULT_REQUEST_TIMEOUT_S
    from easq.prediction import routes

    if via == routes.QUEUE:
        return routes.queue_route(app.queue(sink=False), app.queue(sink=True), app.transport, terms)
    # one request may take all of the time: a slow model is not asked again
    app.options.setdefault("request_timeout", max(DEFAULT_REQUEST_TIMEOUT_S, terms.timeout_s))
    if via == routes.GATEWAY:
        url, caller = app.stream_url(sink=False), app.caller()
        return routes.gateway_route(url, caller, app.transport, terms, _credentials(app, signs=True))
    if via == routes.MODELARTS:
        _credentials(app).refuse_headers()
        return routes.direct_route(app.discovery, app.instances, terms, None)
    credentials = _credentials(app, signs=True)
    return routes.direct_route(app.discovery, app.instances, terms, credentials)


def websocket(app: App, *, path: str, binary: bool) -> Callable[[], Conversation]:
    """Return a function that connects to the WebSocket service. Raises ConfigError if its URL is not known."""
    from easq.errors import ConfigError
    from easq.prediction.routes import websocket_route

    url = app.settings.get("url")
    if not url:
        raise ConfigError("no url of a WebSocket service is known", hint="--url wss://HOST/PATH, or EASQ_URL")
    settings, warn = app.transport.settings, app.warnings.append
    return websocket_route(url, settings, _credentials(app), path=path, binary=binary, warn=warn)


def _credentials(app: App, *, signs: bool = False) -> Credentials:
    from easq.prediction.routes import Credentials

    sign = (app.checked("sign") or "auto") if signs else "none"
    return Credentials(lambda: app.token, sign, app.options.get("header", ()), app.warn_where_unencrypted)
