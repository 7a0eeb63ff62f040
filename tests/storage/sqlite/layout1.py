"""Data files as the first layout had them (`layout1.sql`), and all that one holds, in the terms of either layout."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

#: layout -> bits of an item's id that hold its index
BITS = {1: 53, 2: 42}


def request_id(index: int) -> str:
    """Return a request id in no order, as real ones are."""
    return f"{index * 0x9E3779B97F4A7C15 % 2**64:016x}-{index:08x}"


def write_layout_1(path: Path, *, items: int = 40, size: int = 300, big: int = 200_000) -> None:
    """Write a file with the queue `q` of `items` items and one of `big` bytes, its sink, their rear stores and what
    three groups and two clients left there. The last of it is in the log only, as after a kill.
    """
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None)
    execute, many = connection.execute, connection.executemany
    execute("PRAGMA journal_mode = WAL")
    execute("PRAGMA wal_autocheckpoint = 0")
    schema = Path(__file__).with_name("layout1.sql").read_text(encoding="utf-8")
    connection.executescript(f"BEGIN; {schema} COMMIT;")
    execute("PRAGMA application_id = 0x65617371")
    execute("PRAGMA user_version = 1")
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
    insert = "INSERT INTO item VALUES (?, ?, ?, ?, ?, ?, ?)"
    many(insert, rows)
    many(
        insert,
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
    log = Path(f"{path}-wal").read_bytes()
    content = path.read_bytes()
    connection.close()
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(log)


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All that the file of either layout holds, by stream and index, and that its indexes are sound."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (layout,) = connection.execute("PRAGMA user_version").fetchone()
        bits = BITS[layout]
        place = f"{{0}} >> {bits}, {{0}} & {(1 << bits) - 1}"
        columns = {
            "stream": "id, name, last, ended",
            "item": f"{place.format('id')}, stream, priority, size, request_id, tags, data",
            "consumer_group": "stream, name",
            "committed": f"{place.format('item')}, name, given_up",
            "touched": f"{place.format('item')}, name, deliveries, failures, code, reason",
            "idempotency": "stream, key, number, item, request_id, digest",
        }
        found = {
            table: connection.execute(f"SELECT {wanted} FROM {table} ORDER BY 1, 2").fetchall()
            for table, wanted in columns.items()
        }
        requests = "SELECT count(*) FROM item INDEXED BY item_request"
        assert connection.execute(requests).fetchone() == (len(found["item"]),)
        return found
    finally:
        connection.close()
