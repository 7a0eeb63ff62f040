"""A full disk, an emptied file, and a log that another program prevents from being truncated."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from easq.errors import QueueFull, StorageError
from easq.storage.sqlite import checkpoints, group_commit
from easq.storage.sqlite import engine as sqlite
from easq.storage.sqlite.engine import SqliteStorage
from tests.storage.conftest import Engine
from tests.support.disk import small_disk, use_up

ITEM = b"x" * 500_000
T = TypeVar("T")


def run(path: Path, body: Callable[[Engine, SqliteStorage], Awaitable[None]]) -> None:
    """Run the body with an engine on the file."""

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        try:
            await body(engine, engine.storage)
        finally:
            await engine.storage.close()
        assert engine.failures == []

    asyncio.run(main())


async def fill(engine: Engine) -> list[int]:
    """Put items until one is refused, even after the log was truncated; return the stored ones."""
    log = Path(f"{engine.url.removeprefix('sqlite:')}-wal")
    indexes: list[int] = []
    before = -1
    while len(indexes) > before:
        before = len(indexes)
        with contextlib.suppress(QueueFull):
            while True:
                indexes.append(await engine.put(ITEM, requestId="r"))
        await until(lambda: log.stat().st_size == 0)
    return indexes


async def put_again(engine: Engine) -> int:
    """Put an item, and repeat until it is accepted."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(QueueFull):
                return await engine.put(ITEM, requestId="r")
            await asyncio.sleep(0.05)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until it is."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.02)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Callable[[], Callable[[], None]]]:
    """Begins to read the data file, as a backup does; what it returns ends that."""
    connections: list[sqlite3.Connection] = []

    def begin() -> Callable[[], None]:
        connection = sqlite3.connect(tmp_path / "easq.db", isolation_level=None)
        connections.append(connection)
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM item").fetchone()
        return connection.close

    yield begin
    for connection in connections:
        connection.close()


# -- a full disk -------------------------------------------------------------------------------------------------------


def test_a_disk_that_the_queue_filled_has_room_again_once_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file stays as long as it is; its pages are free."""
    monkeypatch.setattr(group_commit, "IDLE_S", 0.1)

    async def body(engine: Engine, _: SqliteStorage) -> None:
        indexes = await fill(engine)
        assert len(indexes) > 30
        await engine.storage.truncate("q", indexes[-1] + 1)
        assert await put_again(engine) > indexes[-1]
        assert len(await fill(engine)) > 0.8 * len(indexes)

    with small_disk(tmp_path / "disk", 80) as disk:
        run(disk / "easq.db", body)


def test_a_full_queue_under_steady_deletes_takes_as_much_as_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For much more than the log can hold, without a pause in which it could be cut."""
    monkeypatch.setattr(group_commit, "IDLE_S", 0.1)

    async def body(engine: Engine, _: SqliteStorage) -> None:
        indexes = await fill(engine)
        await engine.storage.delete("q", [indexes.pop(0) for _ in range(2)])
        for _ in range(120):
            await engine.storage.delete("q", [indexes.pop(0)])
            indexes.append(await engine.put(ITEM, requestId="r"))
        assert await engine.indexes() == indexes

    with small_disk(tmp_path / "disk", 80) as disk:
        run(disk / "easq.db", body)


