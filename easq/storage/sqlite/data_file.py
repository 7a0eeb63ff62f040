"""The data file of the embedded engine, and the files beside it: creation, lock, recognition, copies, space.

Beside `PATH` there are `-wal` and `-shm` of SQLite, and `.lock` (held by one process), `.new` (a file being created),
`.failed` (marks a file on which the disk failed), `.copied` (the complete copy that will replace it), `.ballast` (space
that is freed when the disk is full) and `.v1` (the file before a migration, until the user removes it).
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from easq.errors import StorageError
from easq.net import files
from easq.storage.sqlite.migration import copy_layout_1, room_for_copy
from easq.storage.sqlite.permissions import (
    ANOTHER_FILE,
    check_kinds,
    close_to_others,
    make_folder,
    require_access,
)

log = logging.getLogger(__name__)

#: "easq" in ASCII: the application id that SQLite stores in the file
APPLICATION_ID = 0x65617371
SCHEMA_VERSION = 2
#: freed when the disk is full, so that deletes and commits go on
BALLAST_BYTES = 16 * 1024**2
#: puts are refused when free pages and disk together have less room than this; half of it is for the log
RESERVE_BYTES = 32 * 1024**2
#: the usual length of the write-ahead log
LOG_BYTES = 16 * 1024**2


class DataFile:
    """The data file and the files beside it. Every method but `connect` needs the lock.

    `path` is resolved, so that two symbolic links to one file share its lock; SQLite resolves it too for its log.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.realpath(path))
        self._given = path
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._had_log = False

    def connect(self, mode: str) -> sqlite3.Connection:
        """Return a connection to the present file; `mode` is `rw` or `ro`."""
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def open(self, *, recover: bool) -> sqlite3.Connection:
        """Lock the file, create it if there is none, and return the one connection for writing.

        Raises StorageError when another process has the lock, when the file is not writable, and when the disk failed
        under it and `recover` is not set; sqlite3.Error and OSError when it cannot be read. The lock may then be held.
        """
        self._refuse_dangling(*self._given.absolute().parents)
        if not self.path.parent.exists():
            self._refuse_dangling(self._given)
        make_folder(self.path.parent)
        require_access(self.path.parent, os.R_OK | os.W_OK | os.X_OK)
        check_kinds(self.path)
        self._take_lock()
        if not self.path.exists() and self._before_migration.exists() and self._fresh.exists():
            # a crash has interrupted a migration between its two renames
            os.rename(self._before_migration, self.path)
            sync(self.path.parent)
        if not self.path.exists():
            self._refuse_dangling(self._given)
            if self._has_log:
                raise StorageError(
                    f"{self._log} is there, and its {self.path.name} is not: it holds the last writes",
                    hint="put the data file back, or move the log away too and start with an empty file",
                )
            os.rename(
                self._make(lambda _: None), self.path
            )  # it gets its name when it is complete and synced
            sync(self.path.parent)
        for path in (self.path, self._log, Path(f"{self.path}-shm")):
            require_access(path, os.R_OK | os.W_OK)
        if self._mark.exists():
            self._copy(wanted=recover)
        self._had_log = self._has_log
        self._connection = self.connect("rw")
        layout = self._read_layout(self._connection)
        close_to_others(self.path)
        if layout < SCHEMA_VERSION:
            self._migrate(self._connection)
            self._connection = self.connect("rw")
            self._had_log = False
            self._read_layout(self._connection)
        if self._before_migration.exists():
            log.warning(
                "%s is the data file from before its migration: remove it when you no longer need it",
                self._before_migration,
            )
        return self._connection

    @property
    def _log(self) -> Path:
        return Path(f"{self.path}-wal")

    @property
    def _has_log(self) -> bool:
        return self._log.exists() and self._log.stat().st_size > 0

    def _refuse_dangling(self, *paths: Path) -> None:
        """Raise StorageError for a dangling symbolic link: its target may be on a disk that is not mounted."""
        for path in paths:
            if path.is_symlink() and not path.exists():
                raise StorageError(
                    f"{path} is a symbolic link to {os.readlink(path)}, which does not exist",
                    hint="restore that file or mount its disk, or remove the link to start with an empty file",
                )

    def _take_lock(self) -> None:
        lock_path = self.path.with_name(self.path.name + ".lock")
        require_access(lock_path, os.R_OK | os.W_OK)
        try:
            lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            # in /proc, creating a file fails with "No such file or directory"
            reason = "" if error.errno == errno.ENOENT else f": {error.strerror}"
            raise StorageError(
                f"{self.path} cannot be a data file: no file can be made in the folder"
                f" {self.path.parent}{reason}",
                hint=ANOTHER_FILE,
            ) from error
        try:
            files.lock(lock, wait=False)
        except OSError as error:
            os.close(lock)
            raise StorageError(
                f"{self.path} is in use by another easq serve",
                hint="stop that one, or name another file with --storage sqlite:PATH",
            ) from error
        self._lock = lock

    def refuse(self) -> None:
        """Close the file and drop the lock. The file and a log that was there stay as they were found."""
        if self._connection is not None and not self._had_log:
            self._connection.close()
        elif self._connection is not None:
            # closing the last connection copies the log into the file. A read-only one cannot do that, so it is the
            # last; if the file cannot be read by one, the other one is left open
            reader = self.connect("ro")
            try:
                reader.execute("PRAGMA user_version").fetchone()
                self._connection.close()
            except sqlite3.Error as error:
                log.debug("%s stays open: %s", self.path, error)
            finally:
                reader.close()
        self.drop_lock()

    def drop_lock(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make(self, fill: Callable[[sqlite3.Connection], None]) -> Path:
        """Make a new data file, fill it with `fill`, sync it, and return its path."""
        fresh = self._fresh_path()
        connection = sqlite3.connect(f"{fresh.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only a new file takes it
            schema = resources.files("easq.storage.sqlite").joinpath("schema.sql").read_text(encoding="utf-8")
            connection.executescript(f"BEGIN; {schema} COMMIT;")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            fill(connection)
            connection.execute("PRAGMA main.journal_mode = WAL").fetchall()
        finally:
            connection.close()
        sync(fresh)
        return fresh

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Replace a file of layout 1 by a copy in the present layout, keep the old one as `.v1`; close `connection`.

        After a crash at any point the next start finds the old or the new file, complete. Raises StorageError,
        sqlite3.Error and OSError; the old file is then unchanged in its place.
        """
        if os.path.lexists(self._before_migration):
            raise StorageError(
                f"{self.path} has to be migrated, but {self._before_migration} of an earlier migration exists",
                hint="move that file away, or remove it if you no longer need it",
            )
        needed = room_for_copy(connection) + RESERVE_BYTES
        if self.free_bytes() < needed:
            raise self._no_room(needed)
        connection.close()
        self._connection = None
        try:
            fresh = self._make(lambda new: copy_layout_1(self.path, new))
        except BaseException as error:
            self._remove_fresh()
            if is_full(error):
                raise self._no_room(needed) from error
            if (
                isinstance(error, OSError)
                or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
            ):
                raise StorageError(
                    f"{self.path} cannot be copied into a new layout: {error}",
                    hint="the disk failed, or a quota or a limit of the file size is reached; the file is unchanged",
                ) from error
            raise
        # the log is empty, as the copy has emptied it; left here, SQLite would take it for the new file's log
        sync(self.path)
        for leftover in (self._log, Path(f"{self.path}-shm")):
            leftover.unlink(missing_ok=True)
        sync(self.path.parent)
        os.rename(self.path, self._before_migration)
        sync(self.path.parent)
        os.rename(fresh, self.path)
        sync(self.path.parent)
        log.warning("%s was migrated", self.path)

    def _no_room(self, needed: int) -> StorageError:
        return StorageError(
            f"{self.path} has to be copied into a new layout, which needs {-(-needed >> 20)} MiB on its disk:"
            f" {self.free_bytes() >> 20} MiB are free",
            hint="make room, or move the file to a larger disk; it is unchanged",
        )

    def _copy(self, *, wanted: bool) -> None:
        """Replace the file by a copy of all that can be read, synced.

        After a failed sync, the system may treat pages as written although they never were; reading them proves
        nothing. So the whole file is written anew before anything else is written. Raises StorageError when this is not
        `wanted`.
        """
        if not wanted:
            raise StorageError(
                f"the disk failed under {self.path} when it was last written",
                hint="once the disk is sound again, start with --recover: it copies all that can be read",
            )
        copied = self.path.with_name(self.path.name + ".copied")
        if not copied.exists():
            os.rename(self._copy_anew(), copied)
            sync(self.path.parent)
        # the copy is complete: after an interruption the next start goes on from here
        for leftover in (self._log, Path(f"{self.path}-shm")):
            leftover.unlink(missing_ok=True)
        sync(self.path.parent)  # the old log beside the new file would be taken for its own
        os.rename(copied, self.path)
        self._mark.unlink()
        sync(self.path.parent)
        log.warning("%s was copied after a failure of the disk", self.path)

    def _copy_anew(self) -> Path:
        """Write all that can be read to a new file, sync it, and return its path."""
        fresh = self._fresh_path()
        connection = self.connect("rw")
        try:
            connection.execute("VACUUM INTO ?", (str(fresh),))
        finally:
            connection.close()
        copy = sqlite3.connect(fresh, isolation_level=None)
        try:
            copy.execute("PRAGMA journal_mode = WAL")
        finally:
            copy.close()
        sync(fresh)
        return fresh

    def _read_layout(self, connection: sqlite3.Connection) -> int:
        """Return the layout number of the file, which needs room for the index of its log (`-shm`).

        The ballast is dropped for it. Raises as `_layout` does.
        """
        try:
            return self._layout(connection)
        except sqlite3.Error as error:
            if not has_no_room(error):
                raise
        self.drop_ballast()
        return self._layout(connection)

    def _layout(self, connection: sqlite3.Connection) -> int:
        """Return the layout number of the file. Raises sqlite3.DatabaseError if it is not easq's, or of a later one."""
        if self.path.stat().st_size == 0:
            raise sqlite3.DatabaseError("the file is empty")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is another program's SQLite file")
        if not 0 < version <= SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"its schema is version {version}, this easq knows {SCHEMA_VERSION}")
        return int(version)

    def _fresh_path(self) -> Path:
        """Make an empty `.new` file that only its owner can read, and return its path."""
        self._remove_fresh()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(self._fresh, flags, 0o600))
        return self._fresh

    def _remove_fresh(self) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{self._fresh}{suffix}").unlink(missing_ok=True)

    @property
    def _fresh(self) -> Path:
        return self.path.with_name(self.path.name + ".new")

    @property
    def _before_migration(self) -> Path:
        return self.path.with_name(self.path.name + ".v1")

    @property
    def _mark(self) -> Path:
        return self.path.with_name(self.path.name + ".failed")

    def mark_failed(self) -> None:
        """Mark the file, as far as the disk still allows it, so that the next start is warned."""
        try:
            os.close(os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            sync(self.path.parent)
        except OSError as reason:
            log.error("%s: %s", self._mark, reason.strerror)

    # -- space ---------------------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Return the free bytes of the disk."""
        status = os.statvfs(self.path.parent)
        return status.f_bavail * status.f_frsize

    def room_bytes(self, connection: sqlite3.Connection) -> int:
        """Return how many bytes can still be stored: in free pages of the file, which are used first, and on the disk.

        The bytes by which the file will grow when the log is copied back are subtracted. The space of a log of usual
        length is reused, and counts as free: otherwise the result would vary with the log.
        """
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        disk, growth = self.free_bytes(), self._growth(connection)
        if disk < growth:
            return 0
        return int(free * size) + disk - growth + min(self.log_bytes(), LOG_BYTES)

    def can_grow_by_ballast(self, connection: sqlite3.Connection) -> bool:
        """Return whether the log can be copied back only after the ballast is dropped."""
        room, growth = self.free_bytes(), self._growth(connection)
        return self._ballast.exists() and room < growth <= room + BALLAST_BYTES

    def _growth(self, connection: sqlite3.Connection) -> int:
        """Return by how many bytes the file grows when the log is copied back."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
        return max(0, int(pages * size) - self.path.stat().st_size)

    def log_bytes(self) -> int:
        """Return the length of the write-ahead log."""
        try:
            return os.stat(self._log).st_size
        except FileNotFoundError:
            return 0

    @property
    def _ballast(self) -> Path:
        return self.path.with_name(self.path.name + ".ballast")

    def drop_ballast(self) -> None:
        """Delete the ballast, to free its space."""
        self._ballast.unlink(missing_ok=True)

    def make_ballast(self) -> None:
        """Create the ballast if there is plenty of space."""
        if self._ballast.exists():
            return
        if self.free_bytes() < RESERVE_BYTES + 2 * BALLAST_BYTES:
            return
        try:
            handle = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, BALLAST_BYTES)
                else:  # macOS
                    for _ in range(BALLAST_BYTES >> 20):
                        os.write(handle, bytes(1 << 20))
            finally:
                os.close(handle)
        except OSError as error:
            log.warning("no ballast: %s", error)


def is_full(error: BaseException) -> bool:
    """Return whether the error says that the disk, or the user's quota, is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}


def has_no_room(error: sqlite3.Error) -> bool:
    """Return whether the error of a start says that there is no room for the log or its index."""
    return getattr(error, "sqlite_errorcode", 0) in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}


def is_denied(error: BaseException | None) -> bool:
    """Return whether the error is one of permissions: nothing was written, and no written data was lost.

    A file system that has become read-only (EROFS) is not one: the system makes it so after a failure of the disk.
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        return code & 0xFF in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM} and (
            code != sqlite3.SQLITE_READONLY_DBMOVED
        )
    return isinstance(error, PermissionError)


def sync(path: Path) -> None:
    """Sync the file, or the list of names of the folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
