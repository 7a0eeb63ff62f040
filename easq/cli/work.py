"""easq work: process the items of a queue with a model."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.options import transport_option
from easq.cli.param_types import DURATION, WholeNumber

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.work_run import Events
    from easq.models.base import BlockingModel, Model


@command(
    "work",
    examples=(
        "easq work --forward http://127.0.0.1:8501/",
        "easq work --window 2 --item-timeout 5m -- python predict.py",
        "easq work --forward http://127.0.0.1:8501/ -o json | jq -c 'select(.outcome == \"failed\")'",
    ),
)
@click.option(
    "--window",
    type=WholeNumber(1, 10_000),
    default=5,
    show_default=True,
    help="Maximum number of uncommitted items, 1 to 10000.",
)
@click.option(
    "--jobs",
    type=WholeNumber(1, 10_000),
    help="Maximum number of concurrent model calls, 1 to 10000.  [default: as --window]",
)
@click.option(
    "--item-timeout", type=DURATION, default="60s", show_default=True, help="Maximum time of one model call."
)
@click.option(
    "--grace",
    type=DURATION,
    default="5s",
    show_default=True,
    help="Time for running calls to finish after a signal.",
)
@click.option(
    "--busy-limit",
    type=DURATION,
    default="10m",
    show_default=True,
    help="Maximum time an item waits in the worker for a busy model before it fails; 0 is no limit.",
)
@transport_option
@click.option("--forward", metavar="URL", help="Send each item to this URL with POST.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def work(
    app: App,
    window: int,
    jobs: int | None,
    item_timeout: float,
    grace: float,
    busy_limit: float,
    transport: str,
    forward: str | None,
    cmd: tuple[str, ...],
) -> None:
    """Run a worker: process items and write results to the sink.

    For each item, the worker calls the model, puts the answer into the sink and commits the item. The model is a
    service (--forward URL) or a command (-- CMD). CMD reads the item from standard input and writes the answer to
    standard output. EASQ_INDEX, EASQ_REQUEST_ID, EASQ_ATTEMPT and EASQ_TAGS_JSON are in its environment.

    An item on which the model fails is delivered again. When the service gives an item up, it puts a result with
    the tag lastCode into the sink.

    The consumer group is the queue's name and the user is HOST-PID, unless --group and --user are given. After SIGTERM
    or Ctrl-C, running calls finish, and the exit code is 0 or 130; a second signal stops the worker at once.
    """
    from easq.cli.work_run import WorkRun
    from easq.errors import UsageError
    from easq.worker.worker import Worker

    if jobs is not None and jobs > window:
        raise UsageError(
            f"--jobs {jobs} is above --window {window}: the worker never has more items than the window"
        )
    if not item_timeout:
        raise UsageError("--item-timeout 0s leaves no time for a call")
    # no SimpleQueue: a signal at the end of its timeout makes it wait for ever (CPython 3.11)
    events: Events = queue.Queue()
    input = app.queue(sink=False)
    worker = Worker(
        input,
        _model(forward, cmd),
        sink=app.queue(sink=True),
        group=app.options.get("group") or "",
        user=app.options.get("user") or "",
        window=window,
        jobs=jobs,
        item_timeout_s=item_timeout,
        upgrade=transport == "ws",
        grace_s=grace,
        busy_limit_s=busy_limit,
        on_outcome=events.put,
        on_notice=events.put,
        unread=events.qsize,
    )
    WorkRun(app, worker, input, events).run()


def _model(forward: str | None, cmd: Sequence[str]) -> Model | BlockingModel:
    """Return the model that the command line names. Raises UsageError for none or two."""
    from easq.errors import UsageError
    from easq.models.command import Exec
    from easq.models.http import Http

    if forward is not None and cmd:
        raise UsageError("--forward and -- CMD exclude each other")
    if forward is not None:
        return Http(forward)
    if not cmd:
        raise UsageError("no model", hint="--forward URL, or -- CMD ARG...")
    return Exec(cmd)