def test_a_disk_that_others_filled_takes_what_fits_into_free_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is cut when it finds no room to grow."""
    monkeypatch.setattr(group_commit, "IDLE_S", 0.1)

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        indexes = await fill(engine)
        await engine.storage.truncate("q", indexes[-1] + 1)
        await until(lambda: Path(f"{disk}/easq.db-wal").stat().st_size == 0)
        room = storage._file.free_bytes()
        (disk / "others").write_bytes(bytes(room - (6 << 20)))
        for _ in range(40):  # three times what the log may grow to
            await engine.storage.delete("q", [await put_again(engine)])

    with small_disk(tmp_path / "disk", 96) as disk:
        run(disk / "easq.db", body)


@pytest.mark.parametrize("has_ballast", [True, False])
def test_a_start_on_a_disk_without_any_room_takes_the_ballast(tmp_path: Path, has_ballast: bool) -> None:
    """SQLite needs some for the index of its log. Without ballast the start says so, and changes nothing."""

    async def put(engine: Engine, storage: SqliteStorage) -> None:
        await engine.put(b"one")
        await until(storage._file._ballast.exists)

    async def delete(engine: Engine, _: SqliteStorage) -> None:
        assert await engine.indexes() == [1]
        with pytest.raises(QueueFull):
            await engine.put(b"two")
        await engine.storage.delete("q", [1])
        assert await engine.indexes() == []

    with small_disk(tmp_path / "disk", 80) as disk:
        path = disk / "easq.db"
        run(path, put)
        before = path.read_bytes()
        if not has_ballast:
            Path(f"{path}.ballast").unlink()
        use_up(disk / "others")
        if has_ballast:
            run(path, delete)
            return
        with pytest.raises(StorageError, match=r"easq\.db cannot be opened: its disk is full$") as refusal:
            run(path, delete)
        assert (refusal.value.hint or "").startswith("make room")
        assert path.read_bytes() == before


# -- a pause -----------------------------------------------------------------------------------------------------------


class ClockedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put ahead, and that counts the timers that are started."""

    ahead_s = 0.0
    timers = 0

    def time(self) -> float:
        return super().time() + self.ahead_s

    def call_at(self, when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(when, *args, **options)


def test_puts_share_one_timer_for_the_pause_after_the_last_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer for each put costs much where thousands of long polls have timers too."""
    monkeypatch.setattr(group_commit, "IDLE_S", 1000.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ClockedLoop)
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        file, writes = engine.storage._file, engine.storage._open_writer
        before = loop.timers
        for _ in range(20):
            await engine.put()
            await writes.drained()
        assert loop.timers <= before + 1
        loop.ahead_s = 600
        await engine.put()
        await writes.drained()
        loop.ahead_s = 1200  # a pause of 600 s, and 1200 s after the first puts
        for _ in range(5):
            await asyncio.sleep(0)
        await writes.drained()
        assert file.log_bytes() > 0
        loop.ahead_s = 1700
        await until(lambda: file.log_bytes() == 0)
        await engine.storage.close()
        assert engine.failures == []

    with asyncio.Runner(loop_factory=ClockedLoop) as runner:
        runner.run(main())


# -- an emptied file ---------------------------------------------------------------------------------------------------


def test_a_large_file_that_is_mostly_free_is_made_shorter_when_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In slices, until it has no more free pages than others; what is in it stays."""
    monkeypatch.setattr(checkpoints, "LARGE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(group_commit, "IDLE_S", 0.02)
    monkeypatch.setattr(checkpoints, "SLICE_S", 0.0005)
    monkeypatch.setattr(group_commit, "SLICE_AFTER_S", 0.0)
    path = tmp_path / "easq.db"

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        slices: list[str] = []
        indexes = await asyncio.gather(*(engine.put(ITEM[:50_000], requestId=str(n)) for n in range(200)))
        await until(lambda: storage._file.log_bytes() == 0)
        large = path.stat().st_size
        storage._open_writer._connection.set_trace_callback(
            lambda text: slices.append(text) if "incremental_vacuum" in text else None
        )
        await engine.storage.delete("q", indexes[:40] + indexes[60:])
        await until(lambda: path.stat().st_size < large // 3)
        await until(lambda: not storage._open_writer._checkpoints.shrinks and storage._file.log_bytes() == 0)
        size = path.stat().st_size
        assert 20 * 50_000 < size < 2.5 * 20 * 50_000 + (64 << 10)
        assert len(slices) > 1
        await engine.put()
        assert await engine.indexes() == [*indexes[40:60], indexes[-1] + 1]

    run(path, body)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_what_is_put_meanwhile_does_not_wait_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Puts and slices take turns."""
    monkeypatch.setattr(checkpoints, "LARGE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(group_commit, "IDLE_S", 0.02)
    monkeypatch.setattr(checkpoints, "SLICE_S", 0.0)
    monkeypatch.setattr(group_commit, "SLICE_AFTER_S", 0.0)

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        indexes = await asyncio.gather(*(engine.put(ITEM, requestId="r") for _ in range(60)))
        await until(lambda: storage._file.log_bytes() == 0)
        order: list[str] = []
        storage._open_writer._connection.set_trace_callback(
            lambda text: order.append(text[:8]) if text.startswith(("COMMIT", "PRAGMA incr")) else None
        )
        await engine.storage.truncate("q", indexes[-1] + 1)
        await until(lambda: "PRAGMA i" in order)
        for _ in range(20):
            await engine.put()
        await until(lambda: not storage._open_writer._checkpoints.shrinks)
        last_put = len(order) - order[::-1].index("COMMIT")
        assert 0 < order[:last_put].count("PRAGMA i") < order.count("PRAGMA i")

    run(tmp_path / "easq.db", body)


def test_a_file_on_a_failed_disk_is_not_made_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at all is written after a failure."""
    monkeypatch.setattr(checkpoints, "LARGE_FILE_BYTES", 1 << 20)
    monkeypatch.setattr(group_commit, "IDLE_S", 0.02)
    monkeypatch.setattr(group_commit, "SLICE_AFTER_S", 0.02)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        await asyncio.gather(*(engine.put(ITEM, requestId="r") for _ in range(8)))
        monkeypatch.setattr(engine.storage._open_writer._checkpoints, "_give_back", lambda: None)
        await engine.storage.truncate("q", 9)
        await until(lambda: engine.storage._open_writer._checkpoints.shrinks)  # type: ignore[attr-defined]
        slices: list[int] = []
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError):
            await engine.put()
        monkeypatch.setattr(engine.storage._open_writer._checkpoints, "_give_back", lambda: slices.append(1))
        await asyncio.sleep(0.2)
        assert slices == []
        await engine.storage.close()

    asyncio.run(main())


# -- a long log --------------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_cut_is_said_aloud_once_a_minute(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reader: Callable[[], Callable[[], None]],
) -> None:
    """The log is truncated as soon as the other program has finished reading."""
    monkeypatch.setattr(checkpoints, "LONG_LOG_BYTES", 2 << 20)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES", 1 << 20)

    def said() -> list[str]:
        return [line for line in caplog.messages if "cannot be truncated" in line]

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        await engine.put()
        for _ in range(8):
            await engine.put(ITEM, requestId="r")
        assert said() == []  # nobody reads
        end = reader()
        for _ in range(20):
            await engine.put(ITEM, requestId="r")
        assert len(said()) == 1
        assert "easq.db-wal has" in said()[0]
        assert storage._file.log_bytes() > 8 << 20
        storage._open_writer._checkpoints._said_at.clear()
        for _ in range(6):
            await engine.put(ITEM, requestId="r")
        assert len(said()) == 2
        end()
        monkeypatch.setattr(group_commit, "IDLE_S", 0.02)
        for _ in range(6):
            await engine.put(ITEM, requestId="r")
        await until(lambda: storage._file.log_bytes() == 0)

    run(tmp_path / "easq.db", body)


def test_a_log_as_long_as_it_may_be_refuses_puts_until_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[[], Callable[[], None]]
) -> None:
    """Removals continue, and the log is truncated as soon as possible, even without a put."""
    monkeypatch.setattr(sqlite, "MOST_LOG_BYTES", 4 << 20)
    monkeypatch.setattr(group_commit, "IDLE_S", 0.02)

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        await engine.put()
        end = reader()
        refused = ""
        async with asyncio.timeout(20):
            while not refused:
                try:
                    await engine.put(ITEM, requestId="r")
                except QueueFull as error:
                    refused = str(error)
        assert refused == "the write-ahead log of the queue service is too long"
        assert storage._file.log_bytes() < 64 << 20
        await engine.storage.delete("q", [1])
        end()
        await until(lambda: storage._file.log_bytes() == 0)
        assert await put_again(engine)

    run(tmp_path / "easq.db", body)


def test_nobody_waits_for_a_program_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Callable[[], Callable[[], None]]
) -> None:
    """Cutting the log when idle needs all readers gone, and SQLite would wait 5 s for them, with all puts behind it."""
    monkeypatch.setattr(group_commit, "IDLE_S", 0.02)

    async def body(engine: Engine, storage: SqliteStorage) -> None:
        await engine.put()
        reader()
        await engine.put()
        tidied = asyncio.Event()
        monkeypatch.setattr(
            storage._file, "make_ballast", lambda: storage._loop.call_soon_threadsafe(tidied.set)
        )
        async with asyncio.timeout(4):
            await tidied.wait()
            await engine.put()

    run(tmp_path / "easq.db", body)
