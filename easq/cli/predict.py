"""easq predict: send a request to the model, and print what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from easq.cli.options import (
    DURATION,
    HEADER_TEXT,
    PATH_TEXT,
    as_tags,
    command,
    direct_options,
    tags_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from easq.cli.app import App
    from easq.cli.items import Item
    from easq.client.predict import Served
    from easq.errors import EasqError
    from easq.model import Frame

#: what a token is sent as
SIGNS = ("auto", "token", "hmac", "none")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request, and which instance it came from, where that is known."""

    frame: Frame
    served: Served | None = None


@command(
    "predict",
    examples=(
        "easq predict -d '[{}]'",
        "easq predict image.jpg --timeout 5m > result.png",
        "easq predict -f requests.txt -c 8 -o json",
        "easq predict -d '[{}]' --via direct --endpoint URL --service NAME --show-instance",
    ),
)
@click.option("-d", "--data", metavar="STR", help="One request, this text itself.")
@click.option("-f", "--file", type=click.Path(readable=False), help="One request a line; - is stdin.")
@click.argument("paths", nargs=-1, type=click.Path(readable=False), metavar="[PATH]...")
@click.option(
    "--via",
    type=click.Choice(("queue", "gateway", "direct")),
    help="queue: input and sink; gateway: one HTTP exchange; direct: one with an instance.  [default: queue]",
)
@direct_options
@click.option(
    "--sign",
    type=click.Choice(SIGNS),
    help="Send the token itself or a signature; auto: direct signs.  [default: auto]",
)
@click.option("--show-instance", is_flag=True, help="Say which instance answered, and how fast; direct only.")
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
    sign: str | None,
    show_instance: bool,
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

    Straight from the gateway or an instance, a request is sent again, to another instance, after a lost
    connection, 502, 503, 504 or no answer in a third of --timeout: the model may see it twice.
    """
    from easq.cli.items import find_items, in_order
    from easq.errors import EasqError, Refused, ServerError, UsageError

    route = via or app.settings.get("via") or "queue"
    if route not in ("queue", "gateway", "direct"):
        raise UsageError(f"via {route!r} is not known here, only queue, gateway and direct")
    if route != "queue" and (tags or priority):
        raise UsageError("--tags and --priority go with --via queue")
    if route == "queue" and sign:
        raise UsageError("--sign goes with --via gateway and direct")
    for option in ("endpoint", "service", "refresh"):
        if route != "direct" and option in app.options:
            raise UsageError(f"--{option} goes with --via direct")
    if route != "direct" and show_instance:
        raise UsageError("--show-instance goes with --via direct")
    items = find_items(app, data, file, paths, form)
    if route == "queue":
        ask, done = _through_queue(app, timeout, as_tags(tags), priority, path, content_type)
    elif route == "gateway":
        ask, done = _through_gateway(app, timeout, sign or "auto", path, content_type)
    else:
        ask, done = _through_instances(app, timeout, sign or "auto", path, content_type, single=items.single)
    fatal: list[EasqError] = []
    failures: list[EasqError] = []
    answered = 0
    if app.output == "table":
        from easq.render.rows import FRAME_COLUMNS

        app.printer.header(FRAME_COLUMNS)
    results = in_order(iter(items), ask, workers=concurrency, stop=lambda: bool(fatal))
    for number, (item, result) in enumerate(results):
        error = result if isinstance(result, EasqError) else _failure(result.frame)
        app.tell_warnings()
        if not isinstance(result, EasqError):
            _show(app, number, result, alone=items.single, instance=show_instance)
            done(result.frame)
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
) -> tuple[Callable[[Item], Answer], Callable[[Frame], None]]:
    """How to ask, and what to do with a result that was printed."""
    from easq.client.predict import predict_queue

    queue, sink = app.queue(sink=False), app.queue(sink=True)

    def ask(item: Item) -> Answer:
        frame = predict_queue(
            queue,
            sink,
            item.data,
            timeout_s=timeout_s,
            tags={**item.tags, **tags},
            priority=priority or item.priority or 0,
            path=path,
            content_type=content_type or item.content_type,
        )
        return Answer(frame)

    return ask, lambda frame: sink.delete([frame.index])


def _through_gateway(
    app: App, timeout_s: float, sign: str, path: str, content_type: str
) -> tuple[Callable[[Item], Answer], Callable[[Frame], None]]:
    """How to ask; nothing is left to do with an answer that was printed."""
    from dataclasses import replace
    from urllib.parse import unquote, urlsplit

    from easq.client.predict import predict_gateway
    from easq.client.queue import sub_path
    from easq.model import Frame

    url, caller, transport = app.stream_url(sink=False), replace(app.caller(), token=""), app.transport
    headers = _headers(app, "token" if sign == "auto" and app.token else sign)
    signed_path = unquote(urlsplit(url).path) + sub_path(path)

    def ask(item: Item) -> Answer:
        kind = content_type or item.content_type
        answer = predict_gateway(
            transport,
            url,
            caller,
            item.data,
            path=path,
            content_type=kind,
            headers=headers(item.data, kind, signed_path),
            timeout_s=timeout_s,
        )
        return Answer(Frame(0, data=answer))

    return ask, lambda _frame: None


def _through_instances(
    app: App, timeout_s: float, sign: str, path: str, content_type: str, *, single: bool
) -> tuple[Callable[[Item], Answer], Callable[[Frame], None]]:
    """How to ask; nothing is left to do with an answer that was printed."""
    import time

    from easq.client.endpoint import is_private
    from easq.client.predict import predict_direct, service_path
    from easq.model import Frame

    discovery, transport = app.discovery, app.instances
    # a signature is good for one request, a token for all: the addresses are what discovery says they are
    headers = _headers(app, "hmac" if sign == "auto" and app.token else sign)
    signed_path = service_path(discovery.service, path)
    # once, before all requests: where there is no list, not each of them asks for it and fails
    began = time.monotonic()
    discovery.fill(within_s=timeout_s)
    if single:
        timeout_s = max(0.001, timeout_s - (time.monotonic() - began))
    if sign == "token" and not all(is_private(f"http://{one.address}") for one in discovery.instances):
        app.printer.warn("the token travels unencrypted, over http and beyond this network")

    def ask(item: Item) -> Answer:
        kind = content_type or item.content_type
        served = predict_direct(
            transport,
            discovery,
            item.data,
            path=path,
            headers=headers(item.data, kind, signed_path),
            timeout_s=timeout_s,
        )
        return Answer(Frame(0, data=served.data), served)

    return ask, lambda _frame: None


def _headers(app: App, sign: str) -> Callable[[bytes, str, str], Mapping[str, str]]:
    """The headers of a request by its body, content type and path: who asks, and the type where there is one."""
    from easq.client.predict import signed
    from easq.errors import AuthFailed

    if sign in ("token", "hmac") and not app.token:
        raise AuthFailed(f"--sign {sign} needs a token", hint="--token-file, or EASQ_TOKEN")
    given = {name.lower(): value for name, value in app.options.get("header", ())}.get("content-type", "")

    def headers(data: bytes, content_type: str, path: str) -> Mapping[str, str]:
        if sign == "hmac":
            return signed(app.token, data, given or content_type, path)
        typed = {"Content-Type": content_type} if content_type else {}
        return {**typed, "Authorization": app.token} if sign == "token" else typed

    return headers


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


def _show(app: App, number: int, answer: Answer, *, alone: bool, instance: bool) -> None:
    """The answer is out: its bytes alone for one request, a line for each of many; and who gave it, if asked."""
    from easq.render.payload import shown
    from easq.render.rows import frame_record

    printer, frame = app.printer, answer.frame
    served = answer.served if instance else None
    if served and app.output == "json":
        printer.record({**frame_record(number, frame), "instance": _served_record(served)})
    elif app.output in ("json", "table", "raw"):
        printer.frame(number, frame, alone=alone)
    elif printer.out_is_terminal:
        printer.write(shown(frame.data).encode() + b"\n")
    else:
        printer.write(frame.data if alone else frame.data + b"\n")
    printer.flush()
    if served:
        times = served.times
        connected = "" if times.connect_s is None else f"connect {times.connect_s * 1000:.1f} ms, "
        printer.remark(
            f"[INFO] {served.instance.address} attempt {served.attempt}: {connected}"
            f"first byte {(times.first_byte_s or 0) * 1000:.1f} ms, total {times.total_s * 1000:.1f} ms"
        )


def _served_record(served: Served) -> dict[str, object]:
    """Who answered; milliseconds in the attempt that was answered, the total over all. No time to connect: a
    connection was there.
    """
    times = served.times
    return {
        "address": served.instance.address,
        "attempt": served.attempt,
        "connect_ms": None if times.connect_s is None else round(times.connect_s * 1000, 3),
        "first_byte_ms": None if times.first_byte_s is None else round(times.first_byte_s * 1000, 3),
        "total_ms": round(times.total_s * 1000, 3),
    }
