"""`easq serve` with one bug in it, to show that the checks notice.

python -m tests.reliability.planted BUG serve ...
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Awaitable, Callable, Sequence

from easq.cli.main import main
from easq.storage import engine as storage_engine
from easq.storage.rules import consumers
from easq.storage.rules.changes import Change, Removed, Stored
from easq.storage.sqlite import engine, rows


def acknowledged_before_stored() -> None:
    """A put is answered when its index is allocated; changes are stored 50 ms later, in order."""
    original = engine.SqliteStorage.submit

    async def later(
        self: engine.SqliteStorage, changes: Sequence[Change], settle: storage_engine.Settle | None = None
    ) -> None:
        await asyncio.sleep(0.05)
        await original(self, changes, settle)

    def submit(
        self: engine.SqliteStorage, changes: Sequence[Change], settle: storage_engine.Settle | None = None
    ) -> Awaitable[None]:
        stored = asyncio.ensure_future(later(self, changes, settle))
        return asyncio.sleep(0) if any(isinstance(change, Stored) for change in changes) else stored

    engine.SqliteStorage.submit = submit


def last_index_forgotten() -> None:
    """Items are stored, but not the highest index of the stream."""

    class WithoutLast:
        def __init__(self, connection: object) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> object:
            return getattr(self._connection, name)

        def execute(self, statement: str, *values: object) -> object:
            return self._connection.execute(
                statement.replace("INSERT INTO", "INSERT OR REPLACE INTO"), *values
            )

        def executemany(self, statement: str, rows: object) -> None:
            if not statement.startswith("UPDATE stream SET last"):
                self._connection.executemany(statement, rows)

    original = rows.RowWriter.store

    def store(self: rows.RowWriter, stored: list[Stored]) -> None:
        connection = self._connection
        self._connection = WithoutLast(connection)
        try:
            original(self, stored)
        finally:
            self._connection = connection

    rows.RowWriter.store = store


def commits_forgotten() -> None:
    """Removals are not stored: the items are back after the next start."""
    original = rows.RowWriter.record

    def record(self: rows.RowWriter, change: Change) -> None:
        if not isinstance(change, Removed):
            original(self, change)

    rows.RowWriter.record = record


def window_one_too_large() -> None:
    """One item more than the window is delivered."""
    consumers.ConsumerSession.free = property(
        lambda self: 0 if self.stopped else self.window + 1 - len(self.pending)
    )


def files_end_at_4_mib() -> None:
    """Not a bug but a fault: writing beyond fails, which SQLite takes for an I/O error, as a failing disk is one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1024**2, 4 * 1024**2))


BUGS: dict[str, Callable[[], None]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        acknowledged_before_stored,
        last_index_forgotten,
        commits_forgotten,
        window_one_too_large,
        files_end_at_4_mib,
    )
}

if __name__ == "__main__":
    BUGS[sys.argv.pop(1)]()
    main()
