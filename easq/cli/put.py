"""easq put: append items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import click

from easq.cli.command import command
from easq.cli.options import as_tags, sink_option, tags_option
from easq.cli.param_types import RATE, WholeNumber
from easq.cli.payloads import payload_options
from easq.errors import EasqError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from easq.cli.app import App
    from easq.cli.tally import Tally
    from easq.client.items import Item, Items
    from easq.client.journal import Journal
    from easq.model import Ack
    from easq.net.pipeline import Outcome, Task
    from easq.protocol.operations import Operation, Put

    #: an item, its number, and how many seconds ago another run may have put it
    Sent: TypeAlias = tuple[Item, int, float | None]

#: how long what is in flight may take after Ctrl-C, in seconds
GRACE_S = 5.0
#: how long the reader may take to notice that the run is over, in seconds
_READER_S = 1.0
#: how long a service may take to say what it is, in seconds
_ASK_S = 2.0


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
    from easq.cli.tally import Tally

    if resume is not None and any(isinstance(source, bytes) for source in given):
        raise UsageError("--resume is for -f, PATH and stdin; -d gives one literal item")
    items = find_items(app, given, paths, form, keep_tags=keep_tags, limit=lambda: queue_limit(app))
    common = as_tags(tags)

    def operation(item: Item, key: str = "") -> Put | EasqError:
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

    run = Run(app, items, operation, Tally(app, items, stop_at_failure=on_error == "stop"))
    if items.single and resume is None:
        run.one()
    else:
        how = repr((sorted(common.items()), priority, path, content_type, items.form, keep_tags))
        run.many(workers=concurrency, rate=rate, resume=resume, how=how)


@dataclass
class Run:
    """One put of some items: how they are sent, and how it is known what became of each."""

    app: App
    items: Items
    operation: Callable[[Item, str], Put | EasqError]
    tally: Tally
    journal: Journal | None = None
    broken: EasqError | None = None  #: why nothing more can be kept in the journal, or said

    def one(self) -> None:
        """The one item is stored and said so, without what only many are worth loading. Raises EasqError."""
        (item,) = self.items
        operation = self.operation(item, "")
        if isinstance(operation, EasqError):
            raise operation
        self.tally.header()
        try:
            ack = self.app.queue().send(operation)
        except EasqError as error:
            from easq.net.failures import had_no_effect

            raise error if had_no_effect(error) else in_doubt(error) from error
        self.tally.row(self.tally.stored(item), item, ack)
        self.app.printer.flush()
        self.tally.end(unread=False)

    def many(self, *, workers: int, rate: float | None, resume: str | None, how: str) -> None:
        """Every item is stored and said so; or it is said which were, and the run's own error is raised."""
        from contextlib import ExitStack

        from easq.cli.signals import Interrupt
        from easq.client.journal import Journal
        from easq.net.pipeline import Pipeline, asking
        from easq.protocol.replies import read_put

        url, caller = self.app.stream()
        target = f"{url} rear={caller.rear}"
        bulk = Pipeline(
            self.app.exchange,
            workers=workers,
            rate=rate,
            stop_at_failure=self.tally.stop_at_failure,
            on_notice=self.app.printer.info,
        )
        with ExitStack() as stack:
            if resume is not None:
                self.journal = stack.enter_context(Journal(resume, target=target, how=how))
                self.tally.journaled, self.tally.resumed = True, self.journal.stored_before
            self.tally.header()
            interrupt = stack.enter_context(Interrupt(lambda: bulk.stop(grace_s=GRACE_S)))
            progress = stack.enter_context(self.app.printer.progress(self.items.total_bytes))
            try:
                for batch in bulk.run(self._tasks(), asking(url, caller, self.app.exchange, read_put)):
                    self._take(batch)
                    if self.broken is not None:
                        bulk.stop(grace_s=GRACE_S)
                    progress.at(self.tally.ended, self.tally.failed, self.items.bytes)
            except EasqError as error:  # a file that could not be read to its end
                if not self.tally.now and not self.tally.failed:
                    raise
                self.broken = self.broken or error
            if self.broken is not None:
                self.tally.broken(self.broken)
            unread = not bulk.read_all(within_s=_READER_S)
            progress.end()
            if self.tally.possible_duplicates and not self.tally.keys_known:
                self.tally.keys_known = self._knows_keys()
            if interrupt.raised is not None:
                self.tally.interrupted(unread=unread)
                raise interrupt.raised
            self.tally.end(unread=unread)

    def _knows_keys(self) -> bool:
        """Whether the service says that it is one of those that know idempotency keys: easq's."""
        try:
            return "meta.durability" in self.app.queue().attributes(deadline_s=_ASK_S)
        except EasqError:
            return False

    def _tasks(self) -> Iterator[Task[Sent, Operation]]:
        """What is to be put, each item with the key that it has in every run."""
        from secrets import token_hex

        from easq.net.pipeline import Task

        run = token_hex(8)
        if self.journal is None:
            for number, item in enumerate(self.items):
                yield Task((item, number, None), self.operation(item, f"{run}-{number}"), len(item.data))
            return
        for item, entry in self.journal.left((item, item.identity) for item in self.items):
            operation = self.operation(item, self.journal.key(entry.number))
            yield Task((item, entry.number, entry.doubt_s), operation, len(item.data))

    def _take(self, batch: Sequence[Outcome[Sent, Ack]]) -> None:
        """What became of these items is counted, kept in the journal, and then said; after a failure only counted."""
        rows: list[tuple[int, Item, Ack]] = []
        for outcome in batch:
            item, _, doubt_s = outcome.what
            error = outcome.error
            if outcome.result is not None:
                ack = outcome.result
                self.tally.answered(
                    known=ack.duplicate, doubt_s=0.0 if doubt_s is None and outcome.times.doubt else doubt_s
                )
                rows.append((self.tally.stored(item), item, ack))
            elif error is not None:
                self.tally.failed_item(item, error if _refused(outcome) else in_doubt(error))
        if self.broken is not None:
            return
        try:
            self._keep(batch)
            for row in rows:
                self.tally.row(*row)
            self.app.printer.flush()
        except EasqError as error:
            self.broken = error

    def _keep(self, batch: Sequence[Outcome[Sent, Ack]]) -> None:
        """The journal knows what became of these items. Raises StorageError."""
        if self.journal is None:
            return
        stored = [outcome.what[1] for outcome in batch if outcome.error is None]
        refused = [outcome.what[1] for outcome in batch if outcome.error and _refused(outcome)]
        if refused:
            self.journal.refused(refused)
        if stored:
            self.journal.stored(stored)


def _refused(outcome: Outcome[Sent, Ack]) -> bool:
    """Whether it certainly was not stored, by any of its attempts in this run."""
    from easq.net.failures import had_no_effect

    return outcome.error is not None and not outcome.times.doubt and had_no_effect(outcome.error)


def in_doubt(error: EasqError) -> EasqError:
    """The same error; its message says that the item may have been stored all the same."""
    from easq.errors import ServerError, Unreachable

    kind = ServerError if isinstance(error, ServerError) else Unreachable
    return kind(
        f"{error.message}; whether it was stored is not known", hint=error.hint, status=error.http_status
    )
