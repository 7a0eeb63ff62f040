"""The service in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.forks import File, Run
from tests.support.http import Stream
from tests.support.waiting import PATIENCE_S, eventually

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = (sys.executable, "-W", "error", "-m")
#: runs a command for which the permissions of files hold, also where the tests are run by root (util-linux)
AS_ANYONE: Sequence[str] = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
)


class Service:
    """`easq serve` on a free port of 127.0.0.1. It can be killed, and started again on the same data."""

    def __init__(self, folder: Path, storage: str, options: Sequence[str], token: str) -> None:
        self.folder = folder
        self.token = token
        self.log = folder / "serve.log"
        self.storage = storage
        self.options = options
        self.wanted_port = 0
        self.program: Sequence[str] = ("easq",)
        self.under: Sequence[str] = ()  # a command that runs the service, such as a tracer
        self.is_forked = True  # from a process that has imported easq; its memory is not all its own
        self.patience_s = PATIENCE_S  # within which it is ready, and has ended
        self._process: subprocess.Popen[bytes] | Run | None = None
        self._url = ""
        self.seconds_to_ready = 0.0

    @property
    def arguments(self) -> list[str]:
        """What is executed."""
        return [
            *self.under,
            *PYTHON,
            *self.program,
            "serve",
            *(() if "--port" in self.options else ("--port", str(self.wanted_port))),
            "--storage",
            self.storage,
            *self.options,
        ]

    def start(self) -> None:
        """The service answers requests: it has printed its address, on its first line."""
        assert self._process is None
        began = time.monotonic()
        with self.log.open("ab") as log:
            self._process = self.begin(log)
        line = self._first_line(self._process, self.patience_s)
        self.seconds_to_ready = time.monotonic() - began
        if not line.startswith("EASQ_URL="):
            code = self.kill()
            raise AssertionError(f"not ready: {line!r}, exit {code}, {self.log.read_text()}")
        self._url = line.removeprefix("EASQ_URL=").strip()

    def run(self) -> subprocess.CompletedProcess[str]:
        """Return what a service that refuses to start has said, and its exit code."""
        with self.begin(subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=self.patience_s)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(self.arguments, process.returncode, out.decode(), err.decode())

    def begin(self, stderr: File) -> subprocess.Popen[bytes] | Run:
        """Return the process, which has only begun to start."""
        if self.is_forked and not self.under and self.program == ("easq",):
            args = self.arguments[self.arguments.index("serve") :]
            return Run(args, stderr=stderr, environ=self.environ())
        return subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=self.environ(),
        )

    def environ(self) -> dict[str, str]:
        """An environment in which no profile and no token of whoever runs the tests is seen."""
        environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("EASQ_", "XDG_"))
        }
        environ |= {"HOME": str(self.folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return environ | ({"EASQ_TOKEN": self.token} if self.token else {})

    @staticmethod
    def _first_line(process: subprocess.Popen[bytes] | Run, patience_s: float) -> str:
        assert process.stdout is not None
        line = b""
        deadline = time.monotonic() + patience_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and selector.select(max(0.0, deadline - time.monotonic())):
                data = os.read(process.stdout.fileno(), 4096)
                if not data:
                    break
                line += data
        return line.partition(b"\n")[0].decode()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processor_s(self) -> float:
        """The processor time that the process has taken so far, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def port(self) -> int:
        return urlsplit(self._url).port or 0

    def url(self, queue: str = "qservice", *, sink: bool = False) -> str:
        """The address of a queue, or of its sink."""
        parts = urlsplit(self._url)
        return f"http://{parts.netloc}/api/predict/{queue}{'/sink' if sink else ''}"

    def stream(self, queue: str = "qservice") -> Stream:
        """A queue, in the raw."""
        headers = [("Authorization", self.token)] if self.token else []
        return Stream(self.port, f"/api/predict/{queue}", headers)

    def wait(self) -> int:
        """The exit code, once the process has ended by itself."""
        assert self._process is not None
        code = self._process.wait(self.patience_s)
        self._forget()
        return code

    def kill(self) -> int:
        """The process is gone, as by `kill -9`."""
        return self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """The process has ended in order."""
        return self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """The process stands still: its connections stay open, nothing is read, answered or sent."""
        freeze(self.pid)

    def thaw(self) -> None:
        """The process goes on."""
        thaw(self.pid)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        try:
            return self.wait()
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self._forget()

    def _forget(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None

    def restart(self) -> None:
        """Killed, and ready again on the same data."""
        self.kill()
        self.start()


def freeze(pid: int) -> None:
    """The process stands still (SIGSTOP), all of its threads."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _stands_still(pid))


def thaw(pid: int) -> None:
    """The process goes on (SIGCONT)."""
    os.kill(pid, signal.SIGCONT)


def _stands_still(pid: int) -> bool:
    """What /proc says; where there is none the signal has to do."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except FileNotFoundError:
        return True


def run_to_the_end(
    folder: Path, storage: str, *options: str, under: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """A service that is expected to refuse to start: its exit code and what it said."""
    service = Service(folder, storage, options, "")
    service.under = under
    return service.run()
