"""Items through `easq work`, against an engine loop over the official SDK and against itself."""

from __future__ import annotations

import time
from functools import partial

from tests.bench.comparison import Comparison
from tests.bench.many import filled
from tests.bench.world import World
from tests.support.working import Working

#: seconds between two looks at how many items are left
_LOOK_S = 0.02

ENGINE_LOOP = """
import http.client, sys, time
from eas_prediction import QueueClient
queue, sink = QueueClient(sys.argv[1], sys.argv[2]), QueueClient(sys.argv[1], sys.argv[2] + "/sink")
queue.init()
sink.init()
model = http.client.HTTPConnection("127.0.0.1", int(sys.argv[3]))
began = time.monotonic()
watcher = queue.watch(0, 5, auto_commit=False)
for number, frame in enumerate(watcher.run(), 1):
    model.request("POST", "/api/predict/q", frame.data)
    sink.put(model.getresponse().read())
    queue.commit(frame.index)
    if number == int(sys.argv[4]):
        break
print(number / (time.monotonic() - began))
watcher.close()
"""


def _work(world: World, *options: str, share: float = 1.0) -> float:
    """Return the items per second of a worker, from the first one that is done to the last."""
    count = round(share * world.sizes.loop_items)
    queue = filled(world, min(count, world.sizes.items))
    stream = world.service.stream(queue)
    worker = Working(world.service, *options, user=queue, queue=queue)
    try:
        while (begun := stream.length()) == count:
            time.sleep(_LOOK_S)
        began = time.monotonic()
        while stream.length():
            time.sleep(_LOOK_S)
        return begun / (time.monotonic() - began)
    finally:
        worker.kill()


def _forward(world: World, *, window: int) -> float:
    return _work(world, "--forward", f"http://127.0.0.1:{world.bare}/api/predict/q", "--window", str(window))


def _command(world: World, *, window: int) -> float:
    return _work(world, "--window", str(window), "--", "cat", share=0.2)


def _engine_loop(world: World) -> float:
    count = round(0.2 * world.sizes.loop_items)
    queue = filled(world, count + 5)
    server = f"127.0.0.1:{world.service.port}"
    return float(world.script(ENGINE_LOOP, server, queue, world.bare, count))


COMPARISONS = (
    Comparison(
        "`easq work --forward`, window 64", "an engine loop over eas-prediction", "items/s",
        partial(_forward, window=64), _engine_loop, least=4, queues=2,
    ),
    Comparison(
        "`easq work --forward`, window 256", "window 5", "items/s",
        partial(_forward, window=256), partial(_forward, window=5), least=1, queues=2,
    ),
    Comparison(
        "`easq work -- cat`, window 64", "window 5", "items/s",
        partial(_command, window=64), partial(_command, window=5), least=1, queues=2,
    ),
)  # fmt: skip
