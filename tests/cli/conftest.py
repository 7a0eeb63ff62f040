"""easq run as a real process, on pipes or on a terminal, against a real service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pexpect
import pytest

from tests.support.forks import Forks
from tests.support.process import Service

if TYPE_CHECKING:
    from tests.support.terminal import Terminal

ROOT = Path(__file__).parents[2]

#: seconds until a test gives up on a process; none waits that long unless it fails
DEADLINE_S = 90.0
#: commands that import more than others have in common, or start processes of their own
_STARTED = {("serve",), ("demo",)}
#: what Python reads of the environment while it starts
_READ_AT_START = ("PYTHON", "LANG", "LC_", "LANGUAGE")


@dataclass(frozen=True)
class Done:
    """What a run of easq left behind."""

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
    """A process that does not outlive a test that fails, and is waited for with patience, not for ever."""

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


class Easq:
    """Runs `easq` with a home of its own and nothing of our environment that easq reads."""

    def __init__(self, home: Path, forks: Callable[[Mapping[str, str]], Forks]) -> None:
        self.home = home
        self._forks = forks
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
        environ = {**self.environ, **(env or {})}
        if args[:1] not in _STARTED and not any(name.startswith(_READ_AT_START) for name in env or ()):
            forks = self._forks(self.environ)
            return Done.of(
                *forks.run(args, stdin=stdin, environ=environ, folder=self.home, timeout_s=DEADLINE_S)
            )
        done = subprocess.run(
            self.argv(args),
            input=stdin,
            capture_output=True,
            env=environ,
            cwd=self.home,
            timeout=DEADLINE_S,
            check=False,
        )
        return Done.of(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, argv: Sequence[str] | None = None, **options: Any) -> Running:
        """A run that goes on beside the test, of `argv` in place of easq; stdin is empty."""
        return Running(
            argv or self.argv(args),
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "env": self.environ,
                "cwd": self.home,
                **options,
            },
        )

    def screen(self, *args: str | bytes, columns: int, env: Mapping[str, str] | None = None) -> Terminal:
        """A run on a terminal of so many columns, whose screen is looked at; in colour, as for a user."""
        from tests.support.terminal import Terminal

        environ = {key: value for key, value in self.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
        forks = self._forks(self.environ)
        return Terminal(forks, args, columns=columns, environ={**environ, **(env or {})}, folder=self.home)

    def terminal(self, *args: str, env: Mapping[str, str] | None = None) -> pexpect.spawn[bytes]:
        """A run on a terminal."""
        return pexpect.spawn(
            sys.executable,
            ["-m", "easq", *args],
            env={**self.environ, **(env or {})},
            cwd=self.home,
            timeout=DEADLINE_S,
            dimensions=(24, 200),
        )


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mapping[str, str]], Forks]]:
    """Forks runs of easq; what it is asked with first is the environment in which Python was started."""
    made: list[Forks] = []

    def make(environ: Mapping[str, str]) -> Forks:
        if not made:
            made.append(Forks(environ, tmp_path_factory.mktemp("forks")))
        return made[0]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def easq(tmp_path: Path, forks: Callable[[Mapping[str, str]], Forks]) -> Easq:
    """easq without any configuration."""
    return Easq(tmp_path, forks)


@pytest.fixture(scope="session")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[str]]:
    """Addresses of queues that nobody has used yet, all of one service that lives as long as the run."""
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


def finish(terminal: pexpect.spawn[bytes]) -> tuple[int | None, str]:
    """The exit status of a run on a terminal, and what it wrote since the last expectation."""
    terminal.expect(pexpect.EOF)
    rest = terminal.before.decode().replace("\r\n", "\n")
    terminal.close()
    return terminal.exitstatus, rest
