"""The commands that easq starts: none outlives it, however it ends, and as PID 1 it reaps what others leave behind."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

log = logging.getLogger(__name__)

#: a shell, since it takes a tenth of the memory of a Python; it reads `+ GROUP` and `- GROUP` until we are gone
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
#: how often PID 1 looks for processes that ended and that nobody waits for, in seconds
_REAP_EVERY_S = 1.0


class Children:
    """The commands of this process that run now, each the leader of a process group.

    PR_SET_PDEATHSIG would be lost with the thread that started the command, and needs `preexec_fn`, which costs 25 ms
    a command. So one guard process, begun with the first command, holds the end of a pipe: it closes however this
    process ends, and then the guard kills the groups that it was told of.
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
        """Start a command as `subprocess.Popen` does; it is killed with its group when this process ends.

        `ended` has to be called when it has been waited for.
        """
        self.reap_as_init()
        with self.starting():
            with self._lock:
                self._begin()
            process = subprocess.Popen(argv, start_new_session=True, **options)
            # a kill of this process from here to the next lines leaves the command behind: less than a millisecond
            with self._lock:
                self._known.add(process.pid)
                self._groups.add(process.pid)
                self._tell(f"+ {process.pid}\n")
        return process

    def ended(self, pid: int) -> None:
        """Forget a command that was waited for; what it left running in the background lives on."""
        with self._lock:
            self._known.discard(pid)
            if pid in self._groups:
                self._groups.remove(pid)
                self._tell(f"- {pid}\n")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Keep `reap` from a process that is started within, until it is known."""
        with self._lock:
            self._starting += 1
        try:
            yield
        finally:
            with self._lock:
                self._starting -= 1

    def add(self, pid: int) -> None:
        """Leave the process to whoever waits for it. It lives on when this one ends."""
        with self._lock:
            self._known.add(pid)

    def reap(self) -> int:
        """Wait for processes that ended and are none of ours, and return how many there were."""
        count = 0
        with self._lock:
            while not self._starting:
                try:
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    break
                ours = self._known | ({self._guard.pid} if self._guard is not None else set())
                if found is None or found.si_pid in ours:
                    break  # its owner is about to wait for it; what is behind it is found the next time
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.si_pid, os.WNOHANG)
                count += 1
        return count

    def reap_as_init(self) -> None:
        """Have a thread `reap` from now on where this is PID 1: whoever loses its parent becomes its child."""
        if os.getpid() != 1 or self._is_reaping:
            return
        self._is_reaping = True

        def run() -> None:
            while True:
                time.sleep(_REAP_EVERY_S)
                self.reap()

        threading.Thread(target=run, name="easq-reaper", daemon=True).start()

    def _tell(self, line: str) -> None:
        """Tell the guard, or a new one everything."""
        if self._guard is not None:
            try:
                os.write(self._guard.stdin.fileno(), line.encode())  # type: ignore[union-attr]
                return
            except OSError:  # it was killed, or stands still and its pipe is full
                self._guard.kill()
                _end_guard(self._guard)
                self._guard = None
        self._begin()

    def _begin(self) -> None:
        """Have a guard, which knows all groups. Without one, commands live on when this process is killed."""
        if self._guard is not None or self._has_failed:
            return
        try:
            self._guard = guard = _begin_guard()
            atexit.register(_end_guard, guard)
            told = "".join(f"+ {group}\n" for group in sorted(self._groups))
            os.write(self._guard.stdin.fileno(), told.encode())  # type: ignore[union-attr]
        except OSError as error:
            self._has_failed = True
            log.warning("commands are not ended when easq is killed: no guard process: %s", error)


def _begin_guard() -> subprocess.Popen[bytes]:
    """Return a guard in a session of its own, where no Ctrl-C of a terminal reaches it."""
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
    assert guard.stdin is not None
    os.set_blocking(guard.stdin.fileno(), False)
    return guard


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    guard.wait()


#: of this process
children = Children()
