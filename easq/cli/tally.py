"""The tally of a put of many items: what became of each, and what is said about all."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easq.errors import EasqError, Partial

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.items import Item, Items
    from easq.model import Ack

#: failures and places that are told one by one at the end
_MANY = 100


@dataclass
class Tally:
    """Counts and says what became of `items`: stored + failed + not attempted = all."""

    app: App
    items: Items
    stop_at_failure: bool
    journaled: bool = False
    resumed: int = 0  #: stored by earlier runs
    now: int = 0  #: stored by this one
    failed: int = 0
    size: int = 0
    failures: list[tuple[str, EasqError]] = field(default_factory=list)
    first_failed: Item | None = None
    stored_after: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    is_broken: bool = False  #: the run ended before its input did
    keys_known: bool = False  #: the service knows idempotency keys
    _doubts: int = 0
    _old_doubts: int = 0

    @property
    def ended(self) -> int:
        """How many items are stored or failed."""
        return self.resumed + self.now + self.failed

    @property
    def possible_duplicates(self) -> int:
        """How many items may be in the queue twice: sent again after an answer was lost, and not recognised.

        A service that recognised one key has recognised them all, as long as it remembers keys.
        """
        return self._old_doubts if self.keys_known else self._doubts

    def header(self) -> None:
        """The names over the rows of a table."""
        from easq.render.rows import ACK_COLUMNS

        if self.app.output == "table":
            self.app.printer.header(ACK_COLUMNS)

    def answered(self, *, known: bool, doubt_s: float | None) -> None:
        """A put was answered whose item may have been stored `doubt_s` ago (None: certainly not).

        Args:
            known: the service said that it was.
        """
        from easq.client.journal import REMEMBERED_S

        self.keys_known = self.keys_known or known
        if doubt_s is not None and not known:
            self._doubts += 1
            self._old_doubts += doubt_s >= REMEMBERED_S

    def stored(self, item: Item) -> int:
        """The item is stored; its number among those that are."""
        number = self.resumed + self.now
        self.now += 1
        self.size += len(item.data)
        if self.stop_at_failure and self.failures:
            self.stored_after.append(item.where)
        return number

    def row(self, number: int, item: Item, ack: Ack) -> None:
        """That the item is stored is on its way to stdout."""
        from easq.render import rows

        printer = self.app.printer
        if printer.output == "json":
            printer.record(rows.ack_record(number, ack, len(item.data)))
        elif printer.output == "table":
            printer.row(rows.ack_row(number, ack, len(item.data)))
        else:
            printer.write(rows.ack_line(ack).encode("ascii") + b"\n")

    def failed_item(self, item: Item, error: EasqError) -> None:
        """The item failed."""
        self.failed += 1
        self.first_failed = self.first_failed or item
        self._failed(item.where, error)

    def broken(self, error: EasqError) -> None:
        """The input could not be read to its end, or what became of it not be said any more."""
        self.is_broken = True
        self._failed("", error)

    def _failed(self, where: str, error: EasqError) -> None:
        if len(self.failures) < _MANY:
            self.failures.append((where, error))
        if not self.stop_at_failure:
            self.app.printer.error(error, prefix=f"{where}: " if where else "")

    def interrupted(self, *, unread: bool) -> None:
        """What was done until a signal came is said."""
        if self.stop_at_failure:
            self._tell_failures()
        self._totals("Put data interrupted.", self._rest(unread=unread))

    def end(self, *, unread: bool) -> None:
        """The totals are said. Raises what the run failed with, if it did: Partial where something is stored."""
        if not self.failures:
            self._totals("Put data done.", 0)
            return
        is_stopped = self.stop_at_failure or self.is_broken
        rest = self._rest(unread=unread) if is_stopped else 0
        self._totals("Put data stopped." if is_stopped else "Put data done.", rest)
        stored = self.resumed + self.now
        counts = f"{stored} stored, {self.failed} failed"
        if rest != 0:
            counts += f", {'the rest' if rest is None else rest} not attempted"
        kinds = self._kinds()
        if not self.stop_at_failure:
            told = counts
        elif len(kinds) > 1:
            self._tell_failures()
            told = counts
        else:
            ((where, first),) = kinds
            told = (f"{where}: " if where else "") + first.message
            told += f"; {counts}" if stored or self.failed > 1 else ""
        if stored:
            raise Partial(told, hint=self._next())
        first = self.failures[0][1]
        raise type(first)(told, hint=first.hint, status=first.http_status)

    def _tell_failures(self) -> None:
        for where, error in self._kinds():
            self.app.printer.error(error, prefix=f"{where}: " if where else "")

    def _kinds(self) -> list[tuple[str, EasqError]]:
        """The failures, each with its place; those that say the same are one: a wrong token fails all in flight."""
        found: dict[str, list[tuple[str, EasqError]]] = {}
        for where, error in self.failures:
            found.setdefault(error.message, []).append((where, error))
        kinds = []
        for same in found.values():
            more = f" and {len(same) - 1} more" if len(same) > 1 else ""
            kinds.append((same[0][0] + more, same[0][1]))
        return kinds

    def _rest(self, *, unread: bool) -> int | None:
        """How many items were not attempted, those of earlier runs left out; None where nobody knows."""
        rest = None if unread else self.items.rest()
        return None if rest is None else max(self.items.taken + rest - self.ended, 0)

    def _next(self) -> str:
        """How to go on behind the first item that failed."""
        import shlex

        from easq.client.items import JSON, STDIN

        item = self.first_failed
        if not self.is_broken and (not self.stop_at_failure or item is None):
            return ""
        if self.journaled:
            return "repeat the command: it goes on where it stopped"
        if self.stored_after:
            more = len(self.stored_after) - _MANY
            places = ", ".join(self.stored_after[:_MANY]) + (f" and {more} more" if more > 0 else "")
            return f"stored all the same: {places}"
        if item is None or not self.stop_at_failure:
            return ""
        if not item.line or self.items.has_many_sources:
            return f"go on with {item.where}" + (
                ", and all that follows it" if self.items.has_many_sources else ""
            )
        form = " --input-format json" if self.items.form == JSON else ""
        if item.source == STDIN:
            return f"go on with line {item.line}"
        return f"go on with: tail -n +{item.line} {shlex.quote(item.source)} | easq put -f -{form}"

    def _totals(self, what: str, rest: int | None) -> None:
        """What was done is said, on stderr."""
        from easq.protocol.durations import format_duration
        from easq.render.payload import size

        printer, seconds = self.app.printer, time.monotonic() - self.begun
        stored, skipped, doubts = self.resumed + self.now, self.items.skipped, self.possible_duplicates
        total = stored + self.failed + (rest or 0)
        if self.app.output == "json":
            printer.summary(
                {
                    "total": None if rest is None else total,
                    "success": stored,
                    "failed": self.failed,
                    "remaining": rest,
                    "skipped": skipped,
                    "resumed": self.resumed,
                    "possible_duplicates": doubts,
                    "size": self.size,
                    "seconds": round(seconds, 6),
                }
            )
            return
        if skipped:
            printer.info(f"Skipped {skipped} empty line{'s' if skipped != 1 else ''}.")
        if self.resumed:
            printer.info(f"Stored by earlier runs: {self.resumed}")
        if doubts:
            printer.info(f"Possible duplicates: {doubts}, sent again after an answer was lost")
        printer.info(what)
        printer.remark(f"Total time cost: {format_duration(seconds)}")
        printer.remark(f"Total size: {size(self.size)}")
        remaining = f", remaining: {rest}" if rest else ""
        printer.remark(f"Total: {total}, success: {stored}, failed: {self.failed}{remaining}")
