"""What comparisons share: services, files and clients. Each is made when it is first wanted."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from tests.bench.deep import fill
from tests.support.process import ROOT, Service
from tests.support.sdk import make_sdk, run

#: bytes of an item
SIZE = 256
_PATIENCE_S = 600.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    items: int  #: of a bulk put, a watch, a predict
    loop_items: int  #: of a loop over the official SDK
    operations: int  #: of one kind, one after the other
    backlog: int  #: items that wait in the deep queue
    watchers: int  #: that are idle
    seconds: float  #: of a run of wrk


class World:
    """A durable service with a fresh queue for each measurement, and all else; a context manager."""

    def __init__(self, folder: Path, sizes: Sizes, *, queues: int) -> None:
        self.folder, self.sizes = folder, sizes
        self._queues = [f"q{number}" for number in range(queues)]
        self._names = iter(self._queues)
        self.at_end = ExitStack()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.at_end.close()

    # services

    @cached_property
    def service(self) -> Service:
        """The durable service, with defaults."""
        return self.serve("easq", self._queues)

    def queue(self) -> str:
        """A queue of `service` that nobody has used."""
        return next(self._names)

    @cached_property
    def deep(self) -> Service:
        """A durable service whose queue `deep` holds the backlog, and `flat` a thousand items."""
        folder = self.folder / "deep"
        folder.mkdir()
        print(f"filling a queue with {self.sizes.backlog} items", file=sys.stderr)
        fill(folder / "easq.db", {"deep": self.sizes.backlog, "flat": 1000}, SIZE)
        return self.serve("deep", ["deep", "flat"], "--max-length", str(2 * self.sizes.backlog + 1_000_000))

    def serve(self, name: str, queues: list[str], *options: str) -> Service:
        """A durable service with its data in the folder `name`, until the end."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        all_options = [*(word for queue in queues for word in ("--queue", queue)), *options]
        service = Service(folder, f"sqlite:{folder / 'easq.db'}", all_options, "")
        service.is_forked = False
        self.at_end.callback(service.kill)
        service.start()
        return service

    def server(self, module: str) -> int:
        """The port of a server that a module of this folder is, in a process of its own."""
        command = [sys.executable, "-m", f"tests.bench.{module}"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        self.at_end.callback(process.wait)
        self.at_end.callback(process.kill)
        assert process.stdout is not None
        with process.stdout as out:
            return int(out.readline())

    @cached_property
    def lean(self) -> int:
        """The port of the discovery of three lean instances."""
        return self.server("lean")

    @cached_property
    def bare(self) -> int:
        """The port of an aiohttp server that only reads and answers."""
        return self.server("bare")

    # clients

    @cached_property
    def sdk(self) -> Path:
        """A Python with the official SDK."""
        cache = ROOT / "build" / "bench"
        cache.mkdir(parents=True, exist_ok=True)
        return make_sdk(cache)

    @cached_property
    def lines(self) -> Path:
        """A file with a line for each item."""
        lines = self.folder / "lines"
        lines.write_bytes(b"".join(b"%-*d\n" % (SIZE, number) for number in range(self.sizes.items)))
        return lines

    def easq(self, *args: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """A run of easq that exits with 0, with variables of `environ` added to the environment."""
        script = Path(sys.executable).with_name("easq")  # what people run; `python -m` takes longer
        return self.process(str(script), *args, **environ)

    def python(self, code: str) -> None:
        """A run of our Python, which has the same packages."""
        self.process(sys.executable, "-c", code)

    def script(self, script: str, *args: object) -> str:
        """What a script with the official SDK prints."""
        command: list[Path | str] = [self.sdk, "-c", script, *map(str, args)]
        return run(command, timeout_s=_PATIENCE_S).stdout

    def process(self, *command: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
        """A run of any command that exits with 0, where no profile is seen. Its output goes through a file: to read
        a pipe would take time of the processor that is measured.
        """
        with tempfile.TemporaryFile() as out:
            done = self._run(command, out, environ)
            out.seek(0)
            done.stdout = out.read()
        return done

    def _run(
        self, command: Sequence[str], out: IO[bytes], more: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        environ = self.service.environ() | {"PYTHONWARNINGS": "ignore", **more}
        # compiled modules are cached, as they are for users
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env=environ,
            cwd=self.folder,
            timeout=_PATIENCE_S,
            check=True,
        )


def seconds(act: Callable[[], object]) -> float:
    """How long it took."""
    began = time.monotonic()
    act()
    return time.monotonic() - began


def processor_seconds(act: Callable[[], object]) -> float:
    """Processor time, user and system, of the processes that `act` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def resident(service: Service) -> int:
    """The memory of a service that is resident, in bytes."""
    for line in Path(f"/proc/{service.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("a process without memory")
