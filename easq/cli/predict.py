"""easq predict: send a request to the model, and print what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, payload_options, tags_option
from easq.cli.param_types import DURATION, WholeNumber
from easq.cli.routes import service_options, sign_option, via_option
from easq.config.keys import VIAS
from easq.errors import EasqError, Refused, ServerError, UsageError
from easq.model import LAST_CODE, LAST_REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from easq.cli.app import App
    from easq.cli.items import Item, Items
    from easq.cli.routes import Answer, Route, Terms
    from easq.model import Frame
    from easq.prediction.exchanges import Served

    #: items that came to their turn together, each with its answer or why there is none
    Results: TypeAlias = Sequence[tuple[Item, Answer | EasqError]]


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

    On the other routes, a request is sent again after a lost connection, 502, 503, 504, or no answer within a third
    of --timeout; if there are several instances, to another one. The model can therefore receive a request twice.

    With --via websocket, each line of -f or standard input, each -d and each PATH is one message, and the next
    message from the service is its answer. -c N uses N connections. On a terminal, lines are sent as they are typed
    and every message from the service is shown. The token is sent as X-Auth-Token, unless --header gives credentials.
    """
    from easq.cli import routes

    via = app.checked("via") or routes.QUEUE
    chosen = {
        "tags": tags,
        "priority": priority,
        "content-type": content_type,
        "show-instance": show_instance,
        "binary": binary,
        "idle-timeout": idle_timeout is not None,
    }
    chosen |= {name: name in app.options for name in ("sign", "endpoint", "service", "project", "refresh")}
    routes.check_options(via, [name for name, is_given in chosen.items() if is_given])
    items = _items(app, via, given, paths, form)
    single = items is not None and items.single
    run = Run(app, single, single and idle_timeout is None, show_instance)
    terms = routes.Terms(
        timeout, path, content_type, as_tags(tags), priority, binary, single, asked=run.asked
    )
    if items is None or idle_timeout is not None:
        if concurrency > 1:
            raise UsageError("-c goes with one answer a message, not with --idle-timeout or typed messages")
        run.all(([one] for one in _talk(run, terms, items, idle_timeout or 0.0)), _nothing)
        return
    try:
        run.all(*_ask(run, via, terms, items, concurrency))
    except KeyboardInterrupt:
        run.tell_asked()
        raise


@dataclass
class Run:
    """One predict of perhaps many requests: what became of each, and what is said about all."""

    app: App
    single: bool  #: there is one request and no more
    alone: bool  #: and one answer, whose bytes are the output
    instance: bool  #: whether it is said who answered
    answered: int = 0
    failures: list[EasqError] = field(default_factory=list)
    fatal: bool = False
    #: request ids whose answers are not printed yet, and whether the item is certainly in the queue
    asked: dict[str, bool] = field(default_factory=dict)

    def is_over(self) -> bool:
        """Whether something failed that would fail for every further request."""
        return self.fatal

    def all(self, batches: Iterator[Results], done: Callable[[Sequence[Frame]], object]) -> None:
        """Every answer is printed, and `done` with, and every failure said; the run's own error is raised."""
        from easq.render.rows import FRAME_COLUMNS

        if self.app.output == "table":
            self.app.printer.header(FRAME_COLUMNS)
        number = 0
        for batch in batches:
            printed: list[Frame] = []
            try:
                for item, result in batch:
                    self.app.tell_warnings()
                    self._take(number, item, result, printed)
                    number += 1
            finally:
                if printed:
                    self.app.printer.flush()
                    done(printed)
        self._end()

    def _take(self, number: int, item: Item, result: Answer | EasqError, printed: list[Frame]) -> None:
        if isinstance(result, EasqError):
            self._failed(result, item)
            return
        error = failure_of(result.frame)
        _show(self.app, number, result, alone=self.alone, instance=self.instance)
        printed.append(result.frame)
        self.asked.pop(result.frame.request_id, None)
        self.answered += error is None
        if error is not None:
            self._failed(error, item)

    def _failed(self, error: EasqError, item: Item) -> None:
        from easq.errors import DeadlineExceeded

        self.failures.append(error)
        self.fatal |= not isinstance(error, Refused | ServerError | DeadlineExceeded | UsageError)
        if not self.single:
            self.app.printer.error(error, prefix=f"{item.where}: " if item.where else "")

    def tell_asked(self) -> None:
        """Say how the answers to requests that were put into the queue can be fetched later."""
        for request_id, is_stored in list(self.asked.items()):
            where = "is in the queue" if is_stored else "may be in the queue"
            fetch = f"easq get -k --request-id {request_id}"
            self.app.printer.warn(f"request {request_id} {where}; fetch its result with: {fetch}")

    def _end(self) -> None:
        from easq.errors import Partial

        if not self.failures:
            return
        first = self.failures[0]
        if self.single:
            raise first
        counts = f"{self.answered} answered, {len(self.failures)} failed"
        if self.answered:
            raise Partial(counts)
        raise type(first)(counts, status=first.http_status)


