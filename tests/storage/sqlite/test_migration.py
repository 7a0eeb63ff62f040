"""A data file of layout 1 is copied into one of the present layout, and nothing of it is lost, whatever happens."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easq.errors import KeyReused, StorageError
from easq.model import Frame
from easq.storage.base import Limits, Selection
from easq.storage.sqlite import data_file
from easq.storage.sqlite.data_file import SCHEMA_VERSION
from easq.storage.sqlite.engine import SqliteStorage
from easq.storage.sqlite.migration import room_for_copy
from tests.storage.conftest import start
from tests.storage.sqlite.layout1 import contents, request_id, write_layout_1
from tests.support.disk import resize, small_disk, use_up
from tests.support.process import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A data file of layout 1, in a folder of its own."""
    (tmp_path / "data").mkdir()
    write_layout_1(tmp_path / "data" / "easq.db")
    return tmp_path / "data" / "easq.db"


@pytest.fixture
def expected(path: Path, tmp_path: Path) -> Any:
    """Return the contents of the file and its log."""
    whole = tmp_path / "whole"
    shutil.copytree(path.parent, whole)
    return contents(whole / path.name)


def layout(path: Path) -> int:
    """The layout of the file."""
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])
    finally:
        connection.close()


def refused(path: Path, expected: Any) -> StorageError:
    """Return what a start says that does not migrate the file. The file and its log stay as they are, byte for byte."""
    earlier = {
        file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")
    }
    with pytest.raises(StorageError) as refusal:
        start(path)
    left = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
    assert left == earlier | {"easq.db.lock": b""}
    assert layout(path) == 1
    assert contents(path) == expected
    return refusal.value


def test_all_that_a_file_of_layout_1_holds_is_there(path: Path, expected: Any) -> None:
    """In the new file, and in the old one, which stays as `.v1`; the rest of the folder is as after any start."""
    start(path)
    assert contents(path) == expected
    assert layout(path) == SCHEMA_VERSION
    before = path.with_name("easq.db.v1")
    assert contents(before) == expected
    assert layout(before) == 1
    start(path)
    assert contents(path) == expected
    assert {file.name for file in path.parent.iterdir()} == {
        *("easq.db", "easq.db.v1", "easq.db.lock", "easq.db.ballast")
    }
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_a_migrated_queue_is_served_as_before(path: Path) -> None:
    """Items, indexes, groups, idempotency keys and the end mark do what they did."""

    async def main() -> None:
        storage = SqliteStorage(path)
        await storage.start(lambda _: None)
        for name in ("q", "q/rear", "q/sink", "q/sink/rear"):
            await storage.open(name)
        found = await storage.read("q", Selection(7))
        assert found == [Frame(7, {"requestId": request_id(7), "n": "é"}, b"7 " + bytes(300))]
        searched = await storage.read("q", Selection(0, {"requestId": request_id(8)}, 9))
        assert [frame.index for frame in searched] == [8]
        again = Frame(0, {"requestId": "new"}, b"digest")
        with pytest.raises(KeyReused):
            await storage.append("q", again, priority=0, limits=Limits(), key="key-3")
        assert (await storage.append("q", again, priority=0, limits=Limits())).index == 51
        group = storage._rules["q"]._groups["one"]
        assert (group.committed, group.given_up, group.records[3].failures) == ({1, 2}, {2}, 1)
        assert (await storage.attributes("q/sink", now=0.0)).ended
        ((rear, *_),) = [await storage.read("q/rear", Selection(0, length=9))]
        assert (rear.index, len(rear.data)) == (9, 200_000)
        await storage.close()

    asyncio.run(main())


def test_each_start_names_the_old_file_until_it_is_removed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(path)
    assert "copying 35 items" in caplog.text
    for there in (True, False):
        caplog.clear()
        start(path)
        said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert any("easq.db.v1" in line and "remove it" in line for line in said) == there
        path.with_name("easq.db.v1").unlink(missing_ok=True)


@pytest.mark.parametrize("steps", [(), pytest.param(("sql",), marks=pytest.mark.long)])
def test_a_kill_at_any_step_loses_nothing(tmp_path: Path, steps: tuple[str, ...]) -> None:
    """The next start comes out with the new file whole, and the old one beside it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.storage.sqlite.killed_migration", str(tmp_path), *steps],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > (50 if steps else 20)


def test_each_file_is_synced_before_it_gets_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut one of the two is there, whole. The old log is removed before: SQLite would take it for the
    new file's.
    """
    calls: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(given: Any, *more: Any, **options: Any) -> Any:
            what = os.readlink(f"/proc/self/fd/{given}") if isinstance(given, int) else given
            calls.append(f"{name} {Path(what).relative_to(path.parent)}")
            return real(given, *more, **options)

        return call

    for name in ("rename", "unlink", "fsync"):
        monkeypatch.setattr(os, name, noted(name))
    start(path)
    old_is_whole = calls.index("fsync easq.db")
    assert calls[old_is_whole - 1 : old_is_whole + 8] == [
        "fsync easq.db.new",
        "fsync easq.db",
        "unlink easq.db-wal",
        "unlink easq.db-shm",
        "fsync .",
        "rename easq.db",
        "fsync .",
        "rename easq.db.new",
        "fsync .",
    ]


def test_a_disk_without_room_is_named_and_nothing_is_changed(
    path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_file.DataFile, "free_bytes", lambda _: (4 << 20) - 1)
    error = refused(path, expected)
    assert "needs 34 MiB on its disk: 3 MiB are free" in str(error)
    assert "make room" in (error.hint or "")
    assert not path.with_name("easq.db.v1").exists()
    opened = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [name for name in opened if name.startswith(str(path))]


