"""easq watch: be pushed items, show them, and say which are done.

An item is in the group's hands again unless it was committed: what was shown and not committed, and what was
pushed and not shown, is handed back when the watch ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from easq.cli.options import (
    DURATION,
    INDEX_OR_NEWEST,
    WholeNumber,
    as_tags,
    command,
    stream_options,
    tags_option,
    transport_option,
)

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.each import Each
    from easq.client.queue import QueueClient
    from easq.client.watch import Watcher
    from easq.model import Frame
    from easq.protocol.operations import Watch

ASK, OUTPUT, NONE, COMMAND = "ask", "output", "none", "command"

#: indexes in one commit at most; the service takes more, a URL grows with them
_MAX_BATCH = 256

#: how many committed indexes are remembered, to know one that comes a second time
_MAX_REMEMBERED = 100_000

#: seconds until a commit that failed is tried again
_RETRY_S = 1.0

#: seconds between two looks whether the stream has ended. easq serve tells an open watch (close reason `eos`, or the
#: end of the HTTP answer and 410 from then on), but no document says that other services do
_END_LOOK_S = 1.0

#: how many items are handed back by name; the closed connection gives back the others
_MAX_HELD = 20_000


@command(
    "watch",
    examples=(
        "easq watch",
        "easq watch -k --commit output -o json | jq .data",
        "easq watch -n 5 --commit output --timeout 1m --tags run=7",
        "easq watch --on-fail stop -- sh -c 'cat > $EASQ_INDEX.png'",
    ),
)
@click.option("--index", type=INDEX_OR_NEWEST, default="0", help="Start: an index, 0 the head, or newest.")
@click.option(
    "--window",
    type=WholeNumber(1, 10_000),
    default=10,
    help="Uncommitted items that may be out.  [default: 10]",
)
@click.option("--index-only", is_flag=True, help="Indexes and tags without the payloads.")
@click.option(
    "--auto-commit",
    is_flag=True,
    help="The server commits what it sends: at most once, and what is not shown any more is lost.",
)
@click.option(
    "--commit",
    "policy",
    type=click.Choice((ASK, OUTPUT, NONE)),
    help="ask: after each item; output: once it was written; none: never.",
)
@tags_option("Only items with this tag, k=v; may be repeated, and is the same in the whole group.")
@transport_option
@click.option("-n", "count", type=WholeNumber(min=1), help="Stop after so many items.")
@click.option("--until-end", is_flag=True, help="The end of the stream is a good end.")
@click.option("--idle-timeout", type=DURATION, help="Stop when nothing came for so long.")
@click.option("--timeout", type=DURATION, help="Stop after so long.")
@click.option("--allow-empty", is_flag=True, help="Fewer than -n is no failure.")
@click.option(
    "--on-fail",
    type=click.Choice(("negative", "leave", "stop")),
    help="When CMD fails: deliver the item again, leave it pending, or stop.  [default: negative]",
)
@click.option(
    "--max-attempts", type=WholeNumber(1), help="Runs of CMD on an item until it has failed.  [default: 1]"
)
@click.option("--grace", type=DURATION, help="For CMD to end, after a signal.  [default: 5s]")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
@stream_options
def watch(
    app: App,
    index: int,
    window: int,
    index_only: bool,
    auto_commit: bool,
    policy: str | None,
    tags: tuple[tuple[str, str], ...],
    transport: str,
    count: int | None,
    until_end: bool,
    idle_timeout: float | None,
    timeout: float | None,
    allow_empty: bool,
    on_fail: str | None,
    max_attempts: int | None,
    grace: float | None,
    cmd: tuple[str, ...],
) -> None:
    """Be pushed items, and commit them.

    On a terminal each item is asked about; elsewhere a policy is needed. With CMD it is run for each item, one after
    the other and by no shell: payload on stdin, EASQ_INDEX, EASQ_REQUEST_ID, EASQ_ATTEMPT and EASQ_TAGS_JSON in its
    environment. What it says is shown, and the item committed, when it exits with 0. What was not committed when the
    watch ends is handed back. A reader of the output that stops early may have taken more than it shows: -n
    says how many.
    """
    from easq.cli.each import each_of
    from easq.errors import NoData, StreamEnded, UsageError
    from easq.net.retry import OVERTIME_S
    from easq.protocol.operations import Watch

    each = each_of(app, cmd, on_fail, max_attempts, grace)
    if each is not None and (auto_commit or policy is not None):
        raise UsageError("with -- CMD its exit status says what is committed: no --commit, no --auto-commit")
    if each is None:
        policy = choose_policy(app, policy, auto_commit=auto_commit, window=window, count=count)
    operation = Watch(
        index=index,
        window=window,
        index_only=index_only,
        auto_commit=auto_commit,
        tags=as_tags(tags),
        upgrade=transport == "ws",
    )
    end_at = None if timeout is None else time.monotonic() + timeout
    client = app.queue()
    connecting = client.bounded(None if end_at is None else end_at + OVERTIME_S)
    _announce(app, operation, each)
    shown = 0
    try:
        with connecting.watch(operation, on_notice=app.printer.notice) as watcher:
            session = Session(
                app, client, watcher, policy or COMMAND, window, auto_commit, until_end, end_at, each=each
            )
            shown = session.run(count=count, idle_s=idle_timeout)
    except StreamEnded as error:  # during the watch, or before it began
        if not until_end:
            error.hint = error.hint or "with --until-end this is a good end"
            raise
    if count is not None and shown < count and not allow_empty:
        raise NoData(f"{shown} of {count} items came")


def choose_policy(app: App, policy: str | None, *, auto_commit: bool, window: int, count: int | None) -> str:
    """What to do about each item. Raises UsageError where nothing says it, or where it cannot work."""
    from easq.errors import UsageError

    if auto_commit:
        if policy not in (None, NONE):
            raise UsageError(f"--auto-commit and --commit {policy} exclude each other")
        return NONE
    if policy is None and app.can_ask():
        return ASK
    if policy is None:
        raise UsageError(
            "no commit policy, and no terminal to ask on",
            hint="give one of --auto-commit, --commit output, --commit none, -- CMD",
        )
    if policy == ASK and not app.can_ask() and not app.options.get("yes"):
        raise UsageError("--commit ask needs a terminal to ask on")
    if policy == OUTPUT and app.output == "none":
        raise UsageError(
            "--commit output with -o none would commit items that were not shown",
            hint="use --auto-commit for items that need not be shown",
        )
    if policy == NONE and count is not None and count > window:
        raise UsageError(f"-n {count} with --commit none needs --window {count}: no more than that is pushed")
    return policy


def _announce(app: App, operation: Watch, each: Each | None) -> None:
    app.printer.info(
        f"Start to watch: index: {operation.index}, indexOnly: {str(operation.index_only).lower()}, "
        f"autoCommit: {str(operation.auto_commit).lower()}, window: {operation.window}"
    )
    if app.output == "table":
        from easq.cli.each import COLUMNS
        from easq.render.rows import FRAME_COLUMNS

        app.printer.header(FRAME_COLUMNS if each is None else COLUMNS)


@dataclass
class Session:
    """One watch: what we have in hand, what is to be committed, what was."""

    app: App
    client: QueueClient
    watcher: Watcher
    policy: str
    window: int
    auto_commit: bool
    until_end: bool
    end_at: float | None = None  #: of --timeout, on the monotonic clock
    each: Each | None = None
    #: when the command, the user or the reader of the output last finished with an item: their time does not count as
    #: waiting for the service, so that their result is still sent after --timeout
    worked_at: float = 0.0
    shown: int = 0
    committed: int = 0
    epoch: int = 0
    #: pushed to us on this connection, neither committed nor given back
    open: dict[int, None] = field(default_factory=dict)
    #: written and flushed, or said yes to; the commit is not answered yet
    to_commit: dict[int, None] = field(default_factory=dict)
    #: committed; one of them that comes again is not shown again
    done: dict[int, None] = field(default_factory=dict)
    #: the command failed on them, and they are left as they are
    left: dict[int, None] = field(default_factory=dict)

    def run(self, *, count: int | None, idle_s: float | None) -> int:
        """How many items were shown until one of the ends was reached; none is left in our hands then."""
        from easq.errors import ChildFailed, EasqError, Partial, StorageError, StreamEnded, UsageError

        try:
            while count is None or self.shown < count:
                frame = self._next(idle_s)
                if frame is None:
                    break
                self._take(frame)
            self._commit()
            self._hand_back()
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
            raise  # the server is out of reach or refuses us: the lost connection gives all back
        except BaseException:
            self._leave()
            raise
        return self.shown

    def _next(self, idle_s: float | None) -> Frame | None:
        """The next frame; before anything is waited for, all that was written is committed."""
        frame = self.watcher.next(0.0)
        idle_at = None if idle_s is None else time.monotonic() + idle_s
        ends = [end for end in (self.end_at, idle_at) if end is not None]
        while frame is None:
            self._try_commit()
            wait = max(0.0, min(ends) - time.monotonic()) if ends else None
            if self.to_commit:
                wait = _RETRY_S if wait is None else min(wait, _RETRY_S)
            if self.until_end:
                wait = _END_LOOK_S if wait is None else min(wait, _END_LOOK_S)
            frame = self.watcher.next(wait)
            if frame is None and ends and time.monotonic() >= min(ends):
                self._check_connected()
                return None
            if frame is None and self._has_ended():
                return None
        return frame

    def _check_connected(self) -> None:
        """Raise Unreachable if the connection is down: no item came, but nobody knows whether there is one."""
        from easq.errors import Unreachable

        lost = self.watcher.lost
        if lost is not None:
            self._try_commit()
            raise Unreachable(f"{lost.message}; not connected again when the time was over", hint=lost.hint)

    @property
    def _bounded(self) -> QueueClient:
        """The client for an exchange within --timeout."""
        from easq.net.retry import OVERTIME_S

        if self.end_at is None:
            return self.client
        return self.client.bounded(max(self.end_at, self.worked_at) + OVERTIME_S)

    def _has_ended(self) -> bool:
        """Whether the end is waited for, and the stream has ended and is empty."""
        from easq.errors import ServerError, Unreachable

        if not self.until_end or self.to_commit:
            return False
        try:
            attributes = self._bounded.attributes()
        except (Unreachable, ServerError):
            return False  # the watch itself finds out whether this lasts
        return attributes.get("meta.state") == "End" and attributes.get("stream.length") == "0"

    def _take(self, frame: Frame) -> None:
        """The frame is shown, and committed or asked about as the policy says."""
        if self.watcher.epoch != self.epoch:
            # What came on the last connection went back to the group, and may be in other hands by now.
            self.epoch = self.watcher.epoch
            self.open.clear()
            self.left.clear()
        if frame.index in self.done or frame.index in self.to_commit:
            self.to_commit[frame.index] = (
                None  # its commit was lost: it is repeated, and nobody is asked twice
            )
            return
        self.open[frame.index] = None
        if self.each is not None:
            self._run_command(self.each, frame)
            return
        if self.to_commit and self.app.printer.would_wait(len(frame.data)):
            self._try_commit()
        if self.policy == OUTPUT and not self.app.printer.shows_whole(frame.data):
            from easq.errors import UsageError

            raise UsageError(
                f"item {frame.index} cannot be shown in full, and is not committed",
                hint="use -o json, or redirect the output",
            )
        self.app.printer.frame(self.shown, frame)
        self.app.printer.flush()
        self.worked_at = time.monotonic()  # a reader of the output may be slow
        self.shown += 1
        if self.policy == ASK:
            self._ask(frame.index)
        elif self.policy == OUTPUT:
            self.to_commit[frame.index] = None
            if len(self.to_commit) >= min(self.window, _MAX_BATCH):
                self._try_commit()

    def _run_command(self, each: Each, frame: Frame) -> None:
        """The item is committed, negatived or left, as the command ended; what came meanwhile is raised after that."""
        from easq.cli.each import NEGATIVE
        from easq.protocol.operations import BUSY

        try:
            result = each.run(frame)
        finally:
            self.worked_at = time.monotonic()
        if not result.was_cut_off:
            each.tell(self.shown, frame, result)
            self.shown += 1
            if result.is_done:
                self.to_commit[frame.index] = None
                self._try_commit()  # at once: the next command may take long
            elif each.on_fail == NEGATIVE:
                code = BUSY if result.is_busy and self._knows_busy() else result.code
                self._try_negative(frame.index, code, result.reason)
            else:
                self.left[frame.index] = None
                each.check(result, len(self.left), self.window)
        if result.interrupt is not None:
            raise result.interrupt

    def _knows_busy(self) -> bool:
        """Whether the service supports the code Busy, with which an item waits without a failure."""
        from easq.errors import EasqError
        from easq.protocol.replies import BUSY_FEATURE

        try:
            return BUSY_FEATURE in self._bounded.describe().features
        except EasqError:
            return False

    def _try_negative(self, index: int, code: str, reason: str) -> None:
        """The item has failed once more; where the server cannot be told, the lost connection counts as that."""
        from easq.errors import ServerError, Unreachable

        if self.watcher.epoch != self.epoch:
            return
        try:
            self._bounded.negative([index], code=code, reason=reason)
            self.open.pop(index, None)
        except (Unreachable, ServerError) as error:
            self.app.printer.notice(f"a failure was not told: {error.message}")

    def _ask(self, index: int) -> None:
        """The item is committed, negatived, or with two times no left pending until the watch ends."""
        if self._answer(f"commit: {index} ?"):
            self.to_commit[index] = None
            self._try_commit()
        elif self._answer(f"negative: {index} ?"):
            self._bounded.negative([index])
            self.open.pop(index, None)

    def _answer(self, question: str) -> bool:
        try:
            return self.app.ask(question, default=True)
        finally:
            self.worked_at = time.monotonic()

    def _try_commit(self) -> None:
        """What is to be committed is; while the server cannot do it, it stays to be committed."""
        from easq.errors import ServerError, Unreachable

        try:
            self._commit()
        except (Unreachable, ServerError) as error:
            self.app.printer.notice(f"{len(self.to_commit)} not committed yet: {error.message}")

    def _commit(self) -> None:
        if not self.to_commit:
            return
        indexes = list(self.to_commit)
        self._bounded.commit(indexes)
        for index in indexes:
            self.committed += index not in self.done
            del self.to_commit[index]
            self.open.pop(index, None)
            self.done[index] = None
        while len(self.done) > _MAX_REMEMBERED:
            del self.done[next(iter(self.done))]

    def _leave(self) -> None:
        """What was written is committed and the rest is handed back, as far as the server lets us.

        An interrupt meanwhile leaves at once: the lost connection gives the rest back.
        """
        from easq.errors import EasqError

        try:
            self._commit()
            self._hand_back()
        except EasqError as error:
            self.app.printer.notice(f"left without handing back: {error.message}")
        except KeyboardInterrupt:
            self.watcher.abort()
            raise

    def _hand_back(self) -> None:
        """What was pushed to us and is not committed is the group's again, without counting as a failure.

        This comes before the close: after it an index may be in other hands, where a negative would take it.
        """
        from easq.errors import EasqError
        from easq.protocol.operations import SHUTDOWN

        if self.auto_commit:
            return
        try:
            while len(self.open) < _MAX_HELD and (frame := self.watcher.next(0.0)) is not None:
                self.open[frame.index] = None
        except EasqError:
            return  # the connection is gone, and with it all that was in hand
        indexes = [index for index in self.open if index not in self.done]
        if indexes:
            self._bounded.negative(indexes, code=SHUTDOWN, reason="the watch ended")
        self.open.clear()
