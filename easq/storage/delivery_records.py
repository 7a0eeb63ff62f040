"""Stores changed delivery records together, after a short delay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from easq.storage.rules.changes import Change, DeliveryRecorded
from easq.storage.rules.stream import Stream

#: delivery records are stored at most this long after they changed, in seconds
_DELAY_S = 0.1


class DeliveryRecords:
    """The delivery records that have changed and are not stored yet, of all streams.

    `store` is called with the changes, `_DELAY_S` after the first of them.
    """

    def __init__(self, rules: Mapping[str, Stream], store: Callable[[Sequence[Change]], object]) -> None:
        self._rules = rules
        self._store = store
        self._changed: dict[tuple[str, int], set[str]] = {}  # (stream, index) -> groups
        self._timer: asyncio.TimerHandle | None = None

    def note(self, stream: str, group: str, index: int) -> None:
        """Note that the record of the item in the group has changed."""
        self._changed.setdefault((stream, index), set()).add(group)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self._flush)

    def forget(self, stream: str, indexes: Iterable[int]) -> None:
        """Forget the records of removed items."""
        for index in indexes:
            self._changed.pop((stream, index), None)

    def stop(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def take(self) -> list[Change]:
        """Return the changes to store, and forget them. Removed items have no record any more."""
        changes: list[Change] = []
        for (stream, index), groups in self._changed.items():
            for group in groups:
                record = self._rules[stream].record(group, index)
                if record is not None:
                    changes.append(DeliveryRecorded(stream, group, index, replace(record)))
        self._changed.clear()
        return changes

    def _flush(self) -> None:
        self._timer = None
        changes = self.take()
        if changes:
            self._store(changes)
