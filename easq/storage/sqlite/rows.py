"""Writes changes as rows of the data file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping

from easq.storage.rules.changes import (
    Change,
    Committed,
    DeliveryRecorded,
    Ended,
    GroupChanged,
    Keyed,
    KeysForgotten,
    Removed,
    Stored,
    Truncated,
)
from easq.storage.rules.entries import INDEX_BITS

#: a batch with more bytes of payload is written in the thread
INLINE_BYTES = 128 * 1024
#: bytes of payload that take as long to write as a removed or changed row: 10 us, three statements
_ROW_BYTES = 128
#: Entries go in many at a time: after each step of a statement the writer waits for the interpreter's lock, 5 ms when
#: the event loop is busy (measured: a third of all puts a second). SQLite takes 32,766 values, before 3.32 999.
_INTO_ITEM = "INSERT INTO item (id, stream, priority, size, request_id, tags, data) VALUES"
_INSERTS = [(many, f"{_INTO_ITEM} {', '.join(['(?, ?, ?, ?, ?, ?, ?)'] * many)}") for many in (128, 32, 8, 1)]
_INSERT_TIMED = (
    "INSERT INTO item (id, stream, priority, size, request_id, tags, data, due_ms, expires_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET_ONE = (
    "DELETE FROM item WHERE id = ?",
    "DELETE FROM committed WHERE item = ?",
    "DELETE FROM touched WHERE item = ?",
)
_FORGET_RANGE = (
    "DELETE FROM item WHERE id >= ? AND id < ?",
    "DELETE FROM committed WHERE item >= ? AND item < ?",
    "DELETE FROM touched WHERE item >= ? AND item < ?",
)

#: encodes a text, in half of the time that an encoder takes for a whole object
_encode = json.JSONEncoder(ensure_ascii=False).encode


class RowWriter:
    """Writes changes inside the transaction that is open on the connection.

    `ids` has the number of each stream, which is part of the ids of its rows.
    """

    def __init__(self, connection: sqlite3.Connection, ids: Mapping[str, int]) -> None:
        self._connection = connection
        self._ids = ids

    def store(self, stored: list[Stored]) -> None:
        """Insert the items, and raise the highest indexes of their streams."""
        last: dict[int, int] = {}
        rows = []
        timed = []
        for change in stored:
            number, frame = self._ids[change.stream], change.frame
            last[number] = frame.index
            row = (
                number << INDEX_BITS | frame.index,
                number,
                change.priority,
                len(frame.data),
                frame.request_id,
                f"{{{','.join([f'{_encode(key)}:{_encode(value)}' for key, value in frame.tags.items()])}}}",
                frame.data,
            )
            if change.due_ms is None and change.expires_ms is None:
                rows.append(row)
            else:
                timed.append((*row, change.due_ms, change.expires_ms))
        for many, statement in _INSERTS:
            while len(rows) >= many:
                self._connection.execute(statement, [value for row in rows[:many] for value in row])
                del rows[:many]
        if timed:
            self._connection.executemany(_INSERT_TIMED, timed)
        self._connection.executemany(
            "UPDATE stream SET last = max(last, ?) WHERE id = ?",
            [(index, number) for number, index in last.items()],
        )

    def record(self, change: Change) -> None:
        """Write a change other than `Stored`."""
        execute, number = self._connection.execute, self._ids[change.stream]
        base = number << INDEX_BITS
        match change:
            case Removed():
                entries = [(base | index,) for index in change.indexes]
                for statement in _FORGET_ONE:
                    self._connection.executemany(statement, entries)
            case Truncated():
                for statement in _FORGET_RANGE:
                    execute(statement, (base, base + change.below))
            case Committed():
                row = (base | change.index, change.group, change.given_up)
                execute("INSERT OR REPLACE INTO committed VALUES (?, ?, ?)", row)
            case DeliveryRecorded():
                execute(
                    "INSERT OR REPLACE INTO touched SELECT ?, ?, ?, ?, ?, ?, ?, ?"
                    " WHERE EXISTS (SELECT 1 FROM item WHERE id = ?)",
                    (
                        base | change.index,
                        change.group,
                        change.record.deliveries,
                        change.record.failures,
                        change.record.code,
                        change.record.reason,
                        change.record.losses,
                        change.record.busy_ms,
                        base | change.index,
                    ),
                )
            case Keyed():
                key_row = (number, change.key, change.number, change.index, change.request_id, change.digest)
                execute("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?, ?)", key_row)
            case KeysForgotten():
                execute("DELETE FROM idempotency WHERE stream = ? AND number < ?", (number, change.below))
            case GroupChanged(is_stored=True):
                known = (number, change.group, change.filter, change.left_ms)
                execute("INSERT OR REPLACE INTO consumer_group VALUES (?, ?, ?, ?)", known)
            case GroupChanged():
                execute("DELETE FROM consumer_group WHERE stream = ? AND name = ?", (number, change.group))
            case Ended():
                execute("UPDATE stream SET ended = ? WHERE id = ?", (change.ended, number))
            case _:
                raise AssertionError(change)


def weight(change: Change) -> int:
    """Return how many bytes of payload take as long to write as the change; 0 for `Stored`, whose payload counts."""
    match change:
        case Truncated():
            return INLINE_BYTES + 1
        case Removed():
            return _ROW_BYTES * len(change.indexes)
        case Stored():
            return 0
    return _ROW_BYTES
