"""A bad network, a dying worker and a process without free files cause no failure of an item, unless the item is the
cause.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.http import Connection
from tests.support.process import Service
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.working import Working, working


class Cutting(Proxy):
    """Each connection is cut after a while, whatever it is for."""

    every_s = 0.4

    async def _first(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG002
        asyncio.get_running_loop().call_later(self.every_s, writer.transport.abort)


def answers(service: Service) -> list[tuple[bytes, str]]:
    """Return the items of the sink: data and code."""
    return [(item.data, item.tags.get("lastCode", "")) for item in service.stream().sink.get(_length_=10_000)]


@pytest.mark.long
def test_a_job_that_outlives_many_connections_is_done_once(serve: Serve) -> None:
    """No loss is a failure, and the item is not begun a second time."""
    service = serve("--max-delivery", "1", storage="memory:")
    begun = service.folder / "begun"
    script = f"echo x >> {begun}; sleep 2.5; cat"
    with Cutting(service.port) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/api/predict/qservice"
        with working(service, "--url", url, "--", "sh", "-c", script):
            service.stream().put(b"job")
            eventually(lambda: service.stream().sink.length() == 1)
            eventually(lambda: service.stream().length() == 0)
        assert proxy.connections > 5
    assert answers(service) == [(b"job", "")]
    assert begun.read_text() == "x\n"


def test_an_item_that_kills_its_worker_is_given_up(serve: Serve) -> None:
    """Also if the worker is started again under its name; the other items are processed."""
    service = serve("--max-delivery", "2", "--retry-delay", "0s", storage="memory:")
    for data in (b"a", b"kill", b"b"):
        service.stream().put(data)
    script = 'read -r x; [ "$x" = kill ] && kill -9 $PPID; printf "%s" "$x"'
    for _ in range(8):
        worker = Working(service, "--jobs", "1", "--", "bash", "-c", script, user="w")
        try:
            eventually(lambda: worker.process.poll() is not None or service.stream().length() == 0)  # noqa: B023
        finally:
            worker.kill()
        if service.stream().length() == 0:
            break
    assert sorted(answers(service)) == [(b"a", ""), (b"b", ""), (b"the connection was lost", "500")]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="the system cannot limit another process")
def test_a_service_without_room_for_more_files_fails_no_item(serve: Serve) -> None:
    """Its engines wait until there is some."""
    service = serve("--model", "exec:cat", "--max-delivery", "1", storage="memory:")
    stream = service.stream()
    eventually(lambda: "Status: Running" in str(stream.attributes()))
    with Connection(service.port) as connection:
        assert connection.ask("GET", stream.target(_attrs_="true")).status == 200
        _, hard = resource.prlimit(service.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (open_files(service.pid), hard))
        for _ in range(10):
            assert connection.ask("POST", stream.path, (), b"x").status == 200
        time.sleep(1.0)  # the engine tries, and cannot start anything
        resource.prlimit(service.pid, resource.RLIMIT_NOFILE, (hard, hard))
    eventually(lambda: stream.sink.length() == 10)
    assert answers(service) == [(b"x", "")] * 10


def open_files(pid: int) -> int:
    """One more than the highest number of an open file."""
    return 1 + max(map(int, os.listdir(Path("/proc") / str(pid) / "fd")))