def _items(
    app: App, via: str, given: Sequence[bytes | str], paths: tuple[str, ...], form: str | None
) -> Items | None:
    """What is sent; None where a person types it."""
    import sys

    from easq.cli.items import LINES, MOST_REQUEST_BYTES, WHOLE, find_items, queue_limit
    from easq.cli.routes import QUEUE, WEBSOCKET

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


def _ask(
    run: Run, via: str, terms: Terms, items: Items, workers: int
) -> tuple[Iterator[Results], Callable[[Sequence[Frame]], object]]:
    """All answers, in the order of the items, in batches of what is there; and what to do with those printed."""
    from easq.cli import routes
    from easq.cli.items import in_order

    if via == routes.WEBSOCKET:
        ask = routes.messages(run.app, terms)
        return ([one] for one in in_order(iter(items), ask, workers=workers, stop=run.is_over)), _nothing
    route = routes.route(run.app, via, terms)
    if workers > 1 and not items.single:
        return _many(run, route, items, workers), route.done
    transport = route.transport
    one_by_one = in_order(
        iter(items), lambda item: transport.run(route.steps(item, None)), workers=1, stop=run.is_over
    )
    return ([one] for one in one_by_one), route.done


def _many(run: Run, route: Route, items: Items, workers: int) -> Iterator[Results]:
    """`workers` requests at a time, on one event loop; none is begun once something failed that would fail for all."""
    from easq.net.pipeline import Pipeline, Task

    bulk = Pipeline(route.transport.settings, workers=workers, timed=run.instance)
    tasks = (Task(item, item.error or item, len(item.data)) for item in items)
    for batch in bulk.run(tasks, route.steps):
        yield [(outcome.what, outcome.error or _given(outcome.result)) for outcome in batch]
        if run.is_over():
            bulk.stop()


def _given(answer: Answer | None) -> Answer:
    assert answer is not None, "an exchange ends in an answer or an error"
    return answer


def _nothing(_frames: Sequence[Frame]) -> None:
    """All is done with an answer that was printed."""


def _talk(
    run: Run, terms: Terms, items: Items | None, idle_s: float
) -> Iterator[tuple[Item, Answer | EasqError]]:
    """All that a WebSocket service says, as it comes."""
    from easq.cli.routes import dialogue_maker
    from easq.cli.talk import converse, follow

    if items is None and run.instance:
        raise UsageError(
            "--show-instance does not go with typed messages", hint="-d, -f, PATH, or pipe them in"
        )
    dialogue = run.app.at_end.enter_context(dialogue_maker(run.app, terms)())
    if items is None:
        return converse(run.app, dialogue, timeout_s=terms.timeout_s, idle_s=idle_s, stop=run.is_over)
    return follow(dialogue, items, timeout_s=terms.timeout_s, idle_s=idle_s, stop=run.is_over)


def failure_of(frame: Frame) -> EasqError | None:
    """What the model's own status says: 4xx is refused, any other but 2xx the model's fault."""
    code = frame.tags.get(LAST_CODE, "")
    if not code or (len(code) == 3 and code.startswith("2") and code.isdigit()):
        return None
    reason = frame.tags.get(LAST_REASON, "")
    message = f"the model answered {code}{f': {reason}' if reason else ''}"
    status = int(code) if code.isascii() and code.isdigit() and len(code) == 3 else None
    return (Refused if status is not None and 400 <= status < 500 else ServerError)(message, status=status)


def _show(app: App, number: int, answer: Answer, *, alone: bool, instance: bool) -> None:
    """The answer is out: its bytes alone for one request, a line for each of many; and who gave it, if asked."""
    printer, frame = app.printer, answer.frame
    served = answer.served if instance else None
    if served and printer.output == "json":
        from easq.render.rows import frame_record

        printer.record({**frame_record(number, frame), "instance": _served_record(served)})
    elif printer.output in ("json", "table", "raw"):
        printer.frame(number, frame, alone=alone)
    elif printer.out_is_terminal:
        from easq.render.payload import shown

        printer.write(shown(frame.data).encode() + b"\n")
    else:
        printer.write(frame.data if alone else frame.data + b"\n")
    if served:
        printer.flush()
        times = served.times
        connected = "" if times.connect_s is None else f"connect {times.connect_s * 1000:.1f} ms, "
        printer.remark(
            f"[INFO] {served.address} attempt {times.attempts}: {connected}"
            f"first byte {(times.first_byte_s or 0) * 1000:.1f} ms, total {times.total_s * 1000:.1f} ms"
        )


def _served_record(served: Served) -> dict[str, object]:
    """Who answered; milliseconds in the attempt that was answered, the total over all. No time to connect: a
    connection was there.
    """
    times = served.times
    return {
        "address": served.address,
        "attempt": times.attempts,
        "connect_ms": None if times.connect_s is None else round(times.connect_s * 1000, 3),
        "first_byte_ms": None if times.first_byte_s is None else round(times.first_byte_s * 1000, 3),
        "total_ms": round(times.total_s * 1000, 3),
    }
