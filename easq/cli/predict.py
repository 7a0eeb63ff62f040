"""easq predict: send a request to the model, and print what it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.options import DURATION, HEADER_TEXT, PATH_TEXT, as_tags, command, tags_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from easq.cli.app import App
    from easq.cli.items import Item
    from easq.errors import EasqError
    from easq.model import Frame


@command(
    "predict",
    examples=(
        "easq predict -d '[{}]'",
        "easq predict image.jpg --timeout 5m > result.png",
        "easq predict -f requests.txt -c 8 -o json",
        "easq predict -d '{}' --via gateway --url http://HOST/api/predict/SERVICE",
    ),
)
@click.option("-d", "--data", metavar="STR", help="One request, this text itself.")
@click.option("-f", "--file", type=click.Path(), help="One request a line; - is stdin.")
@click.argument("paths", nargs=-1, type=click.Path(), metavar="[PATH]...")
@click.option(
    "--via",
    type=click.Choice(("queue", "gateway")),
    help="queue: input and sink; gateway: one HTTP exchange.  [default: queue]",
)
@click.option(
    "--timeout", type=DURATION, default="60s", help="How long to wait for a result.  [default: 60s]"
)
@tags_option("Tag of every request, k=v; queue only.")
@click.option("--priority", type=click.IntRange(min=0), default=0, help="1 goes before 0; queue only.")
@click.option(
    "--path", type=PATH_TEXT, default="", metavar="SUFFIX", help="Path that the model is called with."
)
@click.option("--content-type", type=HEADER_TEXT, default="", help="Type of every request.")
@click.option("--input-format", "form", type=click.Choice(("lines", "whole", "json")), help="As in easq put.")
@click.option("-c", "--concurrency", type=click.IntRange(1, 256), default=1, help="At a time.  [default: 1]")
def predict(
    app: App,
    data: str | None,
    file: str | None,
    paths: tuple[str, ...],
    via: str | None,
    timeout: float,
    tags: tuple[tuple[str, str], ...],
    priority: int,
    path: str,
    content_type: str,
    form: str | None,
    concurrency: int,
) -> None:
    """Send requests to the model.

    Its answers are printed in the order of the requests. Through the queue, a result is deleted from the sink
    once it was printed. A failure of the model shows what it answered, and exits 4 (its 4xx) or 5.
    """
    from easq.cli.items import find_items, in_order
    from easq.errors import EasqError, Refused, ServerError, UsageError

    route = via or app.settings.get("via") or "queue"
    if route not in ("queue", "gateway"):
        raise UsageError(f"via {route!r} is not known here, only queue and gateway")
    if route == "gateway" and (tags or priority):
        raise UsageError("--tags and --priority go with --via queue")
    items = find_items(app, data, file, paths, form)
    if route == "queue":
        ask, done = _through_queue(app, timeout, as_tags(tags), priority, path, content_type)
    else:
        ask, done = _through_gateway(app, timeout, path, content_type)
    fatal: list[EasqError] = []
    failures: list[EasqError] = []
    answered = 0
    if app.output == "table":
        from easq.render.rows import FRAME_COLUMNS

        app.printer.header(FRAME_COLUMNS)
    results = in_order(iter(items), ask, workers=concurrency, stop=lambda: bool(fatal))
    for number, (item, result) in enumerate(results):
        error = result if isinstance(result, EasqError) else _failure(result)
        if not isinstance(result, EasqError):
            _show(app, number, result, alone=items.single)
            done(result)
            answered += error is None
        if error is None:
            continue
        failures.append(error)
        if not isinstance(error, Refused | ServerError) and not _waited(error):
            fatal.append(error)
        if not items.single:
            app.printer.error(error, prefix=f"{item.where}: ")
    _end(failures, answered, single=items.single)


def _waited(error: EasqError) -> bool:
    from easq.errors import DeadlineExceeded, UsageError

    return isinstance(error, DeadlineExceeded | UsageError)


def _end(failures: list[EasqError], answered: int, *, single: bool) -> None:
    from easq.errors import Partial

    if not failures:
        return
    first = failures[0]
    if single:
        raise first
    counts = f"{answered} answered, {len(failures)} failed"
    if answered:
        raise Partial(counts)
    raise type(first)(counts, status=first.status)


def _through_queue(
    app: App, timeout_s: float, tags: Mapping[str, str], priority: int, path: str, content_type: str
) -> tuple[Callable[[Item], Frame], Callable[[Frame], None]]:
    """How to ask, and what to do with a result that was printed."""
    from easq.client.predict import predict_queue

    queue, sink = app.queue(sink=False), app.queue(sink=True)

    def ask(item: Item) -> Frame:
        return predict_queue(
            queue,
            sink,
            item.data,
            timeout_s=timeout_s,
            tags={**item.tags, **tags},
            priority=priority or item.priority or 0,
            path=path,
            content_type=content_type or item.content_type,
        )

    return ask, lambda frame: sink.delete([frame.index])


def _through_gateway(
    app: App, timeout_s: float, path: str, content_type: str
) -> tuple[Callable[[Item], Frame], Callable[[Frame], None]]:
    """How to ask; nothing is left to do with an answer that was printed."""
    from easq.client.predict import predict_gateway
    from easq.model import Frame

    url, caller, transport = app.stream_url(sink=False), app.caller(), app.transport

    def ask(item: Item) -> Frame:
        answer = predict_gateway(
            transport,
            url,
            caller,
            item.data,
            path=path,
            content_type=content_type or item.content_type,
            headers={},
            timeout_s=timeout_s,
        )
        return Frame(0, data=answer)

    return ask, lambda _frame: None


def _failure(frame: Frame) -> EasqError | None:
    """What the model's own status says: 4xx is refused, any other but 2xx the model's fault."""
    from easq.errors import Refused, ServerError
    from easq.model import LAST_CODE, LAST_REASON

    code = frame.tags.get(LAST_CODE, "")
    if not code or (len(code) == 3 and code.startswith("2") and code.isdigit()):
        return None
    reason = frame.tags.get(LAST_REASON, "")
    message = f"the model answered {code}{f': {reason}' if reason else ''}"
    status = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else 500
    return (Refused if 400 <= status < 500 else ServerError)(message, status=status)


def _show(app: App, number: int, frame: Frame, *, alone: bool) -> None:
    """The answer is out: its bytes alone for one request, a line for each of many."""
    from easq.render.payload import shown

    printer = app.printer
    if app.output in ("json", "table", "raw"):
        printer.frame(number, frame, alone=alone)
    elif printer.out_is_terminal:
        printer.write(shown(frame.data).encode() + b"\n")
    else:
        printer.write(frame.data if alone else frame.data + b"\n")
    printer.flush()
