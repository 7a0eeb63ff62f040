"""Bugs planted in the engines, which the reference has to detect. Bugs of the rules are planted in the simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from easq.model import Frame
from easq.storage.base import Selection
from easq.storage.embedded import EmbeddedStorage
from easq.storage.engine import Settle
from easq.storage.memory import MemoryStorage
from easq.storage.rules.changes import Change, Keyed, Removed
from easq.storage.sqlite.engine import SqliteStorage
from easq.storage.sqlite.rows import RowWriter
from tests.simulation import planted as rules


def deleted_before_the_response(patch: pytest.MonkeyPatch) -> None:
    """A get with auto-delete removes its items before the answer is written."""
    original = EmbeddedStorage.take

    async def take(self: EmbeddedStorage, stream: str, selection: Selection, **options: Any) -> list[Frame]:
        frames = await original(self, stream, selection, **options)
        await self.delete(stream, [frame.index for frame in frames])
        return frames

    patch.setattr(EmbeddedStorage, "take", take)


def key_dropped_at_consumption(patch: pytest.MonkeyPatch) -> None:
    """An idempotency key is remembered as long as its item is there."""
    in_memory, in_file = MemoryStorage.submit, RowWriter.record

    def submit(self: MemoryStorage, changes: Sequence[Change], settle: Settle | None = None) -> object:
        for change in changes:
            if isinstance(change, Removed):
                keys = self._keys[change.stream]
                for key in [key for key, known in keys.items() if known.index in change.indexes]:
                    del keys[key]
        return in_memory(self, changes, settle)

    def record(self: RowWriter, change: Change) -> None:
        in_file(self, change)
        for index in change.indexes if isinstance(change, Removed) else ():
            statement = "DELETE FROM idempotency WHERE stream = ? AND item = ?"
            self._connection.execute(statement, (self._ids[change.stream], index))

    patch.setattr(MemoryStorage, "submit", submit)
    patch.setattr(RowWriter, "record", record)


def keys_are_not_stored(patch: pytest.MonkeyPatch) -> None:
    """Idempotency keys are lost at the next start."""
    original = SqliteStorage.recall

    def recall(self: SqliteStorage, stream: str, key: str) -> Keyed | None:
        known = original(self, stream, key)
        return known if known is not None and known.index > self.first_index[stream] else None

    restore = SqliteStorage._restore

    def remember(self: SqliteStorage, stream: str, dead_letters: object) -> None:
        restore(self, stream, dead_letters)
        self.__dict__.setdefault("first_index", {})[stream] = self._rules[stream].entries.last

    patch.setattr(SqliteStorage, "recall", recall)
    patch.setattr(SqliteStorage, "_restore", remember)


BUGS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    bug.__name__: bug
    for bug in (
        deleted_before_the_response,
        key_dropped_at_consumption,
        keys_are_not_stored,
        rules.takeover_forgets_what_is_out,
        rules.redelivery_loses_priority,
        rules.truncate_takes_one_more,
        rules.lost_connection_keeps_what_is_out,
        rules.groups_hold_what_they_do_not_want,
        rules.absent_groups_hold_nothing,
        rules.what_a_filter_held_stays,
        rules.forgotten_groups_come_back,
        rules.a_process_that_is_back_has_failed,
        rules.what_failed_comes_to_the_same,
    )
}
#: these show after a restart only (the simulation has more of them)
AFTER_A_RESTART = {"keys_are_not_stored", "forgotten_groups_come_back"}
