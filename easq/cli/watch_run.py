"""One run of `easq watch`: each item is shown or passed to a command, then committed, returned or left pending.

Items that are not committed are returned to the group when the watch ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from easq.cli.item_command import NEGATIVE
from easq.cli.options import ASK, OUTPUT
from easq.client.consumer import Deliveries
from easq.errors import (
    ChildFailed,
    EasqError,
    Partial,
    ServerError,
    StorageError,
    StreamEnded,
    Unreachable,
    UsageError,
)
from easq.net.retry import OVERTIME_S
from easq.protocol.operations import BUSY, SHUTDOWN
from easq.protocol.replies import BUSY_FEATURE

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.item_command import ItemCommand
    from easq.client.queue import QueueClient
    from easq.client.watch import Watcher
    from easq.model import Frame

#: seconds until a commit that failed is tried again
_RETRY_S = 1.0

#: seconds between two checks whether the stream has ended. easq serve tells an open watch (close reason `eos`, or the
#: end of the HTTP answer and 410 from then on), but no document says that other services do
_END_LOOK_S = 1.0

#: items that were pushed and not shown are returned up to this number; the closed connection returns the others
_MAX_RETURNED = 20_000


class WatchRun:
    """One watch, until one of its ends."""

    def __init__(
        self,
        app: App,
        client: QueueClient,
        watcher: Watcher,
        policy: str | None,
        window: int,
        auto_commit: bool,
        until_end: bool,
        end_at: float | None = None,
        runner: ItemCommand | None = None,
    ) -> None:
        """Prepare a run over `watcher`, which is connected.

        Args:
            policy: ask, output or none; not used with `runner`.
            end_at: when --timeout is over, on the monotonic clock.
            runner: runs the command for each item.
        """
        self.app, self.client, self.watcher = app, client, watcher
        self.policy, self.window, self.auto_commit = policy, window, auto_commit
        self.until_end, self.end_at, self.runner = until_end, end_at, runner
        self.items = Deliveries[bool](window=window)
        # when the command, the user or the reader of the output last finished with an item: their time does not count
        # as waiting for the service, so that their result is still sent after --timeout
        self.worked_at = 0.0
        self.shown = self.committed = 0

    def run(self, *, count: int | None, idle_s: float | None) -> int:
        """Run until one of the ends is reached, and return how many items were shown. After that, no item is pending
        here.
        """
        try:
            while count is None or self.shown < count:
                frame = self._next(idle_s)
                if frame is None:
                    break
                self._take(frame)
            self._commit()
            self._return_pending()
        except StreamEnded:
            self._commit()
            if not self.until_end:
                raise
        except (UsageError, StorageError, ChildFailed) as error:
            # no answer at a prompt, an item that cannot be shown, a full disk behind stdout, no command
            self._leave()
            committed = self.shown if self.auto_commit else self.committed
            if isinstance(error, UsageError) and committed:
                raise Partial(
                    f"{error.message}; committed before that: {committed}", hint=error.hint
                ) from error
            raise
        except EasqError:
            raise  # the server is out of reach or refuses us: the lost connection returns all items
        except BaseException:
            self._leave()
            raise
        return self.shown

    def _next(self, idle_s: float | None) -> Frame | None:
        """Return the next frame; None at the end. Written items are committed before this waits."""
        frame = self.watcher.next(0.0)
        idle_at = None if idle_s is None else time.monotonic() + idle_s
        ends = [end for end in (self.end_at, idle_at) if end is not None]
        while frame is None:
            self._try_commit()
            wait = max(0.0, min(ends) - time.monotonic()) if ends else None
            if self.items.uncommitted:
                wait = _RETRY_S if wait is None else min(wait, _RETRY_S)
            if self.until_end:
                wait = _END_LOOK_S if wait is None else min(wait, _END_LOOK_S)
            frame = self.watcher.next(wait)
            if frame is None and ends and time.monotonic() >= min(ends):
                if (lost := self.watcher.lost) is not None:  # it is unknown whether there is an item
                    self._try_commit()
                    raise Unreachable(
                        f"{lost.message}; not connected again when the time was over", hint=lost.hint
                    )
                return None
            if frame is None and self._has_ended():
                return None
        return frame

    @property
    def _bounded(self) -> QueueClient:
        """The client for an exchange within --timeout."""
        if self.end_at is None:
            return self.client
        return self.client.bounded(max(self.end_at, self.worked_at) + OVERTIME_S)

    def _has_ended(self) -> bool:
        """Return whether the run is to end with the stream, and the stream has ended and is empty."""
        if not self.until_end or self.items.uncommitted:
            return False
        try:
            attributes = self._bounded.attributes()
        except (Unreachable, ServerError):
            return False  # the watch itself finds out whether this lasts
        return attributes.get("meta.state") == "End" and attributes.get("stream.length") == "0"

    def _take(self, frame: Frame) -> None:
        """Show the frame, and commit it or ask about it as the policy says."""
        if self.auto_commit:
            self._show(frame)
            return
        # an item that is pushed again because its commit was lost is committed again, and nobody is asked twice
        if not self.items.push(frame, self.watcher.epoch):
            return
        self.items.begin(0.0)
        self.items.call_ended()
        if self.runner is not None:
            self._run_command(self.runner, frame)
            return
        if self.items.uncommitted and self.app.printer.would_wait(len(frame.data)):
            self._try_commit()
        if self.policy == OUTPUT and not self.app.printer.shows_whole(frame.data):
            raise UsageError(
                f"item {frame.index} cannot be shown in full, and is not committed",
                hint="use -o json, or redirect the output",
            )
        self._show(frame)
        if self.policy == ASK:
            self._ask(frame.index)
        elif self.policy == OUTPUT:
            self.items.done(frame.index, True)
            if self.items.is_batch_full:
                self._try_commit()
        else:
            self.items.leave(frame.index)

    def _show(self, frame: Frame) -> None:
        self.app.printer.frame(self.shown, frame)
        self.app.printer.flush()
        self.worked_at = time.monotonic()  # a reader of the output may be slow
        self.shown += 1

    def _run_command(self, runner: ItemCommand, frame: Frame) -> None:
        """Run the command, and commit, return or leave the item by its end. Raises its interrupt after that."""
        try:
            result = runner.run(frame)
        finally:
            self.worked_at = time.monotonic()
        if not result.was_cut_off:
            runner.report(self.shown, frame, result)
            self.shown += 1
            if result.is_done:
                self.items.done(frame.index, True)
                self._try_commit()  # at once: the next command may take long
            elif runner.on_fail == NEGATIVE:
                code = BUSY if result.is_busy and self._knows_busy() else result.code
                self._try_negative(frame.index, code, result.reason)
            else:
                self.items.leave(frame.index)
                runner.check(result, self.items.left, self.window)
        if result.interrupt is not None:
            raise result.interrupt

    def _knows_busy(self) -> bool:
        """Return whether the service supports the code Busy, with which an item waits without a failure."""
        try:
            return BUSY_FEATURE in self._bounded.describe().features
        except EasqError:
            return False

    def _try_negative(self, index: int, code: str, reason: str) -> None:
        """Report a failure of the item, unless its connection is lost: that counts as one."""
        self.items.connected(self.watcher.epoch)
        if not self.items.is_pending(index):
            self.items.release(index)
            return
        try:
            self._bounded.negative([index], code=code, reason=reason)
            self.items.release(index)
        except (Unreachable, ServerError) as error:
            self.items.leave(index)
            self.app.printer.notice(f"a failure was not reported: {error.message}")

    def _ask(self, index: int) -> None:
        """Have the user commit or return the item, or leave it pending until the watch ends."""
        if self._answer(f"commit: {index} ?"):
            self.items.done(index, True)
            self._try_commit()
        elif self._answer(f"negative: {index} ?"):
            self._bounded.negative([index])
            self.items.release(index)
        else:
            self.items.leave(index)

    def _answer(self, question: str) -> bool:
        try:
            return self.app.ask(question, default=True)
        finally:
            self.worked_at = time.monotonic()

    def _try_commit(self) -> None:
        """Commit the items that are done. If the server cannot do that now, they are committed later."""
        try:
            self._commit()
        except (Unreachable, ServerError) as error:
            self.app.printer.notice(f"{self.items.uncommitted} not committed yet: {error.message}")

    def _commit(self) -> None:
        while batch := self.items.batch():
            self._bounded.commit(batch)
            self.committed += len(self.items.committed(batch))

    def _leave(self) -> None:
        """Commit the written items and return the rest, as far as the server allows.

        An interrupt meanwhile leaves at once: the lost connection returns the rest.
        """
        try:
            self._commit()
            self._return_pending()
        except EasqError as error:
            self.app.printer.notice(f"items are returned only by the end of the connection: {error.message}")
        except KeyboardInterrupt:
            self.watcher.abort()
            raise

    def _return_pending(self) -> None:
        """Return the items that were pushed and not committed, without counting as failed.

        This comes before the close: after it another consumer may have an item, and a negative would take it away.
        """
        if self.auto_commit:
            return
        try:
            for _ in range(_MAX_RETURNED):
                if (frame := self.watcher.next(0.0)) is None:
                    break
                self.items.push(frame, self.watcher.epoch)
        except EasqError:
            return  # the connection is lost, and with it every item
        indexes = self.items.release_all()
        if indexes:
            self._bounded.negative(indexes, code=SHUTDOWN, reason="the watch ended")
