"""easq watch: subscribe to a queue, show its items, and commit them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import ASK, NONE, OUTPUT, as_tags, stream_options, tags_option, transport_option
from easq.cli.param_types import DURATION, INDEX_OR_NEWEST, WholeNumber

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.item_command import ItemCommand
    from easq.protocol.operations import Watch


@command(
    "watch",
    examples=(
        "easq watch",
        "easq watch -k --commit output -o json | jq .data",
        "easq watch -n 5 --commit output --timeout 1m --tags run=7",
        "easq watch --on-fail stop -- sh -c 'cat > $EASQ_INDEX.png'",
    ),
)
@click.option(
    "--index",
    type=INDEX_OR_NEWEST,
    default="0",
    help="Start at this index, at 0 (the head) or at newest.  [default: 0]",
)
@click.option(
    "--window",
    type=WholeNumber(1, 10_000),
    default=10,
    help="Maximum number of uncommitted items, 1 to 10000.  [default: 10]",
)
@click.option("--index-only", is_flag=True, help="Receive indexes and tags without payloads.")
@click.option(
    "--auto-commit",
    is_flag=True,
    help="Let the server commit each item when it sends it. An item that is not printed is then lost.",
)
@click.option(
    "--commit",
    "policy",
    type=click.Choice((ASK, OUTPUT, NONE)),
    help="Commit after a question (ask), after the item is written (output), or never (none).  "
    "[default: ask, on a terminal]",
)
@tags_option("Only items with this tag; can be repeated. Use the same tags in the whole group.")
@transport_option
@click.option(
    "-n", "count", type=WholeNumber(1), help="Stop after this number of items.  [default: unlimited]"
)
@click.option("--until-end", is_flag=True, help="Exit with 0 when the stream ends.")
@click.option(
    "--idle-timeout",
    type=DURATION,
    help="Stop when no item came for this long, such as 30s.  [default: never]",
)
@click.option("--timeout", type=DURATION, help="Stop after this long, such as 10m.  [default: never]")
@click.option("--allow-empty", is_flag=True, help="Exit with 0 instead of 3 if fewer than -n items came.")
@click.option(
    "--on-fail",
    type=click.Choice(("negative", "leave", "stop")),
    help="If CMD fails, deliver the item again (negative), leave it pending, or stop.  [default: negative]",
)
@click.option(
    "--max-attempts",
    type=WholeNumber(1),
    help="Maximum runs of CMD for an item until it counts as failed.  [default: 1]",
)
@click.option("--grace", type=DURATION, help="Time for CMD to finish after a signal.  [default: 5s]")
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
    """Subscribe to the queue and commit items.

    On a terminal, watch asks after each item whether to commit it. Elsewhere, choose --auto-commit, --commit output,
    --commit none or -- CMD.

    CMD runs once per item, one at a time and without a shell. It reads the payload from standard input, and
    EASQ_INDEX, EASQ_REQUEST_ID, EASQ_ATTEMPT and EASQ_TAGS_JSON from its environment. Its output is printed. Exit
    code 0 commits the item; --on-fail says what happens otherwise.

    When the watch ends, items that are not committed return to the queue. A program that stops reading the output
    early can miss items that are already committed; limit the number of items with -n.
    """
    from easq.cli.item_command import item_command
    from easq.cli.watch_run import WatchRun
    from easq.errors import NoData, StreamEnded, UsageError
    from easq.net.retry import OVERTIME_S
    from easq.protocol.operations import Watch

    runner = item_command(app, cmd, on_fail, max_attempts, grace)
    if runner is not None and (auto_commit or policy is not None):
        raise UsageError(
            "with -- CMD its exit status decides the commit: leave out --commit and --auto-commit"
        )
    if runner is None:
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
    _announce(app, operation, runner)
    shown = 0
    try:
        with connecting.watcher(operation, on_notice=app.printer.notice) as watcher:
            run = WatchRun(app, client, watcher, policy, window, auto_commit, until_end, end_at, runner)
            shown = run.run(count=count, idle_s=idle_timeout)
    except StreamEnded as error:  # during the watch, or before it began
        if not until_end:
            error.hint = error.hint or "with --until-end this is a good end"
            raise
    if count is not None and shown < count and not allow_empty:
        raise NoData(f"{shown} of {count} items came")


def choose_policy(app: App, policy: str | None, *, auto_commit: bool, window: int, count: int | None) -> str:
    """Return the commit policy. Raises UsageError if none is given and it cannot be asked, or if it cannot work."""
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


def _announce(app: App, operation: Watch, runner: ItemCommand | None) -> None:
    app.printer.info(
        f"Start to watch: index: {operation.index}, indexOnly: {str(operation.index_only).lower()}, "
        f"autoCommit: {str(operation.auto_commit).lower()}, window: {operation.window}"
    )
    if app.output == "table":
        from easq.cli.item_command import COLUMNS
        from easq.render.rows import FRAME_COLUMNS

        app.printer.header(FRAME_COLUMNS if runner is None else COLUMNS)
