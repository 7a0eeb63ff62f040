"""The service under wrk, with a deep queue, and idle."""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.comparison import Comparison, alone
from tests.bench.world import SIZE, World, resident, seconds
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.process import Service
from tests.support.websocket import Watch, watch

#: connections of wrk
_CONNECTIONS = 64
_MIB, _KIB = 1024**2, 1024
#: what an idle put to push may take beyond two fsyncs, in milliseconds
_PUSH_MS = 3.0

_POST = """
wrk.method = "POST"
wrk.body = string.rep("x", %d)
"""


# under wrk


def _wrk(world: World, url: str) -> float:
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    script = world.folder / "post.lua"
    script.write_text(_POST % SIZE)
    length = f"-d{world.sizes.seconds:g}s"
    done = world.process("wrk", "-t1", f"-c{_CONNECTIONS}", length, "-s", str(script), url)
    text = done.stdout.decode()
    assert "Non-2xx" not in text, text
    found = re.search(r"Requests/sec:\s+([0-9.]+)", text)
    assert found is not None, text
    return float(found[1])


def _served(world: World) -> float:
    return _wrk(world, world.service.url(world.queue()))


def _bare(world: World) -> float:
    return _wrk(world, f"http://127.0.0.1:{world.bare}/api/predict/q")


# deep and flat


def _median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1000


def _ask(connection: Connection, stream: Stream, method: str, body: bytes | None, **query: object) -> bytes:
    headers = [PROTOBUF] if method == "GET" else []
    answer = connection.ask(method, stream.target(**query), headers, body)
    assert answer.status == 200, answer
    return answer.body


def _get(**query: object) -> dict[str, object]:
    return {"_length_": 1, "_timeout_": 0, "_raw_": "false", "_auto_delete_": "false", **query}


def _ends(stream: Stream) -> tuple[int, int]:
    attributes = stream.attributes()
    return int(attributes["stream.firstEntry"]), int(attributes["stream.lastEntry"])


def _put_ms(world: World, queue: str) -> float:
    stream, times, indexes = world.deep.stream(queue), [], []
    with Connection(stream.port) as line:
        for _ in range(world.sizes.operations):
            began = time.monotonic()
            body = _ask(line, stream, "POST", b"x" * SIZE)
            times.append(time.monotonic() - began)
            indexes.append(int(body))
    stream.delete(*indexes)
    return _median_ms(times)


def _get_by_index_ms(world: World, queue: str) -> float:
    stream, times = world.deep.stream(queue), []
    first, last = _ends(stream)
    with Connection(stream.port) as line:
        for _ in range(world.sizes.operations):
            query = _get(_index_=random.randint(first, last))
            times.append(seconds(lambda query=query: _ask(line, stream, "GET", None, **query)))
    return _median_ms(times)


def _get_by_request_ms(world: World, queue: str) -> float:
    stream, times = world.deep.stream(queue), []
    first, last = _ends(stream)
    with Connection(stream.port) as line:
        for _ in range(world.sizes.operations):
            (item,) = stream.get(**_get(_index_=random.randint(first, last)))
            query = _get(_index_=0, requestId=item.tags["requestId"])
            times.append(seconds(lambda query=query: _ask(line, stream, "GET", None, **query)))
    return _median_ms(times)


def _push_ms(world: World, queue: str) -> float:
    """From a commit, which makes room in a window of one, to the push of the next item."""
    stream, times = world.deep.stream(queue).as_consumer("bench"), []
    with Connection(stream.port) as line:
        for _ in range(world.sizes.operations + 1):
            _ask(line, stream, "POST", b"x" * SIZE)
        with watch(stream, _index_=0, _window_=1) as watcher:
            item = watcher.next()
            for _ in range(world.sizes.operations):
                began = time.monotonic()
                line.send_request("PUT", stream.target(_indexes_=item.index), stream.headers, b"")
                item = watcher.next()
                times.append(time.monotonic() - began)
                assert line.read_answer().status == 200
            watcher.leave()
    return _median_ms(times)


