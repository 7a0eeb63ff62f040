"""Many items in, out and through, against loops and threads over the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.comparison import Comparison
from tests.bench.delay import Delay
from tests.bench.world import SIZE, World, seconds

#: what the delayed comparison adds to each round trip, in seconds
DELAY_S = 0.02
#: uncommitted items of a watch
_WINDOW = 100
#: threads of the other side, and requests in flight of ours
_AT_A_TIME = 32

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
PREDICT_IN_THREADS = """
import sys, threading, time
from eas_prediction import PredictClient, StringRequest
from eas_prediction.predict_client import ENDPOINT_TYPE_DIRECT
client = PredictClient(sys.argv[1], "model")
client.set_endpoint_type(ENDPOINT_TYPE_DIRECT)
client.init()
count, threads, size = map(int, sys.argv[2:])
def work():
    for _ in range(count // threads):
        assert len(client.predict(StringRequest("x" * size)).response_data) == size
all = [threading.Thread(target=work) for _ in range(threads)]
began = time.monotonic()
for thread in all:
    thread.start()
for thread in all:
    thread.join()
print(count // threads * threads / (time.monotonic() - began))
client.destroy()
"""


def _bulk_put(world: World, queue: str, port: int, count: int | None = None) -> float:
    url = world.service.url(queue).replace(f":{world.service.port}/", f":{port}/")
    lines = world.lines
    if count is not None:
        lines = world.folder / f"lines-{count}"
        with world.lines.open("rb") as file:
            lines.write_bytes(b"".join(file.readline() for _ in range(count)))
    done = world.easq("put", "-f", lines.name, "-c", "64", "--url", url, "-o", "json")
    summary = json.loads(done.stderr)["summary"]
    assert summary["success"] == (count or world.sizes.items)
    return float(summary["success"] / summary["seconds"])


def _put(world: World) -> float:
    return _bulk_put(world, world.queue(), world.service.port)


def _put_loop(world: World) -> float:
    return _loop(world, world.sizes.loop_items, world.service.port)


def _loop(world: World, count: int, port: int) -> float:
    return float(world.script(PUT_LOOP, f"127.0.0.1:{port}", world.queue(), count, SIZE))


@contextmanager
def _delayed(world: World) -> Iterator[int]:
    with Delay(world.service.port, DELAY_S) as delay:
        yield delay.port


def _put_delayed(world: World) -> float:
    with _delayed(world) as port:
        return _bulk_put(world, world.queue(), port)


def _put_loop_delayed(world: World) -> float:
    with _delayed(world) as port:
        return _loop(world, max(world.sizes.loop_items // 20, 20), port)


def filled(world: World, count: int | None = None) -> str:
    queue = world.queue()
    _bulk_put(world, queue, world.service.port, count)
    return queue


def _watch(world: World) -> float:
    queue, count = filled(world), world.sizes.items
    options = ("--commit", "output", "-n", str(count), "--window", str(_WINDOW), "-o", "raw", "-q")
    return count / seconds(lambda: world.easq("watch", *options, "--url", world.service.url(queue)))


def _watch_loop(world: World) -> float:
    count = min(world.sizes.loop_items, world.sizes.items)
    queue = filled(world, min(count + _WINDOW, world.sizes.items))
    return float(world.script(WATCH_AND_COMMIT, f"127.0.0.1:{world.service.port}", queue, count, _WINDOW))


def _predict(world: World) -> float:
    where = ("--endpoint", f"http://127.0.0.1:{world.lean}", "--service", "model")
    options = ("-f", world.lines.name, "-c", str(_AT_A_TIME), "-q")
    took = seconds(lambda: world.easq("predict", "--via", "direct", *where, *options))
    return world.sizes.items / took


def _predict_in_threads(world: World) -> float:
    count = 3 * world.sizes.loop_items
    return float(world.script(PREDICT_IN_THREADS, f"127.0.0.1:{world.lean}", count, _AT_A_TIME, SIZE))


COMPARISONS = (
    Comparison(
        "`easq put -f -c 64`", "eas-prediction's put in a loop", "items/s", _put, _put_loop, least=4, queues=2
    ),
    Comparison(
        "`easq put -f -c 64`, 20 ms away", "eas-prediction's put in a loop", "items/s",
        _put_delayed, _put_loop_delayed, least=25, queues=2,
    ),
    Comparison(
        "`easq watch --commit output`", "eas-prediction watch + commit each", "items/s", _watch, _watch_loop,
        least=8, queues=2,
    ),
    Comparison(
        "`easq predict --via direct -c 32`", "eas-prediction PredictClient direct in 32 threads", "requests/s",
        _predict, _predict_in_threads, least=3,
    ),
)  # fmt: skip
