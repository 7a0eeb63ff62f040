"""The durable engine: restart, files, locks, durability."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from easq.errors import QueueFull, StorageError
from easq.model import Frame
from easq.storage.base import Limits, Selection
from easq.storage.open import open_storage
from easq.storage.rules.changes import DeliveryRecorded, GroupChanged, Stored
from easq.storage.rules.effects import DeliveryRecord
from easq.storage.sqlite import data_file
from easq.storage.sqlite.data_file import SCHEMA_VERSION
from easq.storage.sqlite.engine import SqliteStorage
from easq.storage.sqlite.group_commit import OPENING_JOBS, CommitJob
from tests.storage.conftest import Engine

Run: TypeAlias = Callable[[Callable[[Engine], Awaitable[Any]]], Any]


def test_a_restart_brings_back_items_in_order_and_goes_on_counting(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        for priority in (0, 1, 0):
            await engine.put(priority=priority)
        await engine.storage.delete("q", [3])
        await engine.restart()
        assert await engine.indexes() == [1, 2]
        session = await engine.attach(window=1)
        assert await engine.leased(session) == [2]
        assert await engine.put() == 4

    run_sqlite(body)


def test_an_index_is_not_used_again_after_truncate_and_restart(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        for _ in range(3):
            await engine.put()
        await engine.storage.truncate("q", 4)
        await engine.restart()
        assert await engine.put() == 4

    run_sqlite(body)


def test_what_was_pending_is_ready_after_a_restart(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach("first")
        await engine.leased(session)
        await engine.restart()
        other = await engine.attach("other")
        (lease,) = await engine.storage.lease("q", other, index_only=False)
        assert (lease.frame.index, lease.deliveries) == (1, 2)

    run_sqlite(body)


def test_a_commit_of_one_group_is_remembered_while_another_holds_the_item(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        one, two = await engine.attach(group="one"), await engine.attach(group="two")
        await engine.leased(one)
        await engine.leased(two)
        await engine.commit(1, group="one")
        await engine.restart()
        again = await engine.attach(group="one")
        assert await engine.has_nothing_for(again)
        held = await engine.attach(group="two")
        assert await engine.leased(held) == [1]
        await engine.commit(1, group="two")
        assert await engine.length() == 0

    run_sqlite(body)


def test_failures_are_counted_across_a_restart(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.put()
        session = await engine.attach()
        await engine.leased(session)
        await engine.negative(1)
        await engine.restart()
        again = await engine.attach()
        (lease,) = await engine.storage.lease("q", again, index_only=False)
        assert lease.deliveries == 2
        await engine.negative(1)
        assert await engine.has_nothing_for(again)  # the second failure has a delay
        assert await engine.leased(again) == [1]

    run_sqlite(body)


def test_the_end_mark_is_stored(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.storage.end("q", ended=True)
        await engine.restart()
        assert (await engine.storage.attributes("q", now=engine.now)).ended

    run_sqlite(body)


def test_streams_do_not_mix(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.storage.open("q/sink")
        await engine.put(b"input", requestId="one")
        await engine.storage.append(
            "q/sink", Frame(0, {"requestId": "one"}, b"result"), priority=0, limits=Limits()
        )
        await engine.storage.truncate("q", 100)
        await engine.restart()
        await engine.storage.open("q/sink")
        assert await engine.indexes() == []
        found = await engine.storage.read("q/sink", Selection(0, {"requestId": "one"}, 9))
        assert [(frame.index, frame.data) for frame in found] == [(1, b"result")]
        assert await engine.storage.streams() == ["q", "q/sink"]

    run_sqlite(body)


def _start(path: Path) -> None:
    async def main() -> None:
        storage = open_storage(f"sqlite:{path}")
        await storage.start(lambda _: None)
        await storage.close()

    asyncio.run(main())


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = (open_storage(f"sqlite:{tmp_path / 'easq.db'}") for _ in range(2))
        await first.start(lambda _: None)
        with pytest.raises(StorageError, match="in use by another easq serve"):
            await second.start(lambda _: None)
        await first.close()
        await second.start(lambda _: None)
        await second.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"not a database, just text that is long enough" * 20, "file is not a database"),
    ],
)
def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "easq.db"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=reason):
        _start(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "easq.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StorageError, match="another program's SQLite file"):
        _start(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "easq.db"
    _start(path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StorageError, match=f"schema is version {SCHEMA_VERSION + 1}"):
        _start(path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "easq.db"

    async def fill() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        for _ in range(50):
            await engine.put(b"x" * 500)
        await engine.storage.close()

    asyncio.run(fill())
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4096)
    path.write_bytes(content)

    async def read() -> None:
        engine = Engine(f"sqlite:{path}")
        try:
            await engine.start()
        finally:
            await engine.storage.close()

    with pytest.raises(StorageError):
        asyncio.run(read())
    assert path.read_bytes() == bytes(content)


def test_a_log_without_its_file_is_refused(tmp_path: Path) -> None:
    """The log has the last acknowledged writes. The file was moved without it, or deleted: only the operator knows."""
    path = tmp_path / "easq.db"
    log = Path(f"{path}-wal")

    async def fill() -> bytes:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        await engine.put()
        content = log.read_bytes()
        await engine.storage.close()
        return content

    content = asyncio.run(fill())
    path.unlink()
    log.write_bytes(content)
    with pytest.raises(StorageError, match="-wal is there, and its easq"):
        _start(path)
    assert log.read_bytes() == content
    assert not path.exists()
    log.unlink()
    _start(path)


#: reads a data file, and holds it until its input ends
_ONLOOKER = """
import sqlite3, sys
reader = sqlite3.connect(sys.argv[1])
print(reader.execute("SELECT count(*) FROM item").fetchone()[0], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("cut", ["unlink", "rename", "sync"])
def test_a_recovery_that_is_cut_off_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Each time it is cut off a step later, while another program reads the old file, so that its log stays."""
    path = tmp_path / "easq.db"

    async def fill() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        for _ in range(20):
            await engine.put()
        onlooker.append(
            subprocess.Popen(
                [sys.executable, "-c", _ONLOOKER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        )
        assert onlooker[0].stdout is not None
        assert onlooker[0].stdout.readline() == b"20\n"
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", lambda _: os.stat("/no such file"))
            with pytest.raises(StorageError):
                await engine.put()
        await engine.storage.close()

    async def recover() -> list[int]:
        storage = SqliteStorage(path, recover=True)
        try:
            await storage.start(lambda _: None)
        except PowerCut:
            storage._file.drop_lock()
            raise
        await storage.open("q")
        found = await storage.read("q", Selection(0, length=100))
        await storage.close()
        return [frame.index for frame in found]

    class PowerCut(Exception):
        pass

    def cutting(real: Callable[..., Any], after: int) -> Callable[..., Any]:
        calls = 0

        def call(*given: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > after:
                raise PowerCut
            return real(*given, **options)

        return call

    onlooker: list[subprocess.Popen[bytes]] = []
    asyncio.run(fill())
    home, name = {"unlink": (Path, "unlink"), "rename": (os, "rename"), "sync": (data_file, "sync")}[cut]
    for after in range(12):
        with monkeypatch.context() as patch:
            patch.setattr(home, name, cutting(getattr(home, name), after))
            try:
                found = asyncio.run(recover())
                break
            except PowerCut:
                continue
    onlooker[0].communicate()
    assert found[:20] == list(range(1, 21))


def test_a_recovery_makes_no_file_that_others_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it copies, and after: the copy has all payloads."""
    path = tmp_path / "easq.db"
    modes: dict[str, set[int]] = {}

    def look() -> int:
        for file in tmp_path.iterdir():
            with contextlib.suppress(FileNotFoundError):
                modes.setdefault(file.name, set()).add(stat.S_IMODE(file.stat().st_mode))
        return 0

    class Watched(sqlite3.Connection):
        """Looks while a statement runs, which the copy is."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.set_progress_handler(look, 10)

    real = sqlite3.connect
    old = os.umask(0)
    try:

        async def fill() -> None:
            engine = Engine(f"sqlite:{path}")
            await engine.start()
            for _ in range(20):
                await engine.put()
            engine.storage._file.mark_failed()  # type: ignore[attr-defined]
            await engine.storage.close()

        asyncio.run(fill())
        look()
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **o: real(*a, factory=Watched, **o))
        monkeypatch.setattr(os, "rename", _after(look, os.rename))

        async def recover() -> None:
            storage = SqliteStorage(path, recover=True)
            await storage.start(lambda _: None)
            look()
            await storage.close()

        asyncio.run(recover())
    finally:
        os.umask(old)
    look()
    assert {"easq.db", "easq.db.new", "easq.db.failed", "easq.db.copied"} <= set(modes)
    assert set().union(*modes.values()) == {0o600}, modes


def _after(first: Callable[[], Any], then: Callable[..., Any]) -> Callable[..., Any]:
    """Both, in this order."""

    def call(*given: Any, **options: Any) -> Any:
        first()
        return then(*given, **options)

    return call


def test_a_half_made_file_of_an_earlier_start_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "easq.db.new").write_bytes(b"torn")
    _start(tmp_path / "easq.db")
    assert not (tmp_path / "easq.db.new").exists()


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "easq.db"
    old = os.umask(0)
    try:

        async def main() -> None:
            engine = Engine(f"sqlite:{path}")
            await engine.start()
            await engine.put()
            for file in path.parent.iterdir():
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            await engine.storage.close()

        asyncio.run(main())
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("durability", "synced"), [("fsync", True), ("os", False)])
def test_durability_is_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str, synced: bool
) -> None:
    """With `fsync` the write-ahead log is synced before a put is acknowledged; with `os` nothing is."""
    syncs: list[str] = []
    fdatasync = os.fdatasync

    def note(handle: int) -> None:
        syncs.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fdatasync(handle)

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}", durability=durability)
        await engine.start()
        assert engine.storage.durability == durability
        monkeypatch.setattr(os, "fdatasync", note)
        await engine.put()
        assert (syncs == ["easq.db-wal"]) == synced, syncs
        await asyncio.gather(*(engine.put() for _ in range(100)))
        assert len(syncs) < 20, "puts at the same time share a sync"
        await engine.storage.close()

    asyncio.run(main())


def test_of_many_puts_at_once_the_first_are_synced_while_the_others_come(tmp_path: Path) -> None:
    """All of them in one batch would keep all of their clients waiting for one sync, and the service idle."""
    batches: list[int] = []

    class Watched(SqliteStorage):
        def _settle_batch(self, batch: Sequence[CommitJob]) -> None:
            batches.append(len(batch))
            super()._settle_batch(batch)

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        engine.storage = Watched(tmp_path / "easq.db")
        await engine.start()
        for count, expected in (
            (1, [1]),
            (OPENING_JOBS, [OPENING_JOBS]),
            (100, [OPENING_JOBS, 84]),
            (2, [2]),
        ):
            batches.clear()
            indexes = await asyncio.gather(*(engine.put() for _ in range(count)))
            assert indexes == sorted(indexes)
            assert batches == expected
        await engine.storage.close()

    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 1024**2])
def test_a_failed_sync_acknowledges_nothing_ever_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The sync is not tried again: what it was to make durable may be lost, and the next one would not tell."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        await engine.put()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            results = await asyncio.gather(
                *(engine.put(b"x" * size) for _ in range(5)), return_exceptions=True
            )
        assert all(isinstance(result, StorageError) for result in results)
        with pytest.raises(StorageError, match="Input/output error"):
            await engine.put()
        assert len(engine.failures) == 1
        await engine.storage.close()
        with pytest.raises(StorageError, match="the disk failed"):
            await Engine(f"sqlite:{tmp_path / 'easq.db'}").start()

    asyncio.run(main())


def test_a_failed_disk_is_not_written_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the service stops either: what is read of the log then may not be what was written to it."""
    path = tmp_path / "easq.db"

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        await engine.put()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", fail)
            patch.setattr("easq.storage.sqlite.checkpoints.CHECKPOINT_BYTES", 1)
            with pytest.raises(StorageError):
                await engine.put()
            before = {file: file.read_bytes() for file in (path, Path(f"{path}-wal"))}
            await engine.storage.close()
        assert {file: file.read_bytes() for file in before} == before

    asyncio.run(main())


def test_a_checkpoint_that_fails_is_a_failure_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file may not grow any further, while the log may; nothing is acknowledged after that."""
    path = tmp_path / "easq.db"

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        await engine.put(b"x" * 4_000_000)
        await engine.restart()
        monkeypatch.setattr("easq.storage.sqlite.checkpoints.CHECKPOINT_BYTES", 1)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
        try:
            await engine.put(b"x" * 500_000)
            async with asyncio.timeout(10):
                while not engine.failures:
                    await asyncio.sleep(0.01)
            with pytest.raises(StorageError, match="disk I/O error"):
                await engine.put()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        await engine.storage.close()
        with pytest.raises(StorageError, match="the disk failed"):
            await Engine(f"sqlite:{path}").start()

    asyncio.run(main())


async def _try(putting: Awaitable[int]) -> int | None:
    try:
        return await putting
    except QueueFull:
        return None


def test_a_full_disk_refuses_puts_and_lets_commits_through(tmp_path: Path) -> None:
    """With no page left, puts are refused and nothing is lost; commits go on, and make room again."""

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        pages = engine.storage._open_writer._connection.execute("PRAGMA page_count").fetchone()[0]
        engine.storage._open_writer._connection.execute(f"PRAGMA max_page_count = {pages + 30}")
        results = [await _try(engine.put(b"x" * 10_000, requestId=str(n))) for n in range(60)]
        stored = [index for index in results if index is not None]
        assert 5 < len(stored) < 50
        assert await engine.indexes() == stored
        assert await engine.commit(*stored[:5]) == 5
        again = await engine.put(b"x" * 10_000, requestId="again")
        assert again > stored[-1]
        await engine.restart()
        assert await engine.indexes() == [*stored[5:], again]
        await engine.storage.close()
        assert engine.failures == []

    asyncio.run(main())


@pytest.mark.parametrize("stops", [False, True])
def test_commits_on_a_disk_without_any_room_wait_for_it(tmp_path: Path, stops: bool) -> None:
    """Other programs have taken the last byte. That is no failure of the disk: puts are refused, the service stays, and
    what waits is acknowledged once there is room; when the service stops before, it is not.
    """

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        indexes = await asyncio.gather(*(engine.put() for _ in range(500)))
        for group in ("one", "two"):
            await engine.attach(group=group, window=1)
        disk = engine.storage._open_writer._connection
        (pages,) = disk.execute("PRAGMA page_count").fetchone()
        disk.execute(f"PRAGMA max_page_count = {pages}")
        committing = asyncio.ensure_future(engine.commit(*indexes, group="one"))
        with pytest.raises(QueueFull):
            await engine.put(b"x" * 100_000)
        assert not committing.done()
        if stops:
            with contextlib.suppress(QueueFull):
                await engine.storage.close()
            with pytest.raises(QueueFull):
                await committing
        else:
            disk.execute(f"PRAGMA max_page_count = {pages * 10}")
            assert await committing == 500
            await engine.storage.close()
        assert engine.failures == []
        await (again := Engine(engine.url)).start()
        session = await again.attach(group="one")
        assert await again.has_nothing_for(session) != stops
        await again.storage.close()

    asyncio.run(main())


def test_a_failed_write_acknowledges_nothing_and_is_reported_once(tmp_path: Path) -> None:
    """A call that was not committed raises StorageError, and so do all later calls."""

    async def main() -> None:
        engine = Engine(f"sqlite:{tmp_path / 'easq.db'}")
        await engine.start()
        assert isinstance(engine.storage, SqliteStorage)
        await engine.put()
        engine.storage._open_writer._connection.execute("PRAGMA query_only = ON")
        results = await asyncio.gather(*(engine.put() for _ in range(5)), return_exceptions=True)
        assert all(isinstance(result, StorageError) for result in results)
        with pytest.raises(StorageError):
            await engine.put()
        with pytest.raises(StorageError):
            await engine.indexes()
        assert len(engine.failures) == 1
        engine.storage._open_writer._connection.execute("PRAGMA query_only = OFF")
        await engine.storage.close()

    asyncio.run(main())


def test_one_stream_too_many_is_refused(tmp_path: Path) -> None:
    """An item's id holds 21 bits of its stream's number: two million streams."""
    path = tmp_path / "easq.db"
    _start(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO stream (id, name) VALUES (2097149, 'earlier')")
    connection.close()

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()  # the stream `q` is number 2097150, the last one
        assert await engine.put() == 1
        with pytest.raises(StorageError, match="there is no room for more"):
            await engine.storage.open("one more")
        await engine.storage.close()

    asyncio.run(main())


def test_two_hundred_thousand_queues_fit(tmp_path: Path) -> None:
    """Streams of high numbers do not mix, and an item's index is what it was."""
    path = tmp_path / "easq.db"
    _start(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO stream (id, name) VALUES (800000, 'q')")
    connection.close()

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        await engine.storage.open("next")
        assert [await engine.put() for _ in range(2)] == [1, 2]
        await engine.storage.append("next", Frame(0, {"requestId": "n"}, b""), priority=0, limits=Limits())
        await engine.restart()
        assert await engine.indexes() == [1, 2]
        await engine.storage.truncate("q", 3)
        await engine.restart()
        assert await engine.indexes() == []
        await engine.storage.open("next")
        assert len(await engine.storage.read("next", Selection(0, length=9))) == 1
        await engine.storage.close()

    asyncio.run(main())


def test_the_last_index_is_not_passed(tmp_path: Path) -> None:
    path = tmp_path / "easq.db"
    _start(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"INSERT INTO stream (name, last) VALUES ('q', {2**42 - 2})")
    connection.close()

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        assert await engine.put() == 2**42 - 1
        with pytest.raises(QueueFull, match="no index left"):
            await engine.put()
        await engine.restart()
        assert await engine.indexes() == [2**42 - 1]
        await engine.storage.close()

    asyncio.run(main())


def test_losses_and_busy_time_of_an_item_are_kept(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        assert isinstance(engine.storage, SqliteStorage)
        await engine.put()
        record = DeliveryRecord(deliveries=3, failures=1, code="c", reason="r", losses=2, busy_ms=500)
        await engine.storage.submit([GroupChanged("q", "g", True), DeliveryRecorded("q", "g", 1, record)])
        await engine.restart()
        assert engine.storage._rules["q"].record("g", 1) == record

    run_sqlite(body)


def test_the_times_of_items_are_stored_and_found_without_a_scan(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        assert isinstance(engine.storage, SqliteStorage)
        frames = [Frame(index, {"requestId": "r"}, b"x") for index in (1, 2, 3)]
        await engine.storage.submit(
            [
                Stored("q", frames[0], 0),
                Stored("q", frames[1], 0, due_ms=5),
                Stored("q", frames[2], 0, due_ms=7, expires_ms=9),
            ]
        )
        read = engine.storage._reader.execute
        rows = read("SELECT id & 7, due_ms, expires_ms, data FROM item").fetchall()
        assert rows == [(1, None, None, b"x"), (2, 5, None, b"x"), (3, 7, 9, b"x")]
        for column in ("due_ms", "expires_ms"):
            ((*_, plan),) = read(
                f"EXPLAIN QUERY PLAN SELECT id FROM item WHERE stream = 1 AND {column} <= 6"
            ).fetchall()
            assert plan.startswith("SEARCH item USING COVERING INDEX item_")

    run_sqlite(body)


def test_a_data_file_gives_free_pages_back_when_asked(tmp_path: Path) -> None:
    """2: incremental; a file takes it when it is made, or never."""
    _start(tmp_path / "easq.db")
    connection = sqlite3.connect(tmp_path / "easq.db")
    assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
    connection.close()


def test_opening_many_queues_takes_few_syncs_and_none_the_next_time(
    run_sqlite: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Existing streams are only read."""
    syncs: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: syncs.append(fd) or real(fd))  # type: ignore[func-returns-value]

    async def body(engine: Engine) -> None:
        for most in (5, 0):
            await engine.restart()
            syncs.clear()
            await asyncio.gather(*(engine.storage.open(f"queue-{number}") for number in range(1000)))
            assert len(syncs) <= most
        assert len(await engine.storage.streams()) == 1001

    run_sqlite(body)
