"""Copies a data file of layout 1 into a new one of the present layout."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from easq.errors import StorageError
from easq.storage.rules.entries import INDEX_BITS

log = logging.getLogger(__name__)

#: number of bits for the index in an id of layout 1; ten more bits are for the stream
_OLD_BITS = 53
#: duration of one step, in seconds: a signal that ends the service is handled between two steps
_STEP_S = 0.25
#: seconds between two lines of progress in the log
_SAY_S = 10.0
#: converts an id of layout 1 to this layout
_NEW_ID = f"(item >> {_OLD_BITS} << {INDEX_BITS}) | (item & {(1 << _OLD_BITS) - 1})"
_REST = (
    "INSERT INTO stream (id, name, last, ended) SELECT id, name, last, ended FROM old.stream",
    "INSERT INTO consumer_group (stream, name) SELECT stream, name FROM old.consumer_group",
    f"INSERT INTO committed (item, name, given_up) SELECT {_NEW_ID}, name, given_up FROM old.committed",
    "INSERT INTO idempotency (stream, key, number, item, request_id, digest)"
    " SELECT stream, key, number, item, request_id, digest FROM old.idempotency",
    "INSERT INTO touched (item, name, deliveries, failures, code, reason)"
    f" SELECT {_NEW_ID}, name, deliveries, failures, code, reason FROM old.touched",
)
_ITEMS = (
    "INSERT INTO item (id, stream, priority, size, request_id, tags, data)"
    f" SELECT {_NEW_ID.replace('item', 'id')}, stream, priority, size, request_id, tags, data"
    " FROM old.item WHERE id > ? ORDER BY id LIMIT ?"
)


def room_for_copy(connection: sqlite3.Connection) -> int:
    """Return the most bytes that a copy of the open data file takes."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    # 5 %: each item takes two bytes more, and there is a page map
    return int((pages - free) * size * 1.05) + (1 << 20)


def copy_layout_1(old: Path, connection: sqlite3.Connection) -> None:
    """Copy everything from `old` into the new, empty data file behind `connection`.

    Nothing is synced or rolled back: after an error the new file is useless. `old` keeps its content; its log is copied
    back into it. Raises StorageError when another program has it open or it is damaged, and sqlite3.Error.
    """
    execute = connection.execute
    execute("PRAGMA journal_mode = OFF").fetchall()
    execute("PRAGMA synchronous = OFF")
    execute("PRAGMA temp_store = MEMORY")
    execute("PRAGMA cache_size = -64000")
    execute("PRAGMA busy_timeout = 1000")
    execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()  # of `old` too, before its first use
    try:
        execute("ATTACH ? AS old", (f"{old.absolute().as_uri()}?mode=rw",))
        execute("PRAGMA old.wal_checkpoint(TRUNCATE)").fetchall()
        (count,) = execute("SELECT count(*) FROM old.item").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        raise StorageError(
            f"another program has {old} open, so it cannot be migrated",
            hint="end that program, then start again",
        ) from error
    (last,) = execute("SELECT coalesce(max(last), 0) FROM old.stream").fetchone()
    if last >> INDEX_BITS:
        raise StorageError(f"{old} has an item with the index {last}; the new layout ends at 2^{INDEX_BITS}")
    log.warning("%s: copying %d items into a file of the new layout", old, count)
    indexes = execute("SELECT name, sql FROM main.sqlite_master WHERE type = 'index' AND tbl_name = 'item'")
    made_later = [(name, sql) for name, sql in indexes.fetchall() if sql]
    for name, _ in made_later:
        execute(f"DROP INDEX main.{name}")
    for statement in _REST:
        execute(statement)
    copied = _copy_items(old, connection, count)
    for _, sql in made_later:
        execute(sql)  # built at the end: with 3,000,000 items this halves the time of the whole copy
    if copied != count:
        raise StorageError(f"{old} is damaged: {copied} of {count} items can be read")


def _copy_items(old: Path, connection: sqlite3.Connection, count: int) -> int:
    """Copy the items in steps, and return their number."""
    copied, last, length = 0, -1, 1000
    said_at = time.monotonic()
    while True:
        began_at = time.monotonic()
        step = connection.execute(_ITEMS, (last, length)).rowcount
        if not step:
            return copied
        copied += step
        (newest,) = connection.execute("SELECT max(id) FROM main.item").fetchone()
        last = newest >> INDEX_BITS << _OLD_BITS | newest & (1 << INDEX_BITS) - 1
        now = time.monotonic()
        length = max(10, int(length * min(4.0, _STEP_S / max(now - began_at, 1e-3))))
        if now - said_at >= _SAY_S:
            said_at = now
            log.warning("%s: copied %d of %d items", old, copied, count)
