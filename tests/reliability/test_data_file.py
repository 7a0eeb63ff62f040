"""An unusable data file is refused with a message and exit code 74, and is not changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.process import AS_ANYONE, run_to_the_end


def contents(folder: Path) -> dict[str, str]:
    """Return the files of a folder and their contents, without the lock of the service."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if not path.name.endswith(".lock")
    }


def refused(folder: Path, path: Path) -> str:
    """Return the error of a service that does not start on `path`, and check that the file is unchanged."""
    before = contents(path.parent)
    done = run_to_the_end(folder, f"sqlite:{path}")
    assert done.returncode == 74, done
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("easq: ")
    assert str(path) in done.stderr
    assert contents(path.parent) == before
    return done.stderr


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The path of a data file, in a folder of its own."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "easq.db"


def test_a_text_file_is_refused(tmp_path: Path, data: Path) -> None:
    data.write_text("my only copy of something\n" * 100)
    assert "file is not a database" in refused(tmp_path, data)


def test_an_empty_file_is_refused(tmp_path: Path, data: Path) -> None:
    """An empty file may be the rest of a real one after a full disk: it is not used as a new file."""
    data.touch()
    assert "the file is empty" in refused(tmp_path, data)


def test_another_programs_database_is_refused(tmp_path: Path, data: Path) -> None:
    with sqlite3.connect(data) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    assert "it is another program's SQLite file" in refused(tmp_path, data)


def test_another_programs_log_stays_where_it_is(tmp_path: Path, data: Path) -> None:
    """Recent writes of that program are only in its log: examining the file must not copy them back."""
    write = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('PRAGMA journal_mode = WAL');"
        "c.execute('CREATE TABLE t (x)'); c.commit(); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", write, str(data)], check=True)
    before = {name: digest for name, digest in contents(data.parent).items() if not name.endswith("-shm")}
    assert len(before) == 2
    done = run_to_the_end(tmp_path, f"sqlite:{data}")
    assert done.returncode == 74, done
    after = {name: digest for name, digest in contents(data.parent).items() if not name.endswith("-shm")}
    assert after == before


def test_a_schema_of_another_version_is_refused(serve: Serve, tmp_path: Path, data: Path) -> None:
    service = serve(storage=f"sqlite:{data}")
    service.stream().put()
    assert service.terminate() == 0
    connection = sqlite3.connect(data)
    connection.execute("PRAGMA user_version = 99")
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    assert "its schema is version 99, this easq knows 2" in refused(tmp_path, data)


@pytest.mark.parametrize("keep", [100, 4096, 5000])
def test_a_file_that_was_cut_short_is_refused(serve: Serve, tmp_path: Path, data: Path, keep: int) -> None:
    """The file is refused, not served without the missing data."""
    service = serve(storage=f"sqlite:{data}")
    for _ in range(50):
        service.stream().put(b"x" * 1000)
    assert service.terminate() == 0
    with data.open("r+b") as file:
        file.truncate(keep)
    refused(tmp_path, data)


def test_a_file_in_use_is_refused_and_goes_on_being_served(serve: Serve, tmp_path: Path, data: Path) -> None:
    """The second service on one file does not start; a killed one leaves no lock behind."""
    service = serve(storage=f"sqlite:{data}")
    service.stream().put(b"mine")
    done = run_to_the_end(tmp_path, f"sqlite:{data}")
    assert done.returncode == 74
    assert done.stdout == ""
    assert f"{data} is in use by another easq serve" in done.stderr
    assert "hint: " in done.stderr
    assert [item.data for item in service.stream().get()] == [b"mine"]
    service.restart()
    assert service.stream().length() == 1


