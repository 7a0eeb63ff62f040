"""What others wait for while somebody asks for much: the slowest of many puts, beside a run in which nobody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.comparison import Comparison
from tests.bench.world import SIZE, World, seconds
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.process import Service
from tests.support.websocket import watch

#: bytes of a large item, and how many one answer holds
_LARGE, _MANY = 8 * 1024**2 - 4096, 8
#: watchers that read nothing, and long polls for request ids that nobody puts
_DEAF, _POLLS = 60, 2_000


def _slowest_put_ms(world: World, stream: Stream, meanwhile: Callable[[], object] | None = None) -> float:
    """The slowest of the puts that are made while it is done, of as many as `operations` at least."""
    times: list[float] = []
    busy = threading.Thread(target=meanwhile or (lambda: None))
    with Connection(stream.port) as line:
        line.ask("POST", stream.target(), (), b"x" * SIZE)
        busy.start()
        while len(times) < world.sizes.operations or busy.is_alive():
            times.append(seconds(lambda: line.ask("POST", stream.target(), (), b"x" * SIZE)))
    busy.join()
    return max(times) * 1000


def _deep(world: World) -> Stream:
    return world.deep.stream("deep")


def _alone_ms(world: World) -> float:
    return _slowest_put_ms(world, _deep(world))


def _filter_ms(world: World) -> float:
    """A consumer of a group of its own, whose filter matches nothing, for as long as it is not dropped as silent."""
    stream = _deep(world).as_consumer("u", f"g{id(object())}")

    def look() -> None:
        with watch(stream, user="nobody") as watching:
            for _ in range(20):
                watching.connection.is_quiet(0.2)

    return _slowest_put_ms(world, _deep(world), look)


def _count_ms(world: World) -> float:
    stream = _deep(world)

    def count() -> None:
        with Connection(stream.port) as line:
            line.socket.settimeout(600)
            assert line.ask("GET", stream.target(_count_="true", user="nobody")).status == 200

    return _slowest_put_ms(world, stream, count)


def _large_ms(world: World) -> float:
    stream = world.service.stream(world.queue())
    for _ in range(_MANY):
        stream.put(b"x" * _LARGE)

    def get() -> None:
        with Connection(stream.port) as line:
            target = stream.target(_length_=_MANY, _raw_="false", _auto_delete_="false")
            line.send_request("GET", target, [PROTOBUF, ("Connection", "close")])
            while line.socket.recv(1 << 20):
                pass

    return _slowest_put_ms(world, world.service.stream(world.queue()), get)


def _deaf_ms(world: World) -> float:
    stream = world.service.stream(world.queue())
    stream.put(b"x" * _LARGE)

    def come() -> None:
        with ExitStack() as stack:
            for number in range(_DEAF):
                stack.enter_context(watch(stream.as_consumer("u", f"g{number}")))

    return _slowest_put_ms(world, world.service.stream(world.queue()), come)


def _quiet_ms(world: World) -> float:
    return _slowest_put_ms(world, world.service.stream(world.queue()))


def connect_polls(stack: ExitStack, service: Service, stream: Stream, count: int) -> None:
    """Connect `count` long polls for request ids that nobody puts; `stack` closes them."""
    for number in range(count):
        line = stack.enter_context(Connection(service.port))
        line.send_request("GET", stream.target(_timeout_="10m", requestId=f"r{number}"))
    _settle(service)


@contextmanager
def _polls(service: Service, stream: Stream) -> Iterator[None]:
    with ExitStack() as stack:
        connect_polls(stack, service, stream, _POLLS)
        yield
        stack.close()
        _settle(service)


def _settle(service: Service) -> None:
    """The service has done what it was asked, and takes no processor time."""
    before = -1.0
    while (now := service.processor_s()) > before:
        before = now
        time.sleep(1)


def _put_cpu_us(world: World, stream: Stream) -> float:
    """Processor time of the service for a put."""
    count = 10 * world.sizes.operations
    with Connection(stream.port) as line:
        before = world.service.processor_s()
        for _ in range(count):
            line.ask("POST", stream.target(), (), b"x" * SIZE)
        return (world.service.processor_s() - before) / count * 1e6


def _polled_us(world: World) -> float:
    stream = world.service.stream(world.queue())
    with _polls(world.service, stream):
        return _put_cpu_us(world, stream)


def _unpolled_us(world: World) -> float:
    return _put_cpu_us(world, world.service.stream(world.queue()))


def _beyond(ours: float, theirs: float) -> float:
    return ours - theirs


def _stall(
    name: str, ours: Callable[[World], float], theirs: Callable[[World], float], queues: int = 0
) -> Comparison:
    return Comparison(
        f"stall: slowest put, {name}", "nobody else", "ms", ours, theirs,
        judge=_beyond, most=50.0, wanted="<= 50 ms more", queues=queues,
    )  # fmt: skip


COMPARISONS = (
    _stall("a filter that matches nothing in 1,000,000", _filter_ms, _alone_ms),
    _stall("a count by tag of 1,000,000", _count_ms, _alone_ms),
    _stall("a get of 64 MiB", _large_ms, _quiet_ms, queues=3),
    _stall("60 watchers that read nothing", _deaf_ms, _quiet_ms, queues=3),
    Comparison(
        "stall: processor time of a put, 2,000 idle long polls", "nobody else", "us", _polled_us, _unpolled_us,
        most=1.1, queues=2,
    ),
)  # fmt: skip
