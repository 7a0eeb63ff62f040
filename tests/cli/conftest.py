"""easq run as a real process, on pipes or on a terminal, against a real service."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest
from pexpect import EOF
from pexpect.fdpexpect import fdspawn

from tests.support.forks import DEADLINE_S, Run, can_fork
from tests.support.process import Service

if TYPE_CHECKING:
    from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]

#: of the options of Popen, those that a fork understands
_OF_FORKS = {"stdin", "stdout", "stderr", "env", "cwd"}


@dataclass(frozen=True)
class Done:
    """The exit status and the output of a run of easq."""

    status: int
    out: bytes
    err: str

    @classmethod
    def of(cls, status: int, out: bytes, err: bytes) -> Done:
        return cls(status, out, err.decode())

    @property
    def text(self) -> str:
        return self.out.decode()


class Running(subprocess.Popen[bytes]):
    """A real process, for runs that a fork cannot do. It does not outlive a failing test; waits for it have a generous
    deadline.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, trace)

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(DEADLINE_S if timeout is None else timeout)

    def communicate(self, *args: Any, **options: Any) -> tuple[bytes, bytes]:
        return super().communicate(*args, **{"timeout": DEADLINE_S, **options})


class OnTerminal(fdspawn):
    """A run on a terminal, driven by pexpect."""

    def __init__(self, args: Sequence[str | bytes], *, environ: Mapping[str, str], folder: Path) -> None:
        main, side = pty.openpty()
        fcntl.ioctl(main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        super().__init__(main, timeout=DEADLINE_S)
        with open(side, "r+b", buffering=0) as file:
            self._run = Run(args, stdin=file, stdout=file, stderr=file, environ=environ, folder=folder)
        self.pid = self._run.pid

    def sendintr(self) -> None:
        self.send(b"\x03")

    def sendeof(self) -> None:
        self.send(b"\x04")

    def kill(self, number: int) -> None:
        self._run.send_signal(number)

    def close(self) -> None:
        super().close()
        self.exitstatus = self._run.wait()


class Easq:
    """Runs `easq` with its own home folder, and without the variables of this environment that easq reads."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONWARNINGS": "error",
            "NO_COLOR": "1",
            "TERM": "xterm",
            "COLUMNS": "100",
            "LANG": "C.UTF-8",
        }

    @property
    def config(self) -> Path:
        return self.home / ".config" / "easq" / "config.toml"

    def argv(self, args: Sequence[str | bytes]) -> list[str | bytes]:
        return [sys.executable, "-m", "easq", *args]

    def __call__(self, *args: str | bytes, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        with self.start(*args, stdin=subprocess.PIPE, env={**self.environ, **(env or {})}) as process:
            out, err = process.communicate(stdin)
        return Done.of(process.returncode, out, err)

    def start(self, *args: str | bytes, argv: Sequence[str] | None = None, **options: Any) -> Running | Run:
        """Start a run that continues in the background, of `argv` in place of easq; stdin is empty."""
        environ = options.setdefault("env", self.environ)
        options.setdefault("cwd", self.home)
        if argv is None and options.keys() <= _OF_FORKS and can_fork(environ, self.environ):
            return Run(args, environ=options.pop("env"), folder=options.pop("cwd"), **options)
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Running(argv or self.argv(args), **{**pipes, **options})

    def screen(self, *args: str | bytes, columns: int, env: Mapping[str, str] | None = None) -> Terminal:
        """Start a run on a terminal of `columns` columns, whose screen is compared; in colour, as for a user."""
        from tests.support.terminal import Terminal

        environ = {key: value for key, value in self.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        return Terminal(args, columns=columns, environ={**environ, **(env or {})}, folder=self.home)

    def terminal(self, *args: str, env: Mapping[str, str] | None = None) -> OnTerminal:
        """A run on a terminal of 200 columns."""
        return OnTerminal(args, environ={**self.environ, **(env or {})}, folder=self.home)


@pytest.fixture
def easq(tmp_path: Path) -> Easq:
    """easq without any configuration."""
    return Easq(tmp_path)


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[str]]:
    """Addresses of unused queues of one service, which runs for the whole test run."""
    queues = [f"q{number}" for number in range(1000)]
    options = ["--retry-delay", "0s,100ms", *(word for queue in queues for word in ("--queue", queue))]
    service = Service(tmp_path_factory.mktemp("shared"), "memory:", options, "")
    service.start()
    yield (service.url(queue) for queue in queues)
    service.kill()


@pytest.fixture
def url(names: Iterator[str]) -> str:
    """The address of an empty queue."""
    return next(names)


@pytest.fixture
def queue(easq: Easq, url: str) -> Easq:
    """easq with an empty queue as its current profile, as `easq config --url URL` saves it."""
    easq.config.parent.mkdir(parents=True, mode=0o700)
    easq.config.touch(mode=0o600)
    easq.config.write_text(f'version = 1\nprofile = "default"\n\n[profiles.default]\nurl = "{url}"\n')
    return easq


def finish(terminal: OnTerminal) -> tuple[int | None, str]:
    """Return the exit status of a run on a terminal, and its output since the last expectation."""
    terminal.expect(EOF)
    rest = terminal.before.decode().replace("\r\n", "\n")
    terminal.close()
    return terminal.exitstatus, rest
