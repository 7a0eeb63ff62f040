"""easq predict: send a request to the model, and print what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, tags_option
from easq.cli.param_types import DURATION, WholeNumber
from easq.cli.payloads import payload_options
from easq.cli.routes import service_options, sign_option, via_option
from easq.config.keys import VIAS
from easq.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from easq.cli.app import App
    from easq.client.items import Items


@command(
    "predict",
    examples=(
        "easq predict -d '[{}]'",
        "easq predict -f requests.txt -c 8 --via direct --endpoint URL --service NAME --show-instance",
        "easq predict image.jpg --via modelarts --endpoint URL --project ID --service ID > result.json",
        "easq predict -f lines.txt --via websocket --url wss://HOST/PATH --header 'X-Apig-AppCode: CODE'",
    ),
)
@payload_options("request")
@via_option(
    *VIAS,
    text="Route: queue (input and sink), gateway (HTTP), direct or modelarts (HTTP to an instance of EAS or "
    "ModelArts), or websocket.  [default: queue]",
)
@service_options
@sign_option
@click.option(
    "--show-instance", is_flag=True, help="Print which instance answered, and the times; not with queue."
)
@click.option("--timeout", type=DURATION, default="60s", help="Maximum wait for a result.  [default: 60s]")
@tags_option("Tag of every request; can be repeated; queue only.")
@click.option(
    "--priority",
    type=WholeNumber(0),
    default=0,
    help="Priority; requests with 1 are delivered before requests with 0; queue only.  [default: 0]",
)
@click.option("--binary", is_flag=True, help="Send binary instead of text messages; websocket only.")
@click.option(
    "--idle-timeout",
    type=DURATION,
    help="Print every message until none came for this long, such as 2s; websocket only.  [default: one answer]",
)
def predict(
    app: App,
    given: tuple[bytes | str, ...],
    paths: tuple[str, ...],
    form: str | None,
    path: str,
    content_type: str,
    concurrency: int,
    show_instance: bool,
    timeout: float,
    tags: tuple[tuple[str, str], ...],
    priority: int,
    binary: bool,
    idle_timeout: float | None,
) -> None:
    """Send requests to the model and print its answers.

    Answers are printed in the order of the requests. Through the queue, a result is deleted from the sink after it
    was printed. If the model reports a failure, its answer is printed and the exit code is 4 (status 4xx) or 5.

    On the other routes, a request is sent again after a lost connection, 502, 503 or 504, and if another instance is
    left, to that one after no answer within a third of --timeout. The model can therefore receive a request twice.

    With --via websocket, each line of -f or standard input, each -d and each PATH is one message, and the next
    message from the service is its answer. -c N uses N connections. On a terminal, lines are sent as they are typed
    and every message from the service is shown. The token is sent as X-Auth-Token, unless --header gives credentials.
    """
    from easq.cli.predict_run import PredictRun, check_given
    from easq.prediction.routes import QUEUE, Terms

    via = app.checked("via") or QUEUE
    check_given(app, via, tags, priority, content_type, show_instance, binary, idle_timeout)
    items = payload_items(app, via, given, paths, form)
    single = items is not None and items.single
    run = PredictRun(app, single, single and idle_timeout is None, show_instance)
    terms = Terms(timeout, path, content_type, as_tags(tags), priority, single, asked=run.asked)
    if items is None or idle_timeout is not None:
        if concurrency > 1:
            raise UsageError("-c cannot be used with --idle-timeout or typed messages")
        run.messages(items, terms, binary=binary, idle_s=idle_timeout or 0.0)
    else:
        run.requests(via, items, terms, binary=binary, workers=concurrency)


def payload_items(
    app: App, via: str, given: Sequence[bytes | str], paths: tuple[str, ...], form: str | None
) -> Items | None:
    """Return the requests that the command line names; None if a person types them."""
    import sys

    from easq.cli.payloads import find_items, queue_limit
    from easq.client.items import LINES, MOST_REQUEST_BYTES, WHOLE
    from easq.prediction.routes import QUEUE, WEBSOCKET

    is_typed = not given and not paths and sys.stdin is not None and sys.stdin.isatty()
    if via == WEBSOCKET and is_typed and not app.options.get("no_input"):
        return None
    return find_items(
        app,
        given,
        paths,
        form,
        piped=LINES if via == WEBSOCKET else WHOLE,
        limit=lambda: queue_limit(app, sink=False) if via == QUEUE else MOST_REQUEST_BYTES,
    )