def _depth(name: str, measure: Callable[[World, str], float]) -> Comparison:
    return Comparison(
        f"{name}, backlog 1,000,000", "backlog 1,000", "ms",
        lambda world: measure(world, "deep"), lambda world: measure(world, "flat"), most=1.2,
    )  # fmt: skip


def _deep_memory(world: World) -> float:
    world.deep.terminate()
    world.deep.start()
    return resident(world.deep) / _MIB


def _deep_start(world: World) -> float:
    world.deep.terminate()
    world.deep.start()
    return world.deep.seconds_to_ready


# idle


def _put_to_push_ms(world: World) -> float:
    stream, times = world.service.stream(world.queue()).as_consumer("bench"), []
    with Connection(stream.port) as line, watch(stream, _index_=0, _window_=10) as watcher:
        for _ in range(world.sizes.operations):
            began = time.monotonic()
            line.send_request("POST", stream.target(), stream.headers, b"x" * SIZE)
            item = watcher.next()
            times.append(time.monotonic() - began)
            assert line.read_answer().status == 200
            assert line.ask("PUT", stream.target(_indexes_=item.index), stream.headers, b"").status == 200
    return _median_ms(times)


def _fsync_ms(world: World) -> float:
    times = []
    with (world.folder / "synced").open("wb", buffering=0) as file:
        for _ in range(world.sizes.operations):
            began = time.monotonic()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            times.append(time.monotonic() - began)
    return _median_ms(times)


def _beyond_two_fsyncs(ours: float, theirs: float) -> float:
    return ours - 2 * theirs


@contextmanager
def _watchers(service: Service, queue: str, count: int) -> Iterator[None]:
    """So many consumers watch a queue in which nothing is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stream = service.stream(queue)
    try:
        with ExitStack() as stack:
            watching: list[Watch] = []
            for number in range(count):
                consumer = stream.as_consumer(f"w{number}")
                watching.append(stack.enter_context(watch(consumer, _index_=0, _window_=1)))
            yield
            for watcher in watching:
                watcher.leave()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _put_p99_ms(world: World, queue: str) -> float:
    stream, times = world.service.stream(queue), []
    with Connection(stream.port) as line:
        for _ in range(3 * world.sizes.operations):
            times.append(seconds(lambda: _ask(line, stream, "POST", b"x" * SIZE)))
    return statistics.quantiles(times, n=100)[98] * 1000


def _watched_put_ms(world: World) -> float:
    with _watchers(world.service, world.queue(), world.sizes.watchers):
        return _put_p99_ms(world, world.queue())


def _unwatched_put_ms(world: World) -> float:
    return _put_p99_ms(world, world.queue())


def _watcher_kib(world: World) -> float:
    """A service of its own: what another had freed before would not grow."""
    number = sum(1 for _ in world.folder.glob("watched*"))
    service = world.serve(f"watched{number}", ["q"])
    before = resident(service)
    with _watchers(service, "q", world.sizes.watchers):
        grown = resident(service) - before
    service.kill()
    return grown / world.sizes.watchers / _KIB


COMPARISONS = (
    Comparison(
        "`easq serve` durable put, wrk 64 connections, 256 B", "aiohttp that only reads and answers", "requests/s",
        _served, _bare, least=0.55, queues=1,
    ),
    _depth("put", _put_ms),
    _depth("get by index", _get_by_index_ms),
    _depth("get by request id", _get_by_request_ms),
    _depth("push", _push_ms),
    Comparison("memory, 1,000,000 items of 256 B waiting", "", "MiB", _deep_memory, most=300, judge=alone),
    Comparison("start, 1,000,000 items of 256 B waiting", "", "s", _deep_start, most=3, judge=alone),
    Comparison(
        "put to push, idle service, p50", "one fsync of the same disk", "ms", _put_to_push_ms, _fsync_ms,
        most=_PUSH_MS, judge=_beyond_two_fsyncs, wanted="<= 3 ms beyond 2 fsyncs", queues=1,
    ),
    Comparison(
        "put p99, 1,000 idle watchers", "no watchers", "ms", _watched_put_ms, _unwatched_put_ms, most=1.5,
        queues=3,
    ),
    Comparison("memory of an idle watcher, of 1,000", "", "KiB", _watcher_kib, most=60, judge=alone),
)  # fmt: skip
