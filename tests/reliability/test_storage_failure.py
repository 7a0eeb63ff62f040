"""The disk fails under a running service: acknowledged data is there afterwards, and nothing else."""

from __future__ import annotations

import pytest

from tests.conftest import Serve
from tests.support.http import Connection
from tests.support.process import Service, run_to_the_end
from tests.support.websocket import watch


def put_until_cut(service: Service) -> list[int]:
    """The indexes that were acknowledged before a put had no answer at all."""
    acknowledged: list[int] = []
    with Connection(service.port) as connection:
        for _ in range(200):
            try:
                answer = connection.ask("POST", service.stream().path, (), b"x" * 100_000)
            except (EOFError, ConnectionError):
                return acknowledged
            assert answer.status == 200
            acknowledged.append(int(answer.body))
    raise AssertionError("every put was answered")


def test_a_write_that_fails_ends_the_service_without_an_answer(serve: Serve) -> None:
    """Whether the item was stored is not known, so no answer is given: an SDK would send it again six times.

    The exit code is 74; a start on a sound disk has every acknowledged item, and at most the one in doubt.
    """
    service = serve(program=("tests.reliability.planted", "files-end-at-4-mib"))
    acknowledged = put_until_cut(service)
    assert service.wait() == 74
    log = service.log.read_text()
    assert "disk I/O error" in log
    assert "Traceback" not in log

    service.program = ("easq",)
    refused = run_to_the_end(service.folder, service.storage)
    assert (refused.returncode, refused.stdout) == (74, "")
    assert "the disk failed under" in refused.stderr
    assert "start with --recover" in refused.stderr
    service.options = ("--recover",)
    service.start()
    found = [item.index for item in service.stream().get(_length_=1000)]
    assert len(acknowledged) > 10
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) - len(acknowledged) in {0, 1}
    assert service.stream().put() > found[-1]
    service.options = ()
    service.restart()
    assert len(service.stream().get(_length_=1000)) == len(found) + 1


def test_nothing_is_committed_on_a_disk_that_failed(serve: Serve) -> None:
    """A commit that could not be stored is not answered either, and its item is delivered again after the start."""
    service = serve(program=("tests.reliability.planted", "files-end-at-4-mib"))
    queue = service.stream()
    first = queue.put(b"first")
    put_until_cut(service)
    with pytest.raises((EOFError, OSError)):
        queue.commit(first)
    assert service.wait() == 74
    service.program, service.options = ("easq",), ("--recover",)
    service.start()
    with watch(service.stream().as_consumer("u")) as watching:
        assert watching.next().data == b"first"
