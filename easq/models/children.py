"""Child processes: kills commands when easq ends, for any reason, and reaps orphans if easq is PID 1."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

log = logging.getLogger(__name__)

#: the guard: it reads `+ GROUP` and `- GROUP` until its input ends, and then kills the remaining groups. It is a shell,
#: which takes a tenth of the memory of a Python process
_GUARD = """
groups=
while read -r sign group; do
  if [ "$sign" = + ]; then groups="$groups $group"; continue; fi
  left=
  for one in $groups; do [ "$one" = "$group" ] || left="$left $one"; done
  groups=$left
done
for one in $groups; do kill -s KILL -- "-$one"; done
"""
#: seconds between two searches of PID 1 for orphans that have ended
_REAP_EVERY_S = 1.0


class Children:
    """The running commands of this process, each the leader of a process group.

    One guard process, started with the first command, reads a pipe from this process. When this process ends, for any
    reason, the pipe is closed and the guard kills the remaining groups. PR_SET_PDEATHSIG is no alternative: it kills a
    command when the thread that started it ends, and needs `preexec_fn`, which costs 25 ms for each command.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: set[int] = set()
        self._groups: set[int] = set()
        self._starting = 0
        self._guard: subprocess.Popen[bytes] | None = None
        self._has_failed = False
        self._is_reaping = False

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a command with `subprocess.Popen`; it is killed with its group when this process ends.

        `ended` has to be called after it was waited for.
        """
        self.reap_as_init()
        with self.starting():
            with self._lock:
                self._begin()
            process = subprocess.Popen(argv, start_new_session=True, **options)
            # if this process is killed before the guard knows the command (< 1 ms), the command lives on
            with self._lock:
                self._known.add(process.pid)
                self._groups.add(process.pid)
                self._tell(f"+ {process.pid}\n")
        return process

    def ended(self, pid: int) -> None:
        """Forget a command after it was waited for. Its background processes continue."""
        with self._lock:
            self._known.discard(pid)
            if pid in self._groups:
                self._groups.remove(pid)
                self._tell(f"- {pid}\n")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Suspend `reap` while a process is started within this context, until its id is known."""
        with self._lock:
            self._starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1

    def add(self, pid: int) -> None:
        """Exclude a process from `reap`, since other code waits for it. It is not killed when this process ends."""
        with self._lock:
            self._known.add(pid)

    def reap(self) -> int:
        """Reap orphans that have ended, and return their number. Processes of `start` and `add` are not touched."""
        count = 0
        with self._lock:
            while not self._starting:
                try:
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    break
                ours = self._known | ({self._guard.pid} if self._guard is not None else set())
                if found is None or found.si_pid in ours:
                    break  # its owner will wait for it; `waitid` reports later orphans in the next call
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.si_pid, os.WNOHANG)
                count += 1
        return count

    def reap_as_init(self) -> None:
        """Start a thread that calls `reap` regularly, if this is PID 1: all orphans become its children."""
        if os.getpid() != 1 or self._is_reaping:
            return
        self._is_reaping = True

        def run() -> None:
            while True:
                time.sleep(_REAP_EVERY_S)
                self.reap()

        threading.Thread(target=run, name="easq-reaper", daemon=True).start()

    def _tell(self, line: str) -> None:
        """Write a line to the guard. If that fails, start a new guard, which is told all groups."""
        if self._guard is not None:
            try:
                os.write(_input_of(self._guard).fileno(), line.encode())
                return
            except OSError:  # it was killed, or it is stopped and its pipe is full
                self._guard.kill()
                _end_guard(self._guard)
                self._guard = None
        self._begin()

    def _begin(self) -> None:
        """Start a guard that knows all groups, unless there is one. If that fails, commands outlive a killed easq."""
        if self._guard is not None or self._has_failed:
            return
        try:
            self._guard = guard = _begin_guard()
            atexit.register(_end_guard, guard)
            told = "".join(f"+ {group}\n" for group in sorted(self._groups))
            os.write(_input_of(guard).fileno(), told.encode())
        except OSError as error:
            self._has_failed = True
            log.warning("commands will outlive easq if it is killed: no guard process: %s", error)


def _begin_guard() -> subprocess.Popen[bytes]:
    """Start and return a guard, in a session of its own so that Ctrl-C in a terminal does not end it."""
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd="/",
        env={},
        start_new_session=True,
    )
    os.set_blocking(_input_of(guard).fileno(), False)
    return guard


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    _input_of(guard).close()
    guard.wait()


def _input_of(guard: subprocess.Popen[bytes]) -> IO[bytes]:
    assert guard.stdin is not None
    return guard.stdin


#: the commands of this process
children = Children()
