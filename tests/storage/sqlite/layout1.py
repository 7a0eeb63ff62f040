"""Data files as the first layout had them (`layout1.sql`), and all that one holds, in the terms of either layout."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

#: layout -> bits of an item's id that hold its index
BITS = {1: 53, 2: 42}
_INSERT = "INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)"


def request_id(index: int) -> str:
    """Return a request id in no order, as real ones are."""
    return f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}-{index:08x}"


def write_layout_1(path: Path, *, items: int = 40, size: int = 300, big: int = 200_000) -> None:
    """Write a file with the queue `q` of `items` items and one of `big` bytes, its sink, their rear stores and what
    three groups and two clients left there. The last of it is in the log only, as after a kill.
    """
    connection = _make(path)
    execute, many = connection.execute, connection.executemany
    execute("BEGIN")
    names = ("q/sink/rear", "q/sink", "q/rear", "q")
    many(
        "INSERT INTO stream (id, name, last, ended) VALUES (?, ?, ?, ?)",
        [(4 + n, name, items + 10, n == 1) for n, name in enumerate(names)],
    )
    rows = (
        (
            7 << 53 | index,
            7,
            index % 3,
            size,
            request_id(index),
            f'{{"requestId":"{request_id(index)}","n":"é"}}',
            b"%d " % index + bytes(size),
        )
        for index in range(1, items + 1)
        if index % 5
    )
    many(_INSERT, rows)
    many(
        _INSERT,
        [
            (stream << 53 | 9, stream, 0, big, "one", '{"requestId":"one"}', bytes([stream]) * big)
            for stream in (4, 5, 6)
        ],
    )
    many("INSERT INTO consumer_group VALUES (7, ?)", [("one",), ("three",), ("two",)])
    many(
        "INSERT INTO committed VALUES (?, ?, ?)",
        [(7 << 53 | 1, "one", 0), (7 << 53 | 2, "one", 1), (7 << 53 | 2, "two", 0)],
    )
    many(
        "INSERT INTO touched VALUES (?, ?, ?, ?, ?, ?)",
        [(7 << 53 | 3, "one", 2, 1, "x", "why"), (5 << 53 | 9, "z", 7, 3, "", "")],
    )
    many(
        "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
        [(stream, f"key-{n}", n, n, f"r-{n}", b"digest") for stream in (5, 7) for n in range(1, 20)],
    )
    execute("COMMIT")
    _leave(connection, path)


#: queues of a large file; `q` has most of the items
QUEUES = ("q", "r")


def write_large_layout_1(path: Path, items: int) -> None:
    """Write a file with two queues, their sinks and rear stores, and `items` items with tags, most of up to 400 bytes.

    Groups have committed some of them, and were delivered others. 2 % of the items, removals and the last indexes are
    in the log only, as after a kill.
    """
    names = [f"{queue}{part}" for queue in QUEUES for part in ("", "#rear", "/sink", "/sink#rear")]
    counts = dict.fromkeys(names, 0) | {"q/sink": items // 5, "r": items // 6, "q#rear": items // 33}
    counts["q"] = items - sum(counts.values())
    removed = 1 + items // 1000
    connection = _make(path)
    execute, many = connection.execute, connection.executemany
    execute("PRAGMA cache_size = -256000")
    execute("BEGIN")
    for number, name in enumerate(names, start=3):
        execute(
            "INSERT INTO stream (id, name, last, ended) VALUES (?, ?, ?, ?)",
            (number, name, counts[name] + removed, name == "r/sink"),
        )
        base, early = number << 53, counts[name] - counts[name] // 50
        many(_INSERT, (_large_row(number, index) for index in range(1, early + 1)))
        many(_INSERT, (_large_row(number, counts[name] + index) for index in range(1, removed + 1)))
        if name not in QUEUES:
            continue
        indexes = range(1, counts[name] + 1)
        many(
            "INSERT INTO consumer_group VALUES (?, ?)", [(number, group) for group in ("one", "three", "two")]
        )
        for group, step, given_up in (("one", 20, 0), ("two", 30, 1)):
            many(
                "INSERT INTO committed VALUES (?, ?, ?)",
                ((base | index, group, given_up) for index in indexes[::step]),
            )
        many(
            "INSERT INTO touched VALUES (?, 'three', ?, ?, ?, ?)",
            ((base | index, 1 + index % 9, index % 4, "500", f"why {index}") for index in indexes[::50]),
        )
        many(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?, ?, ?)",
            ((number, f"key-{index}", index, index, request_id(index), b"digest") for index in indexes[::10]),
        )
    execute("COMMIT")
    execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    execute("BEGIN")
    for number, name in enumerate(names, start=3):
        late = range(counts[name] - counts[name] // 50 + 1, counts[name] + 1)
        many(_INSERT, (_large_row(number, index) for index in late))
        execute("DELETE FROM item WHERE stream = ? AND id & ? > ?", (number, (1 << 53) - 1, counts[name]))
    execute("UPDATE stream SET last = last + 10")
    execute("DELETE FROM committed WHERE item % 1000 = 1")
    execute("COMMIT")
    _leave(connection, path)


def _large_row(stream: int, index: int) -> tuple[Any, ...]:
    request = request_id(index)
    size = 200_000 if index % 10_000 == 1 else index % 400
    data = (request.encode() * (size // len(request) + 1))[:size]
    tags = f'{{"requestId":"{request}","user":"{index % 7}","n":"é"}}'
    return (stream << 53 | index, stream, index % 3, size, request, tags, data)


def _make(path: Path) -> sqlite3.Connection:
    """Make an empty file of layout 1, of which nothing leaves the log by itself."""
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    schema = Path(__file__).with_name("layout1.sql").read_text(encoding="utf-8")
    connection.executescript(f"BEGIN; {schema} COMMIT;")
    connection.execute("PRAGMA application_id = 0x65617371")
    connection.execute("PRAGMA user_version = 1")
    return connection


def _leave(connection: sqlite3.Connection, path: Path) -> None:
    """Close `connection` and leave the file and its log as a kill would."""
    files = (path, Path(f"{path}-wal"))
    for file in files:
        shutil.copyfile(file, f"{file}.left")
    connection.close()
    for file in files:
        Path(f"{file}.left").replace(file)
        file.chmod(0o600)


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return all that the file of either layout holds, by stream and index; its indexes are sound."""
    with closing(sqlite3.connect(path)) as connection:
        found = {table: rows.fetchall() for table, rows in _tables(connection)}
        _check(connection, len(found["item"]))
        return found


