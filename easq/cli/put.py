"""easq put: append items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import as_tags, sink_option, tags_option
from easq.cli.param_types import RATE, WholeNumber
from easq.cli.payloads import payload_options
from easq.errors import EasqError, UsageError

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.put_report import PutReport
    from easq.client.items import Item
    from easq.client.put_run import MakePut, PutCounts
    from easq.protocol.operations import Put


@command(
    "put",
    examples=(
        "easq put -d '[{}]'",
        "easq put -f requests.txt --tags run=7 -c 64 --resume requests.journal",
        "easq put image.jpg --content-type image/jpeg --priority 1",
        "easq get -l 100 -o json | easq put --url OTHER --input-format json",
    ),
)
@payload_options("item")
@tags_option("Tag of every item; can be repeated.")
@click.option(
    "--priority",
    type=WholeNumber(0),
    help="Priority; items with 1 are delivered before items with 0.  [default: 0]",
)
@click.option("--keep-tags", is_flag=True, help="With --input-format json: keep the tags requestId and ts@*.")
@click.option("--rate", type=RATE, help="Maximum puts per second.  [default: unlimited]")
@click.option(
    "--on-error",
    type=click.Choice(("stop", "continue")),
    default="stop",
    help="Stop at the first failure, or continue.  [default: stop]",
)
@click.option(
    "--resume",
    type=click.Path(readable=False),
    metavar="JOURNAL",
    help="Journal file of this run; an existing journal is continued.",
)
@sink_option
def put(
    app: App,
    given: tuple[bytes | str, ...],
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
    resume: str | None,
) -> None:
    """Append items to the queue.

    -d gives one item as text. -f reads a file with one item per line; empty lines are skipped. Each PATH, and piped
    standard input, is one whole item. -d and -f can be repeated; their order is kept. With -c above 1, the order in
    the queue can differ from the order of the input.

    --resume makes a run repeatable: after an interruption, run the same command again, and each item is in the
    queue once. Every put carries an idempotency key, which the service remembers for at least ten minutes.
    """
    from easq.cli.payloads import find_items, queue_limit
    from easq.cli.put_report import PutReport
    from easq.client.put_run import PutCounts

    if resume is not None and any(isinstance(source, bytes) for source in given):
        raise UsageError("--resume is for -f, PATH and stdin; -d gives one literal item")
    items = find_items(app, given, paths, form, keep_tags=keep_tags, limit=lambda: queue_limit(app))
    common = as_tags(tags)

    def make_put(item: Item, key: str = "") -> Put | EasqError:
        from easq.client.queue import put_operation

        if item.error is not None:
            return item.error
        try:
            return put_operation(
                item.data,
                tags={**item.tags, **common},
                priority=priority if priority is not None else item.priority or 0,
                path=path,
                content_type=content_type or item.content_type,
                key=key,
            )
        except EasqError as error:
            return error

    counts = PutCounts(items, stop_at_failure=on_error == "stop")
    report = PutReport(app, counts)
    if items.single and resume is None:
        _put_one(app, make_put, counts, report)
    else:
        how = repr((sorted(common.items()), priority, path, content_type, items.form, keep_tags))
        _put_many(app, make_put, counts, report, workers=concurrency, rate=rate, resume=resume, how=how)


def _put_one(app: App, make_put: MakePut, counts: PutCounts, report: PutReport) -> None:
    """Put one item, without importing the modules that only many items need."""
    from easq.client.put_run import put_one

    (item,) = counts.items
    operation = make_put(item, "")
    if isinstance(operation, EasqError):
        raise operation
    report.header()
    ack = put_one(app.queue(), operation)
    report.stored(counts.add_stored(item), item, ack)
    report.flush()
    report.end(unread=False)


def _put_many(
    app: App,
    make_put: MakePut,
    counts: PutCounts,
    report: PutReport,
    *,
    workers: int,
    rate: float | None,
    resume: str | None,
    how: str,
) -> None:
    """Put many items, and print the outcome of each. Raises the failure of the run."""
    from contextlib import ExitStack

    from easq.cli.signals import Interrupt
    from easq.client.journal import Journal
    from easq.client.put_run import PutRun
    from easq.client.state import knows_keys

    url, caller = app.stream()
    with ExitStack() as stack:
        journal = None
        if resume is not None:
            journal = stack.enter_context(Journal(resume, target=f"{url} rear={caller.rear}", how=how))
            counts.is_journaled, counts.stored_before = True, journal.stored_before
        run = PutRun(
            app.exchange,
            (url, caller),
            make_put,
            counts,
            report,
            workers=workers,
            rate=rate,
            journal=journal,
            on_notice=app.printer.info,
        )
        report.header()
        interrupt = stack.enter_context(Interrupt(run.stop))
        report.bar = stack.enter_context(app.printer.progress(counts.items.total_bytes))
        unread = not run.run()
        report.bar.end()
        if counts.possible_duplicates and not counts.knows_keys:
            counts.knows_keys = knows_keys(app.queue())
        if interrupt.raised is not None:
            report.interrupted(unread=unread)
            raise interrupt.raised
        report.end(unread=unread)