@pytest.mark.parametrize("has_log", [True, False])
def test_a_disk_that_fills_up_meanwhile_changes_nothing(
    tmp_path: Path, path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, has_log: bool
) -> None:
    """Others use the room that was there: wherever that ends the copy, the old file is whole. A log that the old file
    has is copied back into it first, which takes room too.
    """
    if not has_log:
        assert contents(path) == expected  # and the log is gone
    monkeypatch.setattr(data_file, "room_for_copy", lambda _: 5 << 20)
    with small_disk(tmp_path / "disk", 16) as disk, monkeypatch.context() as patch:
        patch.setattr(data_file.DataFile, "free_bytes", lambda _: 40 << 20)
        for kib in (40, 60, 80, 100, 200, 300, 400, 500):
            for name in os.listdir(disk):
                (disk / name).unlink()
            shutil.copytree(path.parent, disk, dirs_exist_ok=True)
            status = os.statvfs(disk)
            with (disk / "others").open("wb") as others:
                others.write(bytes(status.f_bavail * status.f_frsize - (kib << 10)))
            with pytest.raises(StorageError, match="needs 37 MiB on its disk"):
                start(disk / "easq.db")
            assert not (disk / "easq.db.new").exists()
            assert not (disk / "easq.db.v1").exists()
            assert Path(f"{disk}/easq.db-wal").exists() == has_log
        resize(disk, 32)
        start(disk / "easq.db")
        assert contents(disk / "easq.db") == expected


@pytest.mark.parametrize("has_ballast", [True, False])
def test_a_disk_that_is_full_right_after_the_migration_is_said_to_be_full(
    tmp_path: Path, path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch, has_ballast: bool
) -> None:
    """SQLite says "disk I/O error" where it has no room for the index of the log. The ballast is room for it."""
    migrate = data_file.DataFile._migrate

    def migrate_and_fill(file: data_file.DataFile, connection: sqlite3.Connection) -> None:
        migrate(file, connection)
        use_up(disk / "others")

    monkeypatch.setattr(data_file.DataFile, "_migrate", migrate_and_fill)
    with small_disk(tmp_path / "disk", 64) as disk:
        shutil.copytree(path.parent, disk, dirs_exist_ok=True)
        if has_ballast:
            (disk / "easq.db.ballast").write_bytes(bytes(1 << 20))
            start(disk / "easq.db")
        else:
            with pytest.raises(
                StorageError, match=r"easq\.db cannot be opened: its disk is full$"
            ) as refusal:
                start(disk / "easq.db")
            assert (refusal.value.hint or "").startswith("make room")
        (disk / "others").unlink()
        start(disk / "easq.db")
        assert contents(disk / "easq.db") == expected


def test_a_limit_of_the_file_size_is_no_fault_of_the_file(path: Path, expected: Any) -> None:
    """SQLite has the same error for a quota and a failed disk: nothing says that the file cannot be read."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128 << 10, before[1]))
    try:
        with pytest.raises(StorageError) as refusal:
            start(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(refusal.value) == f"{path} cannot be copied into a new layout: disk I/O error"
    assert "quota" in (refusal.value.hint or "")
    assert not path.with_name("easq.db.new").exists()
    assert layout(path) == 1
    assert contents(path) == expected


@pytest.mark.long
def test_a_large_file_comes_out_whole() -> None:
    """The command that shows it for a million items, with fewer."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.sqlite.migration_at_size", "--items", "20000", "--kills", "5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it came out whole" in done.stdout
    if os.environ.get("CI") and os.geteuid() == 0:
        assert "NOT SHOWN" not in done.stdout


@pytest.mark.parametrize(("items", "size"), [(10, 10), (4000, 0), (3000, 300), (200, 5000), (5, 900_000)])
def test_a_copy_takes_no_more_room_than_was_asked_for(tmp_path: Path, items: int, size: int) -> None:
    path = tmp_path / "easq.db"
    write_layout_1(path, items=items, size=size)
    connection = sqlite3.connect(path)
    asked = room_for_copy(connection)
    connection.close()
    start(path)
    assert path.stat().st_size <= asked


def test_a_file_that_another_program_has_open_is_not_migrated(path: Path, expected: Any) -> None:
    """Writes of the other program would be lost."""
    other = sqlite3.connect(path)
    other.execute("SELECT count(*) FROM item").fetchone()
    error = refused(path, expected)
    assert "another program has" in str(error)
    other.close()
    start(path)
    assert contents(path) == expected


def test_an_earlier_files_place_is_not_taken(path: Path, expected: Any) -> None:
    earlier = path.with_name("easq.db.v1")
    earlier.write_bytes(b"somebody's only copy")
    assert f"{earlier} of an earlier migration exists" in str(refused(path, expected))
    assert earlier.read_bytes() == b"somebody's only copy"


def test_a_file_that_the_disk_failed_under_is_recovered_first(path: Path, expected: Any) -> None:
    path.with_name("easq.db.failed").touch()
    assert "the disk failed under" in str(refused(path, expected))
    start(path, recover=True)
    assert contents(path) == expected
    assert layout(path) == SCHEMA_VERSION


def test_a_damaged_file_is_not_migrated(path: Path) -> None:
    start(path)
    path = path.with_name("easq.db.v1")
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
    for leftover in path.parent.iterdir():
        leftover.unlink()
    path = path.with_name("easq.db")
    path.write_bytes(damaged)
    with pytest.raises(StorageError):
        start(path)
    assert path.read_bytes() == damaged


def test_an_index_that_has_no_place_is_not_cut(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE stream SET last = {2**50} WHERE name = 'q'")
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=f"an item with the index {2**50}"):
        start(path)
    assert layout(path) == 1
