"""Kills a start that migrates a data file, before each of its steps in turn, and then starts again on what is left.

`python -m tests.storage.sqlite.killed_migration FOLDER [sql]` prints how many steps there were. Steps are the calls
that open, rename, remove or sync a file, and with `sql` each statement too. A process of its own, as it forks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from easq.storage.sqlite.engine import SqliteStorage
from tests.storage.sqlite.layout1 import contents, write_layout_1

KILLED = -signal.SIGKILL


def start(path: Path, killed_at: int = 0, *, with_sql: bool = False) -> None:
    """A service starts on the file, and ends, or is killed at that step."""
    if killed_at:
        kill_at(killed_at, with_sql=with_sql)

    async def main() -> None:
        storage = SqliteStorage(path)
        await storage.start(lambda _: None)
        await storage.close()

    asyncio.run(main())


def kill_at(step: int, *, with_sql: bool) -> None:
    """This process is gone before its call number `step` of those that matter."""
    calls = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **options)

        return call

    for name in ("rename", "unlink", "fsync", "open"):
        setattr(os, name, counted(getattr(os, name)))
    if not with_sql:
        return

    class Connection(sqlite3.Connection):
        execute = counted(sqlite3.Connection.execute)
        executescript = counted(sqlite3.Connection.executescript)
        close = counted(sqlite3.Connection.close)

    connect = sqlite3.connect
    sqlite3.connect = lambda *given, **options: connect(*given, factory=Connection, **options)  # type: ignore[assignment, misc]


def fork(work: Callable[[], None]) -> int:
    """Return the process id of a fork that does the work; its exit code is 1 when that raised."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def run(work: Callable[[], None]) -> int:
    """Return the exit code of a fork that does the work."""
    return os.waitstatus_to_exitcode(os.waitpid(fork(work), 0)[1])


def main(folder: Path, *, with_sql: bool) -> int:
    """How many steps a migration has; none of them is one at which a kill loses anything."""
    original = folder / "original"
    original.mkdir()
    write_layout_1(original / "easq.db")
    shutil.copytree(original, folder / "whole")
    expected = contents(folder / "whole" / "easq.db")
    os.fsync = lambda _: None  # a kill loses nothing of what was written
    step, code = 0, KILLED
    while code == KILLED:
        step += 1
        data = folder / f"step-{step}"
        shutil.copytree(original, data)

        code = run(partial(start, data / "easq.db", step, with_sql=with_sql))
        assert code in {0, KILLED}, step
        assert run(partial(start, data / "easq.db")) == 0, step
        assert contents(data / "easq.db") == expected, step
        assert contents(data / "easq.db.v1") == expected, step
        assert not (data / "easq.db.new").exists(), step
        shutil.rmtree(data)
    return step - 1


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), with_sql="sql" in sys.argv[2:]))
