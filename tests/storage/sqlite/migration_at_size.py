"""`python -m tests.storage.sqlite.migration_at_size`: migrates a large file of layout 1, and shows that all is there.

Once undisturbed, with its time and room; killed at each call that opens, renames, removes or syncs a file, and at
random times; ended by SIGTERM; and on disks that are too small or fill up meanwhile. After each the next start has to
find all items, groups and counters, compared by SHA-256. If it does not, the last line says so, and the exit status is
1.

A million items take about twenty minutes, 1.5 GB of disk and 1 GB of memory for the small disks. These are mounted in a
mount namespace of this process, which takes root or a system that lets users have one.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from easq.storage.sqlite.data_file import RESERVE_BYTES, DataFile
from easq.storage.sqlite.migration import room_for_copy
from tests.storage.sqlite.killed_migration import KILLED, fork, run, start
from tests.storage.sqlite.layout1 import QUEUES, digest, write_large_layout_1
from tests.support.disk import mount, unmount, use_up
from tests.support.process import ROOT, Service, freeze, thaw

NAME = "tests.storage.sqlite.migration_at_size"
#: how long one start may take, in seconds
PATIENCE_S = 900.0
#: exit codes of `easq serve` in the README
STORAGE, TERMINATED = 74, 143
#: what a start leaves in the folder of a migrated file; the ballast is there if the disk has room for it
LEFT = {"easq.db", "easq.db.v1", "easq.db.lock", "easq.db.ballast"}
MIB = 1 << 20
#: what a start says on a disk that is too small
NO_ROOM = r"needs \d+ MiB on its disk: \d+ MiB are free$"
#: what it says on a disk without any room
DISK_FULL = r"cannot be opened: its disk is full$"


#: parts that can be shown alone, and those that need small disks
PARTS = ("steps", "times", "sigterm", "limit", "small", "full")
DISKS = ("small", "full")


class Lost(Exception):
    """Something is not as it has to be."""


def require(holds: bool, *what: str) -> None:
    """Raise Lost unless it holds."""
    if not holds:
        raise Lost(" ".join(what))


class Shown:
    """A data file of layout 1, what has to be found after its migration, and the folder where it is tried."""

    def __init__(self, folder: Path, items: int) -> None:
        self.folder = folder
        self.original = folder / "original"
        self.original.mkdir()
        write_large_layout_1(self.original / "easq.db", items)
        self.size = used_bytes(self.original)
        whole = self.copy("whole")
        with closing(DataFile(whole).connect("rw")) as connection:
            #: free space that a migration asks for
            self.needed = room_for_copy(connection) + RESERVE_BYTES
        #: of all items, groups and counters
        self.expected = digest(whole)
        #: of the old file once its log is copied back, as it is kept
        self.before = sha256(whole)
        shutil.rmtree(whole.parent)
        # of the undisturbed migration: seconds, and the size of the new file
        self.took_s, self.copied = 0.0, 0

    def copy(self, name: str) -> Path:
        """Return the data file in a new folder, or in one that is empty."""
        shutil.copytree(self.original, self.folder / name, dirs_exist_ok=True)
        return self.folder / name / "easq.db"

    def check(self, path: Path, what: str) -> None:
        """Raise Lost unless the file is migrated, whole, and has the old one beside it."""
        found = digest(path)
        require(found == self.expected, f"{what}: {path} holds {found}, expected {self.expected}")
        self.check_old(Path(f"{path}.v1"), what)
        names = {file.name for file in path.parent.iterdir()}
        require(LEFT - {"easq.db.ballast"} <= names <= LEFT, f"{what}: in the folder are", *sorted(names))

    def check_old(self, path: Path, what: str) -> None:
        """Raise Lost unless the file is the old one, byte for byte, with its log in it."""
        found = sha256(path)
        require(found == self.before, f"{what}: {path} is {found}, expected {self.before}")

    def serve(self, path: Path, name: str) -> Service:
        """Return a service on the file, which is not started."""
        folder = self.folder / f"home-{name}"
        folder.mkdir()
        # no group is forgotten meanwhile
        options = ("--group-retention", "1h", *(word for queue in QUEUES for word in ("--queue", queue)))
        service = Service(folder, f"sqlite:{path}", options, "")
        service.is_forked = False
        service.patience_s = PATIENCE_S
        return service

    # -- undisturbed -----------------------------------------------------------------------------------------------

    def show_undisturbed(self) -> None:
        """Migrate once; measure the time and the room."""
        path = self.copy("undisturbed")
        began = time.monotonic()
        pid = fork(partial(start, path))
        peak, code = 0, None
        while code is None:
            ended, status = os.waitpid(pid, os.WNOHANG)
            peak = max(peak, used_bytes(path.parent))
            code = os.waitstatus_to_exitcode(status) if ended else time.sleep(0.01)
        self.took_s = time.monotonic() - began
        require(code == 0, f"undisturbed: exit status {code}")
        self.copied = path.stat().st_size
        self.check(path, "undisturbed")
        old = Path(f"{path}.v1").stat().st_size
        say(
            f"undisturbed: {self.took_s:.1f} s; at most {mib(peak)} in the folder, {peak / self.size:.2f} times what "
            f"was there; the new file has {mib(self.copied)}, the old one {mib(old)}; {mib(self.needed)} were asked for"
        )
        shutil.rmtree(path.parent)

        path = self.copy("served")
        service = self.serve(path, "served")
        ready_s = []
        for _ in range(2):
            service.start()
            ready_s.append(service.seconds_to_ready)
            code = service.terminate()
            require(code == 0, f"serve: exit status {code}", service.log.read_text())
        self.check(path, "serve")
        shutil.rmtree(path.parent)
        say(
            f"serve: ready after {ready_s[0]:.1f} s with the migration, after {ready_s[1]:.1f} s the next time"
        )

    # -- killed ----------------------------------------------------------------------------------------------------

    def show_kills_at_each_step(self) -> None:
        """Kill the migration before each call that opens, renames, removes or syncs a file."""
        step, code = 0, KILLED
        while code == KILLED:
            step += 1
            what = f"killed at step {step}"
            path = self.copy("killed")
            code = run(partial(start, path, step))
            require(code in {0, KILLED}, f"{what}: exit status {code}")
            self._start_again(path, what)
        require(step > 20, f"killed at {step - 1} steps only")
        say(f"killed at each of {step - 1} steps: whole after the next start")

    def show_kills_at_random_times(self, number: int) -> None:
        """Kill the migration at `number` random times."""
        cut = 0
        for _ in range(number):
            after_s = random.uniform(0, self.took_s)
            what = f"killed after {after_s:.3f} s"
            path = self.copy("killed")
            pid = fork(partial(start, path))
            time.sleep(after_s)
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            require(code in {0, KILLED}, f"{what}: exit status {code}")
            cut += not Path(f"{path}.v1").exists()
            self._start_again(path, what)
        say(f"killed at {number} random times, {cut} of them before the end: whole after the next start")

    def _start_again(self, path: Path, what: str) -> None:
        code = run(partial(start, path))
        require(code == 0, f"{what}: exit status {code} of the next start")
        self.check(path, what)
        shutil.rmtree(path.parent)

    # -- ended by a signal -----------------------------------------------------------------------------------------

    def show_sigterm(self) -> None:
        """End `easq serve` in the middle of its migration."""
        for share in (0.5, 0.3, 0.1, 0.0):
            path = self.copy("terminated")
            service = self.serve(path, f"terminated-{share}")
            ended = self._disturb(service, path, share, lambda pid: os.kill(pid, signal.SIGTERM))
            if ended is not None and not Path(f"{path}.v1").exists():
                break
            ended = None
            shutil.rmtree(path.parent)
        if ended is None:
            raise Lost("SIGTERM: the migration was over each time")
        code, said = ended
        require(code == TERMINATED, f"SIGTERM: exit status {code}, expected {TERMINATED}: {said}")
        require("Traceback" not in said, f"SIGTERM: {said}")
        require(not Path(f"{path}.new").exists(), "SIGTERM: the copy was left")
        self.check_old(path, "SIGTERM")
        service.start()
        ready_s = service.seconds_to_ready
        code = service.terminate()
        require(code == 0, f"after SIGTERM: exit status {code}")
        self.check(path, "after SIGTERM")
        shutil.rmtree(path.parent)
        say(
            f"SIGTERM at {share:.0%} of the copy: exit status {TERMINATED}; then ready after {ready_s:.1f} s, whole"
        )

    def _disturb(
        self, service: Service, path: Path, share: float, act: Callable[[int], object]
    ) -> tuple[int, str] | None:
        """Start the service, do `act` once that share of the copy is written, and return its exit status and stderr.

        The process stands still meanwhile. Return None if the migration was over before. It may also have been so close
        to its end that `act` did not prevent it: the old file then has its new name.
        """
        fresh, old = Path(f"{path}.new"), Path(f"{path}.v1")
        with subprocess.Popen(
            service.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=service.environ(),
        ) as process:
            try:
                while process.poll() is None and not old.exists() and size_of(fresh) <= share * self.copied:
                    time.sleep(0.0005)
                if process.poll() is None:
                    freeze(process.pid)
                if old.exists():
                    return None
                act(process.pid)
                thaw(process.pid)
                _, said = process.communicate(timeout=PATIENCE_S)
            finally:
                process.kill()
        return process.returncode, said

    # -- full disks ------------------------------------------------------------------------------------------------

    def show_small_disks(self) -> None:
        """Start on disks that have no room for the copy from the beginning."""
        shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
        free = [int(share * self.needed) for share in shares] + [self.needed - MIB]
        before = self._bytes(self.original / "easq.db")
        for room in free:
            what = f"{mib(room)} free of {mib(self.needed)}"
            with self._disk(room) as path:
                service = self.serve(path, f"small-{room}")
                self._refused(service, what, NO_ROOM if room else DISK_FULL)
                require(self._bytes(path) == before, f"{what}: the old file or its log was changed")
                self._check_left(path, what)
                self._resize(2 * self.needed)
                service.start()
                service.terminate()
                self.check(path, what)
        sizes = f"{mib(free[0])} to {mib(free[-1])} free"
        say(f"{len(free)} disks with {sizes}: refused, the old file and its log unchanged")

    def show_disks_that_fill(self) -> None:
        """Let others take the room that was there when the migration began."""
        shares = [0.02, 0.3, 0.6, 0.85]
        for number, share in enumerate(shares):
            while not self._fill(share):
                require(share > 0.001, "a disk that fills: the migration was over each time")
                shares[number] = share = share / 2
        said = ", ".join(f"{share:.0%}" for share in shares)
        say(f"disks that were full at {said} of the copy: refused, the old file unchanged")

    def _fill(self, share: float) -> bool:
        """Fill the disk at that share of the copy, and return whether that was before the end.

        If the copy needed no more room, the file is migrated, and the disk is too full to open it.
        """
        what = f"a disk that is full at {share:.0%} of the copy"
        with self._disk(self.needed + MIB) as path:
            others = path.with_name("others")
            service = self.serve(path, f"full-{share}")
            ended = self._disturb(service, path, share, lambda _: use_up(others))
            if ended is None:
                return False
            in_time = not Path(f"{path}.v1").exists()
            self._check_said(*ended, what, NO_ROOM if in_time else DISK_FULL)
            if in_time:
                self.check_old(path, what)
                self._check_left(path, what)
            others.unlink()
            service.start()
            service.terminate()
            self.check(path, what)
        return in_time

    def show_file_limit(self) -> None:
        """Let no file become as large as the new one has to be (RLIMIT_FSIZE)."""
        what = "a limit of the file size"
        path = self.copy("limited")
        service = self.serve(path, "limited")
        service.under = ("prlimit", f"--fsize={size_of(path) // 2}", "--")
        self._refused(service, what, "cannot be copied into a new layout: disk I/O error$")
        self._check_left(path, what)
        service.under = ()
        service.start()
        service.terminate()
        self.check(path, what)
        shutil.rmtree(path.parent)
        say("a limit of the file size: refused, whole without it")

    def _refused(self, service: Service, what: str, wanted: str = NO_ROOM) -> None:
        done = service.run()
        self._check_said(done.returncode, done.stderr, what, wanted)

    def _check_said(self, code: int, said: str, what: str, wanted: str = NO_ROOM) -> None:
        """Raise Lost unless the service ended as documented, and one line says why, as `wanted` does."""
        require(code == STORAGE, f"{what}: exit status {code}, expected {STORAGE}: {said}")
        errors = [line for line in said.splitlines() if line.startswith("easq: ") and "warning" not in line]
        one_line = len(errors) == 1 and re.search(wanted, errors[0])
        require(bool(one_line) and "Traceback" not in said, f"{what}: it said {said}")

    def _check_left(self, path: Path, what: str) -> None:
        left = [
            suffix
            for suffix in (".new", ".v1", ".new-journal", ".ballast")
            if Path(f"{path}{suffix}").exists()
        ]
        require(not left, f"{what}: left over:", *left)

    @contextmanager
    def _disk(self, room: int) -> Iterator[Path]:
        """A copy of the file on a small disk, with `room` bytes free."""
        disk = self.folder / "disk"
        error = mount(disk, 2 * self.size + 2 * self.needed)
        require(not error, f"a small disk: {error}")
        try:
            path = self.copy("disk")
            self._resize(used_bytes(disk) + room)
            yield path
        finally:
            unmount(disk)

    def _resize(self, size: int) -> None:
        size = -(-size // os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PAGE_SIZE")
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder / "disk")], check=True)

    @staticmethod
    def _bytes(path: Path) -> tuple[str, str]:
        return sha256(path), sha256(Path(f"{path}-wal"))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def used_bytes(folder: Path) -> int:
    """Return how much of the disk the files of the folder take."""
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def size_of(path: Path) -> int:
    """Return the size of a file; -1 when there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def mib(size: int) -> str:
    """Return a size to read."""
    return f"{size / MIB:.0f} MiB"


