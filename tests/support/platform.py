"""A served model whose instances fail on request: in the process of the test, or in one of its own.

`easq serve` has no such faults: they are here, and an instance has only a place for one.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from aiohttp import web

from easq.emulator.instance import ModelInstance
from easq.emulator.settings import CallLimits, ModelService
from easq.errors import ConfigError
from easq.server.hooks import RequestRecord
from easq.server.routes import PathRoute
from easq.server.server import Server, ServerSettings
from tests.support.local import Local
from tests.support.waiting import PATIENCE_S, eventually


class _Answers(list[tuple[str, int]]):
    """A hook that lists route and status of each request once its answer is sent, also of one that was refused."""

    def is_enabled(self) -> bool:
        return True

    def __call__(self, record: RequestRecord) -> None:
        self.append((record.route, record.status))


class Cloud(Local):
    """A service `model` with gateway, instances and discovery. Instances are numbered from 0."""

    def __init__(
        self,
        model: str = "echo",
        *,
        weights: Sequence[int] = (100,),
        timeout_s: float = 30.0,
        max_payload: int = 8 * 1024**2,
        open_instances: bool = False,
        **settings: Any,
    ) -> None:
        limits = CallLimits(max_payload, timeout_s)
        service = ModelService(model, "model", weights, limits, open_instances)
        #: route and status of each request
        self.answers = _Answers()
        super().__init__(
            ServerSettings(**{"port": 0, "queues": ("q",), **settings}), service, hooks=[self.answers]
        )
        self._is_empty = False
        #: requests that came in, by route: gateway, discovery, modelarts
        self._requests: Counter[str] = Counter()
        self._faults = [""] * len(weights)
        #: what came in: the number of the instance, and the X-Id that the request had
        self.seen: list[tuple[int, str]] = []
        #: requests that a hung instance has now
        self.hanging = 0

    def _prepare(self) -> None:
        emulator = self._emulator
        emulator.routes = [replace(route, answer=self._counted(route)) for route in emulator.routes]

    def _counted(self, route: PathRoute) -> Callable[..., Awaitable[web.StreamResponse]]:
        async def answer(request: web.BaseRequest, found: re.Match[str]) -> web.StreamResponse:
            self._requests[route.name] += 1
            if self._is_empty and route.name == "discovery":
                return web.Response(body=_EMPTY_LIST, content_type="application/json")
            return await route.answer(request, found)

        return answer

    def start(self) -> None:
        super().start()
        for number, instance in enumerate(self.instances):
            instance.override = functools.partial(self._take, number)

    async def _take(self, number: int, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append((number, request.headers.get("X-Id", "")))
        if fault := self._faults[number]:
            self.hanging += fault == "hung"
            try:
                if (answer := await _FAULTS[fault](request)) is not None:
                    return answer
            finally:
                self.hanging -= fault == "hung"
        return await self.instances[number].answer(request)

    @property
    def origin(self) -> str:
        """The address where discovery is asked."""
        return self._server.origin

    @property
    def url(self) -> str:
        """The gateway's address of the service."""
        return self._server.url("model")

    @property
    def instances(self) -> list[ModelInstance]:
        return self._emulator.instances.all

    @property
    def ports(self) -> list[int]:
        return [instance.port for instance in self.instances]

    @property
    def addresses(self) -> list[str]:
        return [instance.address for instance in self.instances]

    def counts(self) -> list[int]:
        """Return the number of requests of each instance."""
        return [instance.requests for instance in self.instances]

    def asked(self, door: str) -> int:
        """Return the number of requests at `gateway`, `discovery` or `modelarts`."""
        return self._requests[door]

    def kill(self, number: int) -> None:
        """Stop the instance, and reset its connections."""
        self.do(lambda _: self.instances[number].kill())

    def back(self, number: int) -> None:
        """Start the instance that was killed, or remove its fault."""
        if self._faults[number]:
            self._faults[number] = ""
        else:
            eventually(lambda: self._came_back(number))

    def _came_back(self, number: int) -> bool:
        try:
            self.do(lambda _: self.instances[number].restart())
        except ConfigError:  # its port is used, as one of the many that clients connect from
            return False
        return True

    def fault(self, number: int, kind: str) -> None:
        """From the next request on, have the instance be `hung`, `slow` or `busy` (503), or send each answer by
        `half`.
        """
        assert kind in _FAULTS
        self._faults[number] = kind

    def fail(self, number: int, kind: str) -> None:
        """Have the instance be `killed`, or have a fault."""
        if kind == "killed":
            self.kill(number)
        else:
            self.fault(number, kind)

    def empty(self) -> None:
        """Have discovery answer 200 with an empty list, which the service by itself never does."""
        self._is_empty = True

    def weigh(self, number: int, weight: int) -> None:
        """Give the instance this weight in the lists."""

        async def change(_: Server) -> None:
            self._emulator.instances.set_weight(number, weight)

        self.do(change)

    def list(self, number: int, listed: bool) -> None:
        """Put the instance into the lists, or take it out."""

        async def change(_: Server) -> None:
            self._emulator.instances.set_listed(number, is_listed=listed)

        self.do(change)


_EMPTY_LIST = b'{"correlative": ["model"], "endpoints": {"items": []}}'


async def _hung(request: web.BaseRequest) -> web.StreamResponse:
    """Give no answer while the caller is connected."""
    while request.transport is not None and not request.transport.is_closing():
        await asyncio.sleep(0.02)
    raise ConnectionError


async def _slow(_request: web.BaseRequest) -> None:
    """Give the right answer, later."""
    await asyncio.sleep(0.3)


async def _busy(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(status=503, text="no worker is free")


async def _half(request: web.BaseRequest) -> web.StreamResponse:
    """Declare more bytes than are sent."""
    body = await request.read()
    response = web.StreamResponse()
    response.content_length = len(body) + 1000
    await response.prepare(request)
    await response.write(body)
    assert request.transport is not None
    request.transport.close()
    return response


_FAULTS: dict[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse | None]]] = {
    "hung": _hung,
    "slow": _slow,
    "busy": _busy,
    "half": _half,
}


class CloudProcess:
    """A Cloud in a process of its own, which shares no interpreter with its caller."""

    def __init__(self, model: str = "echo", **options: Any) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.platform"], stdin=pipe, stdout=pipe, text=True
        )
        self._say({"model": model, **options})
        self.origin, self.url, self.addresses = self._hear()

    def do(self, verb: str, *arguments: Any) -> Any:
        """Call the Cloud's method `verb`, or read its property, and return the result."""
        self._say([verb, *arguments])
        return self._hear()

    def stop(self) -> None:
        """It has ended in order."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_S) == 0
        self._process.stdout.close()

    def _say(self, what: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def _main() -> None:
    cloud = Cloud(**json.loads(sys.stdin.readline()))
    cloud.start()
    print(json.dumps([cloud.origin, cloud.url, cloud.addresses]), flush=True)
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        print(json.dumps(getattr(cloud, verb)(*arguments)), flush=True)
    cloud.stop()


if __name__ == "__main__":
    _main()
