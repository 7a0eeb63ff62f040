"""easq bench: measure the throughput and latencies of a queue or a model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from easq.cli.command import Group, command
from easq.cli.options import sink_option
from easq.cli.param_types import DURATION, HEADER_TEXT, PATH_TEXT, RATE, SIZE, ParamType, WholeNumber
from easq.cli.routes import service_options, sign_option, via_option

if TYPE_CHECKING:
    from easq.bench.conditions import FigureCondition
    from easq.bench.load import Load, LoadRun
    from easq.cli.app import App
    from easq.errors import EasqError
    from easq.prediction.routes import Prediction
    from easq.render.progress import Progress

F = TypeVar("F", bound=Callable[..., Any])

#: most lines of -f that are read; they are the payloads in turn
_MAX_PAYLOADS = 100_000
#: total bytes of these lines above which no further line is read
_MAX_PAYLOAD_BYTES = 64 * 1024 * 1024
_DEFAULT_COUNT = 10_000


class FailIf(ParamType):
    """A condition on the figures, such as `p99>50ms`."""

    name = "condition"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> FigureCondition:
        """Return `value` as a condition."""
        from easq.bench.conditions import FigureCondition, read_condition

        if isinstance(value, FigureCondition):
            return value
        try:
            return read_condition(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _load_options(*, timed: bool, what: str = "item") -> Callable[[F], F]:
    """Add the options of a load; with `timed` also those of a duration and a rate."""

    def add(function: F) -> F:
        options = [
            click.option("-n", "--count", type=WholeNumber(1), help=f"Number of {what}s.  [default: 10000]"),
            click.option(
                "-c", "--concurrency", type=WholeNumber(1, 256), default=16 if timed else 1,
                help="Requests in flight, 1 to 256.  [default: 16]" if timed else "Consumers, 1 to 256.  [default: 1]",
            ),
            click.option("--size", type=SIZE, help=f"Size of each {what}.  [default: 256 bytes]"),
            click.option("-f", "--file", type=click.Path(readable=False), help=f"Take {what}s from its lines in turn."),
            click.option(
                "--warmup", type=WholeNumber(0), default=100,
                help=f"Number of {what}s before the measurement.  [default: 100]",
            ),
            click.option(
                "--fail-if", "fail_if", type=FailIf(), multiple=True, metavar="CONDITION",
                help="Exit with 11 if this holds: p99>50ms, throughput<1000/s, errors>0, errors>1%; can be repeated.",
            ),
        ]  # fmt: skip
        if what == "item":
            options.append(click.option("--force", is_flag=True, help="Allow a queue that is not empty."))
        if timed:
            options += [
                click.option("--duration", type=DURATION, help="Run for this long, such as 30s, instead of -n."),
                click.option(
                    "--rate", type=RATE,
                    help="Requests started per second, even if answers are late.  [default: unlimited]",
                ),
            ]  # fmt: skip
        for option in reversed(options):
            function = option(function)
        return sink_option(function) if what == "item" else function

    return add


@click.group(
    "bench",
    cls=Group,
    examples=(
        "easq bench put -n 50000 -c 64",
        "easq bench roundtrip --rate 100 --duration 30s",
        "easq bench predict --via direct --endpoint URL --service NAME -c 32 --fail-if 'p99>50ms'",
    ),
)
def bench() -> None:
    """Measure the throughput and latency of a queue or a model."""


@command(
    "put",
    examples=(
        "easq bench put -n 50000 -c 64",
        "easq bench put --duration 30s --rate 500 --fail-if 'p99>50ms' --fail-if 'errors>0'",
        "easq bench put -f requests.txt -o json | jq .p99_ms",
    ),
)
@_load_options(timed=True)
def put(app: App, **options: Any) -> None:
    """Measure puts.

    The latency of a put runs from its scheduled start to its answer. The items are deleted at the end.
    """
    _run(app, "put", **options)


@command(
    "roundtrip",
    examples=("easq bench roundtrip -c 1 -n 1000", "easq bench roundtrip --rate 100 --duration 30s"),
)
@_load_options(timed=True)
def roundtrip(app: App, **options: Any) -> None:
    """Measure the time of items from put to delivery.

    A watch in a consumer group of its own receives and commits the items of the run.
    """
    _run(app, "roundtrip", **options)


@command("drain", examples=("easq bench drain -n 50000", "easq bench drain -c 4 --size 4k"))
@_load_options(timed=False)
def drain(app: App, **options: Any) -> None:
    """Measure how fast consumers receive and commit items.

    The items are put first. The latency of an item runs from its delivery to the answer to its commit.
    """
    _run(app, "drain", duration=None, rate=None, **options)


@command(
    "predict",
    examples=(
        "easq bench predict --via gateway -n 5000 -c 32 --size 4k",
        "easq bench predict --via direct --duration 30s --rate 200 --fail-if 'p99>50ms' --fail-if 'errors>0'",
        "easq bench predict --via direct -f requests.txt -o json | jq .throughput",
    ),
)
@_load_options(timed=True, what="request")
@via_option(
    *("queue", "gateway", "direct", "modelarts"),
    text="Route of the requests, see easq help predict.  [default: queue]",
)
@service_options
@sign_option
@click.option("--timeout", type=DURATION, default="60s", help="Maximum wait for an answer.  [default: 60s]")
@click.option("--path", type=PATH_TEXT, default="", metavar="SUFFIX", help="Path of the model below its URL.")
@click.option("--content-type", type=HEADER_TEXT, default="", help="Content type of every request.")
def predict(
    app: App,
    timeout: float,
    path: str,
    content_type: str,
    count: int | None,
    duration: float | None,
    concurrency: int,
    size: int | None,
    file: str | None,
    rate: float | None,
    warmup: int,
    fail_if: tuple[FigureCondition, ...],
) -> None:
    """Measure requests to the model.

    The latency of a request runs from its scheduled start to its answer. Results in the sink are deleted. An answer
    that reports a failure counts as an error.
    """
    from easq.bench.load import LoadRun
    from easq.cli.payloads import queue_limit
    from easq.cli.routes import chosen_route
    from easq.client.items import MOST_REQUEST_BYTES, Item
    from easq.errors import UsageError
    from easq.prediction import routes

    via = app.checked("via") or routes.QUEUE
    if via == routes.WEBSOCKET:
        raise UsageError(
            "bench predict does not support --via websocket", hint="--via queue, gateway, direct or modelarts"
        )
    given = [name for name in ("sign", "endpoint", "service", "project", "refresh") if name in app.options]
    routes.check_options(via, given + ["content-type"] * bool(content_type))
    most = queue_limit(app, sink=False) if size and via == routes.QUEUE else MOST_REQUEST_BYTES
    load = _load(app, count, duration, concurrency, size, file, rate, warmup, most)
    unanswered: set[int] = set()
    terms = routes.Terms(timeout, path, content_type, unanswered=unanswered)
    route = chosen_route(app, via, terms)

    def ask(_number: int, data: bytes) -> Item:
        return Item(data)

    def done(answers: list[Prediction]) -> None:
        if route.delete is not None:
            route.delete(answer.frame for answer in answers)

    with _progress(app, load) as progress:
        run = LoadRun(route.transport.settings, load, lambda ended, failed: progress.at(ended, failed, ended))
        interrupted = _guarded(
            run,
            progress,
            lambda: run.answers(
                ask, route.steps, failure=lambda answer: routes.failure_of(answer.frame), done=done
            ),
            lambda: _delete_unanswered(app, unanswered),
        )
    record = {"bench": "predict", "via": via, **_figures(load, run)}
    _end(app, run, record, fail_if, interrupted)


def _delete_unanswered(app: App, indexes: set[int]) -> None:
    """Delete these requests from the queue; where that fails, warn how many are left."""
    from easq.errors import EasqError

    if not indexes:
        return
    try:
        app.queue(sink=False).delete(sorted(indexes))
    except EasqError as error:
        app.printer.warn(
            f"{len(indexes)} requests without an answer may be left in the queue: {error.message}"
        )


for _command in (put, drain, predict, roundtrip):
    bench.add_command(_command)


def _run(
    app: App,
    what: str,
    *,
    count: int | None,
    duration: float | None,
    concurrency: int,
    size: int | None,
    file: str | None,
    rate: float | None,
    warmup: int,
    fail_if: tuple[FigureCondition, ...],
    force: bool,
) -> None:
    from easq.bench.queue import Bench
    from easq.cli.payloads import queue_limit
    from easq.errors import UsageError

    most = queue_limit(app) if size else 0
    load = _load(app, count, duration, concurrency, size, file, rate, warmup, most)
    client = app.queue()
    length = client.attributes().get("stream.length", "0")
    if length != "0" and not force:
        raise UsageError(
            f"the queue is not empty: it holds {length} items",
            hint="use another queue, or --force, which leaves these items unchanged",
        )
    with _progress(app, load) as progress:
        run = Bench(client, app.exchange, load, lambda done, failed: progress.at(done, failed, done))
        act = {"put": run.put, "drain": run.drain, "roundtrip": run.roundtrip}[what]
        deleted = 0

        def clean() -> None:
            nonlocal deleted
            deleted = run.clean()

        interrupted = _guarded(run, progress, act, clean)
    record = {"bench": what, **_figures(load, run), "deleted": deleted}
    _end(app, run, record, fail_if, interrupted)


def _load(
    app: App,
    count: int | None,
    duration: float | None,
    concurrency: int,
    size: int | None,
    file: str | None,
    rate: float | None,
    warmup: int,
    most: int,
) -> Load:
    """Return the load that the options describe. Raises UsageError for two options that exclude each other, or a size
    above `most`.
    """
    from easq.bench.load import Load
    from easq.errors import UsageError

    if count is not None and duration is not None:
        raise UsageError("-n and --duration exclude each other")
    if size is not None and file is not None:
        raise UsageError("--size and -f exclude each other")
    if size is not None and size > most:
        raise UsageError(f"--size {size}: at most {most} bytes are taken", hint="give a smaller --size")
    payloads = _payloads(app, file, 256 if size is None else size)
    if count is None and duration is None:
        count = _DEFAULT_COUNT
    return Load(payloads, concurrency, count, duration, rate, warmup)


def _progress(app: App, load: Load) -> AbstractContextManager[Progress]:
    return app.printer.progress(None if load.count is None else load.count + load.warmup)


def _guarded(
    run: LoadRun,
    progress: Progress,
    act: Callable[[], None],
    clean: Callable[[], None] = lambda: None,
) -> KeyboardInterrupt | None:
    """Call `act`, and `clean` also after an error. Return the interrupt that stopped `act`, if one did."""
    from easq.cli.signals import Interrupt

    with Interrupt(run.stop) as interrupt:
        try:
            act()
        finally:
            progress.end()
            clean()
    return interrupt.raised


def _end(
    app: App,
    run: LoadRun,
    record: dict[str, object],
    fail_if: tuple[FigureCondition, ...],
    interrupted: KeyboardInterrupt | None,
) -> None:
    """Print the figures. Raises the interrupt, CheckFailed for a condition that holds, or the error of a request."""
    _tell(app, run, record)
    if interrupted is not None:
        raise interrupted
    _judge(record, fail_if, run.samples.first_error)


def _payloads(app: App, file: str | None, size: int) -> list[bytes]:
    from itertools import islice

    from easq.cli.payloads import find_items
    from easq.errors import UsageError

    if file is None:
        return [b"x" * size]
    found: list[bytes] = []
    size_read = 0
    for item in islice(find_items(app, (file,), (), None), _MAX_PAYLOADS):
        if item.error is not None:
            raise type(item.error)(f"{item.where}: {item.error.message}")
        found.append(item.data)
        size_read += len(item.data)
        if size_read > _MAX_PAYLOAD_BYTES:
            break
    if not found:
        raise UsageError(f"no line in {file}")
    return found


def _figures(load: Load, run: LoadRun) -> dict[str, object]:
    return {
        "concurrency": load.workers,
        "rate": load.rate,
        "size": sum(map(len, load.payloads)) // len(load.payloads),
        "warmup": load.warmup,
        **run.samples.record(),
    }


def _tell(app: App, run: LoadRun, record: dict[str, object]) -> None:
    from easq.render.bench import figure_lines, histogram_lines

    printer = app.printer
    if app.output == "json":
        printer.record(record)
    elif app.output == "table":
        printer.table(("figure", "value"), figure_lines(record))
    else:
        printer.lines(f"{name} : {text}" for name, text in figure_lines(record))
        if printer.out_is_terminal:
            printer.lines(histogram_lines(run.samples.histogram()))


def _judge(record: dict[str, object], fail_if: tuple[FigureCondition, ...], first: EasqError | None) -> None:
    """Raise CheckFailed for conditions that hold, else the error with which requests failed."""
    from easq.errors import CheckFailed, Partial

    held = [condition.told(record) for condition in fail_if if condition.holds(record)]
    if held:
        raise CheckFailed("; ".join(held))
    if first is None:
        return
    if record["succeeded"]:
        raise Partial(
            f"{record['succeeded']} succeeded, {record['failed']} failed; the first: {first.message}",
            hint=first.hint,
        )
    raise first
