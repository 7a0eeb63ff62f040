"""`easq demo`: the main commands, run on a temporary service, with their real output."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easq.cli.command import command
from easq.net.files import replace

if TYPE_CHECKING:
    from pathlib import Path

    from easq.cli.app import App

#: maximum time of one command, and of the start of the service, in seconds
_PATIENCE_S = 60


@command("demo", examples=("easq demo", "easq demo -q && echo easq works here"))
def demo(app: App) -> None:
    """Show the main commands on a temporary service.

    The exit code is 0 only if every step gave the expected output.
    """
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="easq-demo-") as folder:
        tour = Tour(app, Path(folder))
        try:
            tour.run()
        finally:
            tour.stop()
    if tour.failed:
        from easq.errors import CheckFailed

        raise CheckFailed(f"{len(tour.failed)} of {tour.steps} steps failed: {'; '.join(tour.failed)}")
    app.printer.lines(("", f"All {tour.steps} steps gave the expected output."))


@dataclass
class Tour:
    """One run of the demo: the service, the environment of its commands, and the steps that failed."""

    app: App
    folder: Path
    steps: int = 0
    failed: list[str] = field(default_factory=list)
    service: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Run and print every step; none if the service does not start."""
        url = self._start()
        if self.failed:
            return
        (self.folder / "items.txt").write_text("first\nsecond\nthird\n", encoding="utf-8")
        self.say("Save the URL and the token of the queue.")
        self.easq("config", "--url", url, "--token-file", "token", says=("saved",))
        self.say("Show the attributes of the queue. This also checks that it can be reached.")
        self.easq("info", says=("meta.durability : fsync", "stream.length : 0"))
        self.say("Put an item, then a file of one item a line. Each is on disk before its index is shown.")
        self.easq("put", "-d", "10s", says=("[OK] 1", "Total: 1, success: 1, failed: 0"))
        self.easq("put", "-f", "items.txt", says=("[OK] 2", "[OK] 3", "[OK] 4"))
        self.say("Read the items. They stay in the queue.")
        self.easq("get", "-l", "4", "--timeout", "3s", says=("[0 - 1]", "[3 - 4]", "third"))
        self.say("Watch two items. Each is committed after it is printed; the others stay in the queue.")
        self.easq("watch", "--commit", "output", "-n", "2", "-o", "raw", says=("10s", "first"))
        self.say("Delete one item by its index, and then all items below an index.")
        self.easq("delete", "3", "-y", says=("[OK] deleted",))
        self.easq("trunc", "5", "-y", says=("[OK] truncated",))
        self.easq("get", says=(), code=3)
        self._predict()

    def _predict(self) -> None:
        """Show a prediction step by step: the client waits, a worker takes the item and puts the result."""
        self.say("A prediction: the client waits for its result in the sink ...")
        waiting = self._popen("predict", "-d", "[{}]", "--timeout", f"{_PATIENCE_S}s")
        try:
            self.say("... an engine takes the input ...")
            taken = self.easq("watch", "--commit", "output", "-n", "1", "-o", "json", says=('"data":"[{}]"',))
            request_id = _request_id(taken)
            self.say("... and writes the result to the sink, under the same request id.")
            answer = '[{"p_0":0.52,"p_1":0.48}]'
            self.easq("put", "-k", "-d", answer, "--tags", f"requestId={request_id}", says=("[OK] 1",))
            self.say("The client gets the result.")
            output, _ = waiting.communicate(timeout=_PATIENCE_S)
        finally:
            waiting.kill()
            waiting.wait()
        self._show(
            ("predict", "-d", "[{}]"), output.decode(errors="replace"), waiting.returncode, (answer,), 0
        )

    def _start(self) -> str:
        """Start the service, and return the URL of its queue."""
        ready = self.folder / "ready"
        arguments = ("serve", "--port", "0", "--storage", "sqlite:queue.db", "--token-file", "token", "-q")
        replace(self.folder / "token", b"demo-token", sync=False)
        self.service = self._popen(*arguments, "--ready-file", str(ready))
        assert self.service.stdout is not None
        line = self.service.stdout.readline().decode(errors="replace").strip()
        self._show(arguments, f"{line}\n", 0 if line.startswith("EASQ_URL=") else 1, ("EASQ_URL=",), 0)
        return line.removeprefix("EASQ_URL=")

    def stop(self) -> None:
        """Stop the service."""
        if self.service is not None:
            self.service.terminate()
            try:
                self.service.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.service.kill()
            self.service.communicate()

    def say(self, text: str) -> None:
        """Print a heading, unless -q is given."""
        if not self.app.options.get("quiet"):
            self.app.printer.lines(("", f"# {text}"))

    def easq(self, *arguments: str, says: Sequence[str], code: int = 0) -> str:
        """Run one command, print it with its output, check output and exit code, and return the output."""
        process = self._popen(*arguments)
        try:
            output, _ = process.communicate(timeout=_PATIENCE_S)
        finally:
            process.kill()
            process.wait()
        text = output.decode(errors="replace")
        self._show(arguments, text, process.returncode, says, code)
        return text

    def _popen(self, *arguments: str) -> subprocess.Popen[bytes]:
        import sys

        return subprocess.Popen(
            [sys.executable, "-m", "easq", *arguments],
            cwd=self.folder,
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def _environ(self) -> Mapping[str, str]:
        """Return the environment of the commands: without the user's settings, and with a configuration of its own."""
        import os
        from pathlib import Path

        import easq
        from easq.redact import child_environ

        inherited = {
            key: value
            for key, value in child_environ(self.app.environ).items()
            if not key.startswith("EASQ_")
        }
        # the same easq, also where it runs from a checkout and is not installed
        source = str(Path(easq.__file__).parent.parent)
        path = os.pathsep.join(filter(None, (source, inherited.get("PYTHONPATH"))))
        return {**inherited, "EASQ_CONFIG": str(self.folder / "config.toml"), "PYTHONPATH": path}

    def _show(
        self, arguments: Sequence[str], output: str, code: int, says: Sequence[str], wanted: int
    ) -> None:
        import shlex

        self.steps += 1
        shown = shlex.join(("easq", *arguments))
        missing = [text for text in says if text not in output]
        ok = not missing and code == wanted
        if not self.app.options.get("quiet") or not ok:
            self.app.printer.line(f"$ {shown}")
            self.app.printer.lines(output.splitlines())
            if wanted:
                self.app.printer.line(f"(exit code {code})")
        if not ok:
            self.failed.append(
                f"{shown} gave exit code {code}" + (f" and not {missing[0]!r}" if missing else "")
            )


def _request_id(output: str) -> str:
    """Return the request id of the first record in `output`, or an empty string."""
    import json

    for line in output.splitlines():
        try:
            return str(json.loads(line)["request_id"])
        except (ValueError, KeyError, TypeError):
            continue
    return ""
