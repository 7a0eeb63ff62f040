"""Copies what a data file of layout 1 holds into a new one of the present layout."""

from __future__ import annotations

import logging
import sqlite3
import time
from pathlib import Path

from easq.errors import StorageError
from easq.storage.entries import INDEX_BITS

log = logging.getLogger(__name__)

#: an id of layout 1 had the index in so many bits, and ten for the stream
_OLD_BITS = 53
#: a signal that ends the service is taken after each step: a step is as many items as take about so long
_STEP_S = 0.25
#: how far the copy is, is said so often
_SAY_S = 10.0
#: in the place of an id of layout 1, the id of this layout
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
    """Return how many bytes a copy of the open data file takes at most."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    # 5 % for the two bytes more an item has, and for the map of pages
    return int((pages - free) * size * 1.05) + (1 << 20)


def copy_layout_1(old: Path, connection: sqlite3.Connection) -> None:
    """Fill the new, empty data file behind `connection` with all that `old` holds.

    Nothing is synced, and no transaction can be rolled back: after an error the new file is of no use. `old` keeps all
    it holds, its log is copied back into it. Raises StorageError when another program has it open; sqlite3.Error.
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
            f"another program has {old} open, and its layout cannot be changed meanwhile",
            hint="end that program, then start again",
        ) from error
    (last,) = execute("SELECT coalesce(max(last), 0) FROM old.stream").fetchone()
    if last >> INDEX_BITS:
        raise StorageError(f"{old} has an item with the index {last}, and this layout ends at 2^{INDEX_BITS}")
    log.warning("%s: %d items are copied into a file of the new layout", old, count)
    indexes = execute("SELECT name, sql FROM main.sqlite_master WHERE type = 'index' AND tbl_name = 'item'")
    made_later = [(name, sql) for name, sql in indexes.fetchall() if sql]
    for name, _ in made_later:
        execute(f"DROP INDEX main.{name}")
    for statement in _REST:
        execute(statement)
    copied = _copy_items(old, connection, count)
    for _, sql in made_later:
        execute(sql)  # of 3,000,000 items at once: half the time of the whole copy
    if copied != count:
        raise StorageError(f"{old} is damaged: {copied} of {count} items can be read")


def _copy_items(old: Path, connection: sqlite3.Connection, count: int) -> int:
    """Return how many items were copied."""
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
            log.warning("%s: %d of %d items are copied", old, copied, count)