def test_a_folder_is_refused(tmp_path: Path, data: Path) -> None:
    data.mkdir()
    done = run_to_the_end(tmp_path, f"sqlite:{data}")
    assert done.returncode == 74, done
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("easq.db", 0o400, "is not writable"),
        ("easq.db", 0o200, "is not readable"),
        ("easq.db-wal", 0o400, "is not writable"),
        ("easq.db-shm", 0o000, "is not readable and not writable"),
        ("easq.db.lock", 0o400, "is not writable"),
        (".", 0o555, "is not writable"),
        (".", 0o300, "is not readable"),
    ],
)
def test_what_is_not_writable_is_refused_before_anything_is_served(
    serve: Serve, tmp_path: Path, data: Path, name: str, mode: int, words: str
) -> None:
    """The file is used again as soon as it is writable: no disk has failed."""
    service = serve(storage=f"sqlite:{data}")
    service.stream().put(b"first")
    service.kill()
    path = data.parent / name
    before = stat.S_IMODE(path.stat().st_mode)
    path.chmod(mode)
    try:
        done = run_to_the_end(tmp_path, f"sqlite:{data}", under=AS_ANYONE)
    finally:
        path.chmod(before)
    assert (done.returncode, done.stdout) == (74, ""), done
    message, hint = done.stderr.splitlines()
    assert message == f"easq: {path} {words}: its mode is {mode:04o}"
    assert hint.startswith("hint: chmod u+rw")
    assert not data.with_name("easq.db.failed").exists()
    service.start()
    assert [item.data for item in service.stream().get()] == [b"first"]


def test_a_folder_in_which_no_file_can_be_made_is_refused(tmp_path: Path, data: Path) -> None:
    data.parent.chmod(0o500)
    try:
        done = run_to_the_end(tmp_path, f"sqlite:{data}", under=AS_ANYONE)
        below = run_to_the_end(tmp_path, f"sqlite:{data.parent / 'new' / 'easq.db'}", under=AS_ANYONE)
    finally:
        data.parent.chmod(0o700)
    assert done.returncode == below.returncode == 74, done
    assert f"easq: {data.parent} is not writable: its mode is 0500\n" in done.stderr
    assert f"easq: the folder {data.parent / 'new'} cannot be made: Permission denied\n" in below.stderr


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs /proc")
def test_a_file_of_the_kernel_is_refused(tmp_path: Path) -> None:
    done = run_to_the_end(tmp_path, "sqlite:/proc/version")
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr.splitlines()[0] in {
        "easq: /proc/version cannot be a data file: no file can be made in the folder /proc",
        f"easq: /proc is not writable: its mode is 0555, and it belongs to user 0, not to {os.geteuid()}",
    }


def test_lost_permission_is_no_failed_disk(serve: Serve, data: Path) -> None:
    """A running service ends with 74; what was acknowledged is served again without --recover."""
    service = serve(storage=f"sqlite:{data}")
    service.stream().put(b"first")
    service.terminate()
    service.under = AS_ANYONE
    service.start()
    data.with_name("easq.db-wal").chmod(0o400)
    with pytest.raises((EOFError, OSError)):
        service.stream().put(b"second")
    assert service.wait() == 74
    assert "Permission denied" in service.log.read_text()
    assert not data.with_name("easq.db.failed").exists()
    data.with_name("easq.db-wal").chmod(0o600)
    service.start()
    assert [item.data for item in service.stream().get(_length_=9)][:1] == [b"first"]


def test_only_its_owner_can_read_the_data(serve: Serve, tmp_path: Path) -> None:
    """Whatever the umask: the folder 0700, each file in it 0600, also the log and the lock."""
    folder = tmp_path / "fresh" / "state"
    before = os.umask(0)
    try:
        service = serve(storage=f"sqlite:{folder / 'easq.db'}")
    finally:
        os.umask(before)
    service.stream().put(b"secret")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert {"easq.db", "easq.db-wal", "easq.db.lock"} <= set(names)
    assert set(names.values()) == {0o600}, names


def test_a_start_that_was_cut_off_does_not_hinder_the_next(serve: Serve, data: Path) -> None:
    """An incomplete file of a first start is created again."""
    data.with_name("easq.db.new").write_bytes(b"half")
    data.with_name("easq.db.new-wal").write_bytes(b"half")
    service = serve(storage=f"sqlite:{data}")
    assert service.stream().put() == 1


def test_queues_that_are_not_named_are_kept_and_said_so(serve: Serve, data: Path) -> None:
    """They are served again when they are named again."""
    service = serve("--queue", "old", storage=f"sqlite:{data}")
    service.stream("old").put(b"kept")
    service.terminate()
    service = serve("--queue", "new", storage=f"sqlite:{data}")
    assert "old" in service.log.read_text()
    assert service.stream("old").ask("GET").status == 404
    service.terminate()
    service = serve("--queue", "new", "--queue", "old", storage=f"sqlite:{data}")
    assert [item.data for item in service.stream("old").get()] == [b"kept"]
