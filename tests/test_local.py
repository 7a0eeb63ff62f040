"""`easq.serve`: a service in a thread or a process of the caller's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import easq
from easq.local import serve
from tests.support.redis import free_port
from tests.support.waiting import eventually

IN_BOTH = pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])


def descriptors() -> list[str]:
    folder = Path("/proc/self/fd")
    return sorted(os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).exists())


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """After each test there are the threads of before; the first process also starts the guard of all commands."""
    before = set(threading.enumerate())
    yield
    eventually(lambda: set(threading.enumerate()) <= before)


@IN_BOTH
def test_it_serves_each_queue_and_ends_in_order(tmp_path: Path, process: bool) -> None:
    storage = f"sqlite:{tmp_path}/q.db"
    with serve(storage, token="secret", queues=("a", "b"), process=process) as service:
        assert service.is_running
        assert service.queues == ("a", "b")
        with easq.QueueClient(service.url, service.token) as queue:
            assert queue.name() == "a"
            queue.put(b"x")
        with (
            easq.QueueClient(service.queue_url("b")) as wrong,
            pytest.raises(easq.AuthFailed) as refused,
        ):
            wrong.count()
        assert "secret" not in str(refused.value)
    assert not service.is_running
    service.stop()
    with serve(storage, queues=("a", "b"), process=process) as again:
        with easq.QueueClient(again.url) as queue:
            assert [frame.data for frame in queue.get(length=2)] == [b"x"]
        with easq.QueueClient(again.sink_url) as sink:
            assert sink.count() == 0


@IN_BOTH
def test_a_model_answers_what_is_put(process: bool) -> None:
    with serve(model=["tr", "a-z", "A-Z"], service="upper", process=process) as service:
        assert easq.predict("abc", service.url) == b"ABC"
        assert easq.predict("abc", service.queue_url("upper"), via="gateway") == b"ABC"


def test_a_function_answers_what_is_put() -> None:
    with serve(model=lambda data: data[::-1], retry_delay_s=[0]) as service:
        assert easq.predict(b"abc", service.url) == b"cba"


@IN_BOTH
def test_what_stops_the_start_is_raised(process: bool, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(easq.ConfigError, match="in use"):
        serve(port=taken.getsockname()[1], process=process)
    with pytest.raises(easq.UsageError, match="unknown storage"):
        serve("nope:", process=process)
    (tmp_path / "q.db").write_bytes(b"no database" * 1000)
    with pytest.raises(easq.StorageError):
        serve(f"sqlite:{tmp_path}/q.db", process=process)


def test_wrong_settings_are_refused_before_anything_starts() -> None:
    for options, error in (
        ({"host": "0.0.0.0"}, easq.UsageError),
        ({"queues": ()}, easq.UsageError),
        ({"max_payload": 0}, easq.UsageError),
        ({"model": "no-model"}, easq.UsageError),
        ({"model": ["no-such-command-here"]}, easq.ChildFailed),
        ({"model": bytes.upper, "process": True}, easq.UsageError),
    ):
        with pytest.raises(error):
            serve(**options)  # type: ignore[arg-type]


def test_several_run_at_once_and_no_descriptor_is_left() -> None:
    with serve() as first, easq.QueueClient(first.url) as queue:
        queue.put(b"x")  # what is loaded and opened once
    before = descriptors()
    with serve() as first, serve() as second:
        assert first.url != second.url
        with easq.QueueClient(first.url) as one, easq.QueueClient(second.url) as other:
            one.put(b"x")
            assert (one.count(), other.count()) == (1, 0)
    assert descriptors() == before


def test_signals_are_the_callers() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
    before = [signal.getsignal(number) for number in numbers]
    with serve():
        assert [signal.getsignal(number) for number in numbers] == before
        assert signal.set_wakeup_fd(-1) == -1


def test_it_starts_in_another_thread() -> None:
    counts: list[int] = []

    def run() -> None:
        with serve() as service, easq.QueueClient(service.url) as queue:
            queue.put(b"x")
            counts.append(queue.count())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert counts == [1]


@IN_BOTH
def test_a_program_that_does_not_stop_it_ends_in_silence(tmp_path: Path, process: bool) -> None:
    program = f"""
        import easq
        service = easq.serve("sqlite:{tmp_path}/q.db", port={free_port()}, process={process})
        with easq.QueueClient(service.url) as queue:
            print(queue.put(b"x").index, flush=True)
    """
    for number in (1, 2):
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(program)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{number}\n", "")


def test_a_process_that_was_killed_is_reported() -> None:
    service = serve(process=True)
    running = service._running
    running._process.kill()  # type: ignore[attr-defined]
    eventually(lambda: not service.is_running)
    with pytest.raises(easq.ServerError, match="exit status -9"):
        service.stop()
    service.stop()


def test_a_storage_that_failed_is_reported(tmp_path: Path) -> None:
    service = serve(f"sqlite:{tmp_path}/q.db")
    running = service._running
    failure = easq.StorageError("the disk is gone")
    running._loop.call_soon_threadsafe(running._server._fail, failure)  # type: ignore[attr-defined]
    eventually(lambda: not service.is_running)
    with pytest.raises(easq.StorageError, match="the disk is gone"):
        service.stop()
    service.stop()
