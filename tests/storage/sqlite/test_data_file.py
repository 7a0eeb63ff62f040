"""The data file: links to it, files that are not data files, and permissions."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easq.errors import StorageError
from tests.storage.conftest import Engine, start


def refused(path: Path) -> StorageError:
    """Return the error of a start, and check that all files except its own lock are unchanged."""

    def seen() -> dict[str, tuple[int, bytes]]:
        return {
            str(file): (file.lstat().st_ino, file.read_bytes() if file.is_file() else b"")
            for file in path.parent.rglob("*")
            if not file.name.endswith((".lock", "-shm"))
        }

    before = seen()
    with pytest.raises(StorageError) as refusal:
        start(path)
    assert seen() == before
    return refusal.value


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link, in a folder of its own, to a data file in another."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir(mode=0o700)
    start(tmp_path / "there" / "real.db")
    (tmp_path / "here" / "easq.db").symlink_to("../there/real.db")
    return tmp_path / "here" / "easq.db"


# -- names -------------------------------------------------------------------------------------------------------------


def test_puts_into_a_file_behind_a_link_are_synced(link: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log lies beside the real file: each put that is acknowledged alone has a sync of its own."""
    synced: list[str] = []
    real = os.fdatasync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    async def main() -> None:
        engine = Engine(f"sqlite:{link}")
        await engine.start()
        monkeypatch.setattr(os, "fdatasync", note)
        for _ in range(20):
            await engine.put()
        assert synced.count(str(link.parent.parent / "there" / "real.db-wal")) >= 20
        await engine.storage.close()

    asyncio.run(main())
    assert os.listdir(link.parent) == ["easq.db"]


def test_a_file_has_one_lock_whatever_it_is_called(link: Path) -> None:
    async def main() -> None:
        engine = Engine(f"sqlite:{link}")
        await engine.start()
        folder = link.parent.parent / "linked folder"
        folder.symlink_to("there")
        for name in (link, link.resolve(), folder / "real.db"):
            with pytest.raises(StorageError, match="is in use by another easq serve"):
                await Engine(f"sqlite:{name}").start()
        await engine.storage.close()

    asyncio.run(main())


def test_a_link_to_nothing_is_refused(link: Path) -> None:
    """The target of the link may be on a disk that is not mounted yet: a new file would hide that."""
    link.resolve().unlink()
    error = refused(link)
    assert str(error) == f"{link} is a symbolic link to ../there/real.db, which does not exist"
    assert error.hint is not None


@pytest.mark.parametrize("name", ["missing/easq.db", "missing/deeper/easq.db"])
def test_a_folder_that_is_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "missing").symlink_to("unmounted/data")
    assert f"{tmp_path / 'missing'} is a symbolic link to unmounted/data" in str(refused(tmp_path / name))
    assert os.listdir(tmp_path) == ["missing"]


def test_links_that_go_round_are_refused(tmp_path: Path) -> None:
    (tmp_path / "easq.db").symlink_to("other.db")
    (tmp_path / "other.db").symlink_to("easq.db")
    refused(tmp_path / "easq.db")


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_with_two_names_is_refused(tmp_path: Path, suffix: str) -> None:
    """Under the other one it has another lock, and another log."""
    path = tmp_path / "easq.db"
    start(path)
    Path(f"{path}-wal").touch()
    os.link(f"{path}{suffix}", tmp_path / "backup.db")
    error = refused(path)
    assert f"{path}{suffix} has 2 names" in str(error)
    assert "remove the others" in (error.hint or "")
    (tmp_path / "backup.db").unlink()
    start(path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _device(path: Path) -> None:
    """One that is as /dev/null is, and not that one."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device needs root")


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_fifo, _socket, _device, _folder])
@pytest.mark.parametrize("suffix", ["", "-wal", ".lock", ".new", ".ballast", ".failed"])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], suffix: str
) -> None:
    """It stays what it is, and the start does not wait for the other end of a FIFO."""
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / "easq.db"
    if suffix:
        start(path)
        for beside in (".lock", ".ballast"):
            Path(f"{path}{beside}").unlink()
    make(Path(f"easq.db{suffix}"))
    before = os.lstat(f"{path}{suffix}")
    assert str(refused(path)).startswith(f"{path}{suffix}: it is a")
    assert os.lstat(f"{path}{suffix}") == before


# -- who may read it ---------------------------------------------------------------------------------------------------


def mode(path: Path | str) -> int:
    """The permission bits."""
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_file_that_others_could_read_is_closed_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also its log and lock; the warning is logged once."""
    path = tmp_path / "easq.db"
    start(path)
    caplog.clear()
    for name in os.listdir(tmp_path):
        (tmp_path / name).chmod(0o666)

    async def main() -> None:
        engine = Engine(f"sqlite:{path}")
        await engine.start()
        await engine.put()
        assert {name: mode(tmp_path / name) for name in os.listdir(tmp_path)} == dict.fromkeys(
            ("easq.db", "easq.db-wal", "easq.db-shm", "easq.db.lock", "easq.db.ballast"), 0o600
        )
        await engine.storage.close()

    asyncio.run(main())
    assert f"{path} was open to others (mode 0666): set to 0600" in caplog.messages
    caplog.clear()
    start(path)
    assert not [message for message in caplog.messages if "open to others" in message]


def test_a_folder_in_which_others_may_write_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    start(tmp_path / "easq.db")
    assert f"{tmp_path} is open to others (mode 0777): chmod 700 {tmp_path}" in caplog.messages
    assert mode(tmp_path) == 0o777


def test_folders_that_are_made_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Each of them, whatever the umask."""
    before = os.umask(0)
    try:
        start(tmp_path / "local" / "state" / "easq" / "easq.db")
    finally:
        os.umask(before)
    for name in ("local", "local/state", "local/state/easq"):
        assert mode(tmp_path / name) == 0o700


def test_a_recovered_copy_is_never_readable_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "easq.db"
    start(path)
    path.with_name("easq.db.failed").touch()
    modes: list[int] = []

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
            done = super().execute(sql, *given)
            if sql.startswith("VACUUM INTO"):
                modes.append(mode(f"{path}.new"))
            return done

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *given, **named: connect(*given, factory=Connection, **named)
    )
    before = os.umask(0)
    try:
        start(path, recover=True)
    finally:
        os.umask(before)
    assert modes == [0o600]