def digest(path: Path) -> str:
    """Return a SHA-256 over what `contents` returns, for files that are larger than memory."""
    sha = hashlib.sha256()
    items = 0
    with closing(sqlite3.connect(path)) as connection:
        for table, rows in _tables(connection):
            sha.update(table.encode())
            while some := rows.fetchmany(1000):
                sha.update(repr(some).encode())
                items += len(some) if table == "item" else 0
        _check(connection, items)
    return sha.hexdigest()


def _tables(connection: sqlite3.Connection) -> Iterator[tuple[str, sqlite3.Cursor]]:
    (layout,) = connection.execute("PRAGMA user_version").fetchone()
    bits = BITS[layout]
    place = f"{{0}} >> {bits}, {{0}} & {(1 << bits) - 1}"
    for table, columns, order in (
        ("stream", "id, name, last, ended", "id"),
        ("item", f"{place.format('id')}, stream, priority, size, request_id, tags, data", "id"),
        ("consumer_group", "stream, name", "stream, name"),
        ("committed", f"{place.format('item')}, name, given_up", "item, name"),
        ("touched", f"{place.format('item')}, name, deliveries, failures, code, reason", "item, name"),
        ("idempotency", "stream, key, number, item, request_id, digest", "stream, key"),
    ):
        yield table, connection.execute(f"SELECT {columns} FROM {table} ORDER BY {order}")


def _check(connection: sqlite3.Connection, items: int) -> None:
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    requests = "SELECT count(*) FROM item INDEXED BY item_request"
    assert connection.execute(requests).fetchone() == (items,)
