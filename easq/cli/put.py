"""easq put: append items."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from easq.cli.options import as_tags, command, payload_options, sink_option, tags_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from easq.cli.app import App
    from easq.cli.items import Item, Items
    from easq.errors import EasqError
    from easq.model import Ack


@command(
    "put",
    examples=(
        "easq put -d '[{}]'",
        "easq put -f requests.txt --tags run=7",
        "easq put image.jpg --content-type image/jpeg --priority 1",
        "easq get -l 100 -o json | easq put --url OTHER --input-format json",
    ),
)
@payload_options("item")
@tags_option("Tag of every item, k=v; may be repeated.")
@click.option("--priority", type=click.IntRange(min=0), help="0 is normal, 1 is pushed before it.")
@click.option("--keep-tags", is_flag=True, help="With json: keep requestId and ts@*.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Puts a second at most.")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "continue")),
    default="stop",
    help="At the first failure.  [default: stop]",
)
@sink_option
def put(
    app: App,
    data: str | None,
    file: str | None,
    paths: tuple[str, ...],
    tags: tuple[tuple[str, str], ...],
    priority: int | None,
    path: str,
    content_type: str,
    form: str | None,
    keep_tags: bool,
    concurrency: int,
    rate: float | None,
    on_error: str,
) -> None:
    """Append items to the queue.

    -d is a literal, -f the lines of a file; PATH... and what is piped in are one item each, whole. Of lines
    only the line feed is cut, and empty ones are skipped. Above -c 1 the order in the queue is not the
    file's.
    """
    from easq.cli.items import find_items
    from easq.errors import EasqError

    items = find_items(app, data, file, paths, form, keep_tags=keep_tags)
    client = app.queue()
    common = as_tags(tags)

    def send(item: Item) -> Ack:
        try:
            return client.put(
                item.data,
                tags={**item.tags, **common},
                priority=priority if priority is not None else item.priority or 0,
                path=path,
                content_type=content_type or item.content_type,
            )
        except EasqError as error:
            raise _with_fate(error) from error

    run = Run(app, items, stop_at_failure=on_error == "stop")
    run.all(send, workers=concurrency, rate=rate)


def _with_fate(error: EasqError) -> EasqError:
    """The same error; where the item may have been stored all the same, its message says so."""
    from easq.client.failures import Unconnected
    from easq.errors import ServerError, Unavailable, Unreachable

    if not isinstance(error, ServerError | Unreachable) or isinstance(error, Unavailable | Unconnected):
        return error
    kind = ServerError if isinstance(error, ServerError) else Unreachable
    return kind(f"{error.message}; whether it was stored is not known", hint=error.hint, status=error.status)


@dataclass
class Run:
    """One put of many items: what became of each, and what is said about all."""

    app: App
    items: Items
    stop_at_failure: bool
    stored: int = 0
    size: int = 0
    failures: list[tuple[str, EasqError]] = field(default_factory=list)
    first_failed: Item | None = None
    stored_after: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def all(self, send: Callable[[Item], Ack], *, workers: int, rate: float | None) -> None:
        """Every item is stored and said so; or it is said which were, and the run's own error is raised."""
        from easq.cli.items import in_order
        from easq.errors import EasqError
        from easq.render.rows import ACK_COLUMNS

        if self.app.output == "table":
            self.app.printer.header(ACK_COLUMNS)
        results = in_order(iter(self.items), send, workers=workers, rate=rate, stop=self._stopped)
        try:
            for item, result in results:
                if isinstance(result, EasqError):
                    self._failed(item.where, result, item)
                else:
                    self._stored(item, result)
        except KeyboardInterrupt:
            self._totals("Put data interrupted; what was on its way may be stored.", None)
            raise
        except EasqError as error:  # a file that could not be read to its end
            if not self.stored and not self.failures:
                raise
            self._failed("", error, None)
        self._end()

    def _stopped(self) -> bool:
        return self.stop_at_failure and bool(self.failures)

    def _stored(self, item: Item, ack: Ack) -> None:
        from easq.render import rows

        number, printer = self.stored, self.app.printer
        self.stored += 1
        self.size += len(item.data)
        if self._stopped():
            self.stored_after.append(item.where)
        if self.app.output == "json":
            printer.record(rows.ack_record(number, ack, len(item.data)))
        elif self.app.output == "table":
            printer.row(rows.ack_row(number, ack, len(item.data)))
        else:
            printer.line(rows.ack_line(ack))
        printer.flush()

    def _failed(self, where: str, error: EasqError, item: Item | None) -> None:
        self.failures.append((where, error))
        self.first_failed = self.first_failed or item
        if not self.stop_at_failure and not self.items.single:
            self.app.printer.error(error, prefix=f"{where}: " if where else "")

    def _end(self) -> None:
        from easq.errors import Partial

        if not self.failures:
            self._totals("Put data done.", 0)
            return
        where, first = self.failures[0]
        if self.items.single:
            raise first
        rest = self.items.rest() if self.stop_at_failure else 0
        self._totals("Put data stopped." if self.stop_at_failure else "Put data done.", rest)
        told = f"{where}: {first.message}" if where else first.message
        counts = f"{self.stored} stored, {len(self.failures)} failed"
        if rest != 0:
            counts += f", {'the rest' if rest is None else rest} not attempted"
        if not self.stop_at_failure:
            told = counts
        elif len(self.failures) > 1:
            for place, error in self.failures:
                self.app.printer.error(error, prefix=f"{place}: " if place else "")
            told = counts
        elif self.stored:
            told = f"{told}; {counts}"
        if self.stored:
            raise Partial(told, hint=self._next())
        raise type(first)(told, hint=first.hint, status=first.status)

    def _next(self) -> str:
        """How to go on behind the first item that failed."""
        import shlex

        from easq.cli.items import JSON, STDIN

        item = self.first_failed
        if not self.stop_at_failure or item is None:
            return ""
        if self.stored_after:
            return f"stored all the same: {', '.join(self.stored_after)}"
        if not item.line:
            return f"go on with {item.source}"
        form = " --input-format json" if self.items.form == JSON else ""
        if item.source == STDIN:
            return f"go on with line {item.line}"
        return f"go on with: tail -n +{item.line} {shlex.quote(item.source)} | easq put -f -{form}"

    def _totals(self, what: str, rest: int | None) -> None:
        """What was done is said, on stderr."""
        from easq.render.payload import size
        from easq.wire.durations import format_duration

        printer, seconds = self.app.printer, time.monotonic() - self.begun
        failed, skipped = len(self.failures), self.items.skipped
        total = self.stored + failed + (rest or 0)
        if self.app.output == "json":
            printer.summary(
                {
                    "total": None if rest is None else total,
                    "success": self.stored,
                    "failed": failed,
                    "remaining": rest,
                    "skipped": skipped,
                    "size": self.size,
                    "seconds": round(seconds, 6),
                }
            )
            return
        if skipped:
            printer.info(f"Skipped {skipped} empty line{'s' if skipped != 1 else ''}.")
        printer.info(what)
        printer.remark(f"Total time cost: {format_duration(seconds)}")
        printer.remark(f"Total size: {size(self.size)}")
        remaining = f", remaining: {rest}" if rest else ""
        printer.remark(f"Total: {total}, success: {self.stored}, failed: {failed}{remaining}")