def say(line: str) -> None:
    """Print what was shown, at once."""
    print(line, flush=True)


def namespace() -> Sequence[str] | None:
    """Return the command that runs another one where it can mount disks of its own; None when this is not allowed."""
    with tempfile.TemporaryDirectory() as folder:
        for options in ((), ("--map-root-user",)):
            command = ("unshare", "--mount", *options, "--")
            try:
                if not mount(Path(folder), MIB, under=command):
                    return command
            except FileNotFoundError:
                return None
    return None


def main() -> int:
    """Shows what the command line asks for."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="in the data file")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; repeatable")
    parser.add_argument("--kills", type=int, default=10, help="at random times")
    parser.add_argument("--seed", type=int, default=None, help="of the random times; printed")
    parser.add_argument("--folder", type=Path, help="where the files are made; they are removed")
    parser.add_argument("--mounts", choices=("try", "yes", "no"), default="try", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.mounts == "try":
        prefix = namespace()
        again = (sys.executable, "-W", "error", "-m", NAME, *sys.argv[1:])
        command = (*(prefix or ()), *again, "--mounts", "yes" if prefix else "no")
        os.chdir(ROOT)
        os.execvp(command[0], command)
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    random.seed(seed)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        try:
            began = time.monotonic()
            shown = Shown(Path(folder), asked.items)
            say(f"{asked.items} items in {mib(shown.size)}, seed {seed}, SHA-256 of all {shown.expected}")
            shown.show_undisturbed()
            parts = {
                "steps": shown.show_kills_at_each_step,
                "times": partial(shown.show_kills_at_random_times, asked.kills),
                "sigterm": shown.show_sigterm,
                "limit": shown.show_file_limit,
                "small": shown.show_small_disks,
                "full": shown.show_disks_that_fill,
            }
            for name in asked.only or PARTS:
                if name in DISKS and asked.mounts != "yes":
                    say(f"{name}: NOT SHOWN, no disk can be mounted here")
                else:
                    parts[name]()
        except Lost as lost:
            say(f"LOST: {lost}")
            return 1
    say(f"all of it came out whole, in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
