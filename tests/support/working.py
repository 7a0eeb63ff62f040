"""Workers and models in processes of their own, as a user starts them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.forks import Run
from tests.support.process import PYTHON, ROOT, Service
from tests.support.waiting import eventually


@contextmanager
def classifier() -> Iterator[str]:
    """The real model as a service; its address."""
    command = [sys.executable, "-W", "error", str(ROOT / "tests" / "classifier.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


class Working:
    """`easq work` as a process."""

    def __init__(
        self,
        service: Service,
        *args: str,
        user: str,
        program: Sequence[str] = ("easq",),
        queue: str = "qservice",
    ) -> None:
        self.user = user
        self.service = service
        self.queue = queue
        args = ("work", "--user", user, "--url", service.url(queue), "-q", "-o", "json", *args)
        environ = service.environ()
        self.log = service.folder / f"{user}.log"
        self.process: subprocess.Popen[bytes] | Run
        with self.log.open("ab") as log:
            if program == ("easq",):
                self.process = Run(args, stdout=log, stderr=log, environ=environ, folder=service.folder)
                return
            self.process = subprocess.Popen(
                [*PYTHON, *program, *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                cwd=service.folder,
            )

    def is_watching(self) -> bool:
        """Whether the service sees it."""
        values = self.service.stream(self.queue).attributes().values()
        return any(f".{self.user}, " in value and "Status: Running" in value for value in values)

    def wait_until_watching(self) -> Working:
        eventually(lambda: self.is_watching() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        """As by kill -9."""
        self.process.kill()
        self.process.wait(60)


@contextmanager
def working(service: Service, *args: str, user: str = "w0", **options: str) -> Iterator[Working]:
    """A worker that watches, and is ended in order."""
    worker = Working(service, *args, user=user, **options)
    try:
        yield worker.wait_until_watching()
        assert worker.terminate() == 0, worker.log.read_text()
    finally:
        worker.kill()
