"""The report of `easq put`: a line for each stored item, the failures, the totals, and how to go on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from easq.client.items import JSON, STDIN, Item
from easq.client.put_run import MAX_REPORTED
from easq.errors import EasqError, Partial

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.put_run import PutCounts
    from easq.model import Ack
    from easq.render.progress import Progress


class PutReport:
    """Prints the outcomes of a run, and at its end the totals of `counts`."""

    def __init__(self, app: App, counts: PutCounts) -> None:
        self._app, self._counts = app, counts
        self.bar: Progress | None = None

    def header(self) -> None:
        """Print the names over the rows of a table."""
        from easq.render.rows import ACK_COLUMNS

        if self._app.output == "table":
            self._app.printer.header(ACK_COLUMNS)

    def stored(self, number: int, item: Item, ack: Ack) -> None:
        """Print the line of a stored item."""
        from easq.render import rows

        printer = self._app.printer
        if printer.output == "json":
            printer.record(rows.ack_record(number, ack, len(item.data)))
        elif printer.output == "table":
            printer.row(rows.ack_row(number, ack, len(item.data)))
        else:
            printer.write(rows.ack_line(ack).encode("ascii") + b"\n")

    def failed(self, where: str, error: EasqError) -> None:
        """Print a failure at once, if the run goes on after failures."""
        if not self._counts.stop_at_failure:
            self._app.printer.error(error, prefix=f"{where}: " if where else "")

    def flush(self) -> None:
        """Write out the lines."""
        self._app.printer.flush()

    def progress(self) -> None:
        """Draw the progress bar."""
        if self.bar is not None:
            self.bar.at(self._counts.ended, self._counts.failed, self._counts.items.bytes)

    def interrupted(self, *, unread: bool) -> None:
        """Print what was done until a signal came."""
        if self._counts.stop_at_failure:
            self._print_failures()
        self._totals("Put data interrupted.", self._counts.rest(unread=unread))

    def end(self, *, unread: bool) -> None:
        """Print the totals. Raises the failure of the run, or Partial if items are stored."""
        counts = self._counts
        if not counts.failures:
            self._totals("Put data done.", 0)
            return
        is_stopped = counts.stop_at_failure or counts.is_broken
        rest = counts.rest(unread=unread) if is_stopped else 0
        self._totals("Put data stopped." if is_stopped else "Put data done.", rest)
        text = f"{counts.stored} stored, {counts.failed} failed"
        if rest != 0:
            text += f", {'the rest' if rest is None else rest} not attempted"
        distinct = counts.distinct_failures()
        if not counts.stop_at_failure:
            message = text
        elif len(distinct) > 1:
            self._print_failures()
            message = text
        else:
            ((where, first),) = distinct
            message = (f"{where}: " if where else "") + first.message
            message += f"; {text}" if counts.stored or counts.failed > 1 else ""
        if counts.stored:
            raise Partial(message, hint=self._next_step())
        first = counts.failures[0][1]
        raise type(first)(message, hint=first.hint, status=first.http_status)

    def _print_failures(self) -> None:
        for where, error in self._counts.distinct_failures():
            self._app.printer.error(error, prefix=f"{where}: " if where else "")

    def _next_step(self) -> str:
        """Return how to go on after the first item that failed."""
        import shlex

        counts, item = self._counts, self._counts.first_failed
        if not counts.is_broken and (not counts.stop_at_failure or item is None):
            return ""
        if counts.is_journaled:
            return "repeat the command: it goes on where it stopped"
        if counts.stored_after_failure:
            more = len(counts.stored_after_failure) - MAX_REPORTED
            places = ", ".join(counts.stored_after_failure[:MAX_REPORTED])
            return f"stored all the same: {places}" + (f" and {more} more" if more > 0 else "")
        if item is None or not counts.stop_at_failure:
            return ""
        if not item.line or counts.items.has_many_sources:
            following = ", and all that follows it" if counts.items.has_many_sources else ""
            return f"go on with {item.where}{following}"
        form = " --input-format json" if counts.items.form == JSON else ""
        if item.source == STDIN:
            return f"go on with line {item.line}"
        return f"go on with: tail -n +{item.line} {shlex.quote(item.source)} | easq put -f -{form}"

    def _totals(self, what: str, rest: int | None) -> None:
        from easq.protocol.durations import format_duration
        from easq.render.payload import size

        counts, printer = self._counts, self._app.printer
        seconds, skipped = time.monotonic() - counts.began, counts.items.skipped
        total = counts.stored + counts.failed + (rest or 0)
        if self._app.output == "json":
            printer.summary(
                {
                    "total": None if rest is None else total,
                    "success": counts.stored,
                    "failed": counts.failed,
                    "remaining": rest,
                    "skipped": skipped,
                    "resumed": counts.stored_before,
                    "possible_duplicates": counts.possible_duplicates,
                    "size": counts.size,
                    "seconds": round(seconds, 6),
                }
            )
            return
        if skipped:
            printer.info(f"Skipped {skipped} empty line{'s' if skipped != 1 else ''}.")
        if counts.stored_before:
            printer.info(f"Stored by earlier runs: {counts.stored_before}")
        if counts.possible_duplicates:
            printer.info(
                f"Possible duplicates: {counts.possible_duplicates}, sent again after an answer was lost"
            )
        printer.info(what)
        printer.remark(f"Total time cost: {format_duration(seconds)}")
        printer.remark(f"Total size: {size(counts.size)}")
        remaining = f", remaining: {rest}" if rest else ""
        printer.remark(f"Total: {total}, success: {counts.stored}, failed: {counts.failed}{remaining}")
