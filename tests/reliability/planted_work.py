"""`easq work` with one bug in it, or one that dies at a given point, to show that the checks notice.

python -m tests.reliability.planted_work BUG work ...
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from easq.cli.main import main
from easq.model import Frame
from easq.models.base import Answer
from easq.models.inference import Outcome
from easq.net.aio import Sender
from easq.worker import worker


def commits_before_it_puts() -> None:
    """The input is committed when the model has answered, before the result is put."""
    original = worker.Worker._store_answer

    async def store(
        self: worker.Worker, frame: Frame, answer: Answer, began: float, sender: Sender
    ) -> Outcome:
        await self._commit([frame.index], sender)
        return await original(self, frame, answer, began, sender)

    worker.Worker._store_answer = store


def forgets_the_key() -> None:
    """The result is put without an idempotency key; it dies before it commits."""
    original = worker.result_put
    worker.result_put = lambda *given: replace(original(*given), key="")
    dies_before_it_commits()


def _die_once() -> None:
    """Kill this process with SIGKILL, the first time that any process with this folder gets here."""
    try:
        Path("died").touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def dies_with_a_full_window() -> None:
    """After items came, before the model is called."""
    original = worker.Worker._work_on

    async def work_on(self: worker.Worker, *given: Any) -> None:
        _die_once()
        await original(self, *given)

    worker.Worker._work_on = work_on


def dies_before_it_puts() -> None:
    """The model has answered."""
    original = worker.Worker._put

    async def put(self: worker.Worker, *given: Any) -> None:
        _die_once()
        await original(self, *given)

    worker.Worker._put = put


def dies_before_it_commits() -> None:
    """The result is in the sink."""
    original = worker.Worker._commit

    async def commit(self: worker.Worker, *given: Any) -> None:
        _die_once()
        await original(self, *given)

    worker.Worker._commit = commit


def dies_after_it_committed() -> None:
    """Before it knows that it did."""
    original = worker.Worker._commit

    async def commit(self: worker.Worker, *given: Any) -> None:
        await original(self, *given)
        _die_once()

    worker.Worker._commit = commit


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        commits_before_it_puts,
        forgets_the_key,
        dies_with_a_full_window,
        dies_before_it_puts,
        dies_before_it_commits,
        dies_after_it_committed,
    )
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
