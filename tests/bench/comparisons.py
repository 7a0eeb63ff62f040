"""What is measured against what: each comparison gives one figure of easq's and one of the other side."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.delay import Delay
from tests.support.process import Service
from tests.support.sdk import run

#: bytes of an item
SIZE = 256
#: what the delayed comparison adds to each round trip, in seconds
DELAY_S = 0.02
_PATIENCE_S = 600.0

PUT_LOOP = """
import sys, time
from eas_prediction import QueueClient
queue = QueueClient(sys.argv[1], sys.argv[2])
queue.init()
began = time.monotonic()
for _ in range(int(sys.argv[3])):
    queue.put("x" * int(sys.argv[4]))
print(int(sys.argv[3]) / (time.monotonic() - began))
"""
PUT_ONE = """
import sys
from eas_prediction import QueueClient
queue = QueueClient(sys.argv[1], sys.argv[2])
queue.init()
print(queue.put("x"))
"""
WATCH_AND_COMMIT = """
import sys, time
from eas_prediction import QueueClient
queue = QueueClient(sys.argv[1], sys.argv[2])
queue.init()
began = time.monotonic()
watcher = queue.watch(0, int(sys.argv[4]), auto_commit=False)
for number, frame in enumerate(watcher.run(), 1):
    queue.commit(frame.index)
    if number == int(sys.argv[3]):
        break
print(number / (time.monotonic() - began))
watcher.close()
"""


@dataclass(frozen=True)
class Comparison:
    """`ours` and `theirs` give a figure in `unit`; ours is to be `least` or at `most` so many times theirs."""

    name: str
    against: str
    unit: str
    ours: Callable[[World], float]
    theirs: Callable[[World], float]
    least: float | None = None
    most: float | None = None
    repeats: int = 1  # measurements of one round, of which the median counts


class World:
    """A durable service, a fresh queue for each measurement, and the two clients."""

    def __init__(self, folder: Path, sdk: Path, *, items: int, loop_items: int, queues: int) -> None:
        self.folder, self.sdk, self.items, self.loop_items = folder, sdk, items, loop_items
        names = [f"q{number}" for number in range(queues)]
        options = [word for name in names for word in ("--queue", name)]
        self.service = Service(folder, f"sqlite:{folder / 'easq.db'}", options, "")
        self._names = iter(names)
        self.lines = folder / "lines"
        self.lines.write_bytes(b"".join(b"%-*d\n" % (SIZE, number) for number in range(items)))

    def __enter__(self) -> World:
        self.service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.service.kill()

    def queue(self) -> str:
        """A queue that nobody has used."""
        return next(self._names)

    def easq(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        """A run of easq that exits with 0."""
        script = Path(sys.executable).with_name("easq")  # what people run; `python -m` takes longer
        return self._process(str(script), *args)

    def python(self, code: str) -> None:
        """A run of our Python, which has the same packages."""
        self._process(sys.executable, "-c", code)

    def script(self, script: str, *args: object) -> str:
        """What a script with the official SDK prints."""
        command: list[Path | str] = [self.sdk, "-c", script, *map(str, args)]
        return run(command, timeout_s=_PATIENCE_S).stdout

    def _process(self, *command: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=self.service.environ() | {"PYTHONWARNINGS": "ignore"},
            cwd=self.folder,
            timeout=_PATIENCE_S,
            check=True,
        )


def _seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def _bulk_put(world: World, queue: str, port: int) -> float:
    url = world.service.url(queue).replace(f":{world.service.port}/", f":{port}/")
    done = world.easq("put", "-f", "lines", "-c", "64", "--url", url, "-o", "json")
    summary = json.loads(done.stderr)["summary"]
    assert summary["success"] == world.items
    return float(summary["success"] / summary["seconds"])


def _put_loop(world: World, count: int, port: int) -> float:
    return float(world.script(PUT_LOOP, f"127.0.0.1:{port}", world.queue(), count, SIZE))


@contextmanager
def _delayed(world: World) -> Iterator[int]:
    with Delay(world.service.port, DELAY_S) as delay:
        yield delay.port


def _bulk_put_delayed(world: World) -> float:
    with _delayed(world) as port:
        return _bulk_put(world, world.queue(), port)


def _put_loop_delayed(world: World) -> float:
    with _delayed(world) as port:
        return _put_loop(world, max(world.loop_items // 20, 20), port)


def _filled(world: World) -> str:
    queue = world.queue()
    _bulk_put(world, queue, world.service.port)
    return queue


def _watch(world: World) -> float:
    queue = _filled(world)
    arguments = ("watch", "--commit", "output", "-n", str(world.items), "--window", "100", "-o", "raw", "-q")
    return world.items / _seconds(lambda: world.easq(*arguments, "--url", world.service.url(queue)))


def _watch_loop(world: World) -> float:
    count = min(world.loop_items, world.items)
    address = f"127.0.0.1:{world.service.port}"
    return float(world.script(WATCH_AND_COMMIT, address, _filled(world), count, 100))


def _version(world: World) -> float:
    return _seconds(lambda: world.easq("--version"))


def _put_one(world: World) -> float:
    url = world.service.url("q0")
    return _seconds(lambda: world.easq("put", "-d", "x", "--url", url))


def _imports(code: str) -> Callable[[World], float]:
    return lambda world: _seconds(lambda: world.python(code))


def _script_put_one(world: World) -> float:
    return _seconds(lambda: world.script(PUT_ONE, f"127.0.0.1:{world.service.port}", "q0"))


COMPARISONS = (
    Comparison(
        "easq --version", "python -c 'import click'", "s", _version, _imports("import click"),
        most=1.5, repeats=5,
    ),
    Comparison(
        "easq put -d x", "python -c 'import click, httpx'", "s", _put_one, _imports("import click, httpx"),
        most=1.3, repeats=5,
    ),
    Comparison(
        "easq put -d x", "a script doing one put with eas-prediction", "s", _put_one, _script_put_one,
        most=0.6, repeats=3,
    ),
    Comparison(
        "easq put -f -c 64", "eas-prediction's put in a loop", "items/s",
        lambda world: _bulk_put(world, world.queue(), world.service.port),
        lambda world: _put_loop(world, world.loop_items, world.service.port),
        least=4,
    ),
    Comparison(
        "easq put -f -c 64, 20 ms away", "eas-prediction's put in a loop", "items/s",
        _bulk_put_delayed, _put_loop_delayed, least=25,
    ),
    Comparison(
        "easq watch --commit output", "eas-prediction watch + commit each", "items/s", _watch, _watch_loop,
        least=8,
    ),
)  # fmt: skip
