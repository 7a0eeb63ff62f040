"""`easq watch -- CMD`: run a command for each item, with the payload on its standard input."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from easq.errors import ChildFailed, UsageError
from easq.models.base import ModelFailed
from easq.models.command import Exec
from easq.protocol.operations import SHUTDOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from easq.cli.app import App
    from easq.model import Frame

NEGATIVE, LEAVE, STOP = "negative", "leave", "stop"
ON_FAIL = (NEGATIVE, LEAVE, STOP)

COLUMNS = ("n", "index", "request_id", "outcome", "attempt", "size", "data")

#: a command has no time limit: ten years, in seconds
_NO_LIMIT_S = 3.2e8


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of the command for one item.

    `data` is its output if it exited with 0; `interrupt` is the signal that came while it ran.
    """

    attempt: int
    data: bytes = b""
    code: str = ""
    reason: str = ""
    interrupt: BaseException | None = None
    is_busy: bool = False  # whether it exited with 75: not a failure; the item is delivered again later

    @property
    def is_done(self) -> bool:
        """Whether the command exited with 0, so that the item may be committed."""
        return not self.code

    @property
    def was_cut_off(self) -> bool:
        """Whether easq killed the command, which says nothing about the item."""
        return self.code == SHUTDOWN


@dataclass
class ItemCommand:
    """Runs the command for one item after the other, up to `max_attempts` times for an item on which it fails."""

    app: App
    model: Exec
    on_fail: str = NEGATIVE
    max_attempts: int = 1
    grace_s: float = 5.0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def run(self, frame: Frame) -> CommandResult:
        """Return how the command ended on an item.

        After a signal it has `grace_s` seconds; a second signal is raised. Raises ChildFailed if it cannot start.
        """
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self._attempts, frame)
            try:
                return future.result()
            except KeyboardInterrupt as interrupt:
                self._stopping.set()
                self.app.printer.info(f"stopping; item {frame.index} is under way")
                try:
                    result = future.result(self.grace_s)
                except TimeoutError:
                    self.model.close()
                    result = future.result()
                return replace(result, interrupt=interrupt)
            finally:
                if not future.done():
                    self.model.close()

    def _attempts(self, frame: Frame) -> CommandResult:
        from easq.models.inference import attempt_of, call_of
        from easq.net.retry import full_jitter

        call, first = call_of(frame), attempt_of(frame)
        result = CommandResult(first)
        for number in range(self.max_attempts):
            if number and self._stopping.wait(full_jitter(number)):
                break
            attempt = first + number
            environ = {**call.environ, "EASQ_ATTEMPT": str(attempt)}
            try:
                answer = self.model.run(replace(call, environ=environ), timeout_s=_NO_LIMIT_S)
            except ModelFailed as error:
                result = CommandResult(attempt, code=error.code, reason=error.message, is_busy=error.busy)
                if result.was_cut_off:
                    break
            else:
                return CommandResult(attempt, answer.data)
        return result

    def report(self, number: int, frame: Frame, result: CommandResult) -> None:
        """Write the output of the command to stdout, flushed, or the reason of its failure to stderr."""
        from easq.render.rows import payload_record

        printer = self.app.printer
        outcome = "done" if result.is_done else "failed"
        if self.app.output == "json":
            printer.record(
                {
                    "n": number,
                    "index": str(frame.index),
                    "request_id": frame.request_id,
                    "outcome": outcome,
                    "code": result.code or None,
                    "reason": result.reason or None,
                    "attempt": result.attempt,
                    **payload_record(result.data),
                }
            )
        elif self.app.output == "table":
            from easq.render.payload import shown

            values = (number, frame.index, frame.request_id, outcome, result.attempt, len(result.data))
            printer.row([*map(str, values), shown(result.data)])
        elif result.is_done:
            printer.payload(result.data)
        if not result.is_done and self.app.output != "json":
            printer.notice(
                f"item {frame.index} failed, attempt {result.attempt}: {result.code} {result.reason}"
            )
        printer.flush()

    def check(self, result: CommandResult, left: int, window: int) -> None:
        """Raise ChildFailed if the watch ends with a failure: by --on-fail stop, or because the window is full."""
        if self.on_fail == STOP:
            raise ChildFailed(f"the command failed: {result.reason}")
        if self.on_fail == LEAVE and left >= window:
            raise ChildFailed(
                f"the command failed on {left} items, which stay pending: the window is full",
                hint="with --on-fail negative they are delivered again",
            )


def item_command(
    app: App, cmd: Sequence[str], on_fail: str | None, max_attempts: int | None, grace_s: float | None
) -> ItemCommand | None:
    """Return the runner of CMD, None without a CMD. Raises UsageError for options that need one."""
    given = {"--on-fail": on_fail, "--max-attempts": max_attempts, "--grace": grace_s}
    if not cmd:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} needs a command", hint="-- CMD ARG... at the end")
        return None
    return ItemCommand(
        app, Exec(cmd), on_fail or NEGATIVE, max_attempts or 1, 5.0 if grace_s is None else grace_s
    )
