"""Dead letters: the rear store with --rear, and the answer to a client that waits for a result."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.conftest import Easq
from tests.conftest import Serve
from tests.support.waiting import eventually


@pytest.fixture
def queue(easq: Easq, serve: Serve) -> Easq:
    """easq with an empty queue whose items may fail once."""
    easq("config", "--url", serve("--max-delivery", "1", storage="memory:").url())
    return easq


@contextmanager
def engine(queue: Easq, transport: str = "ws") -> Iterator[subprocess.Popen[bytes]]:
    """A consumer that receives items and neither commits nor refuses them by itself."""
    args = ("--commit", "none", "-o", "json", "-q", "--user", "engine", "--transport", transport)
    with queue.start("watch", *args) as watching:
        yield watching
        watching.terminate()
        assert watching.wait() == 143
        watching.communicate()


def taken(watching: subprocess.Popen[bytes]) -> str:
    """Return the index of the next item that the engine receives."""
    assert watching.stdout is not None
    return str(json.loads(watching.stdout.readline())["index"])


def fail(queue: Easq, *items: str, code: str = "EngineError", reason: str = "out of memory") -> None:
    """Each item was put, and its only delivery failed."""
    with engine(queue) as watching:
        for item in items:
            queue("put", "-q", "-d", item, "--tags", f"requestId=r-{item}")
            index = taken(watching)
            assert (
                queue("negative", index, *(("--code", code) if code else ()), "--reason", reason).status == 0
            )


def records(queue: Easq, *args: str) -> list[dict[str, object]]:
    done = queue("get", "-l", "9", "--allow-empty", "-o", "json", *args)
    assert done.status == 0
    return [json.loads(line) for line in done.out.splitlines()]


@pytest.mark.parametrize("transport", ["ws", "http"])
def test_an_item_that_failed_once_too_often_is_in_the_rear_store(queue: Easq, transport: str) -> None:
    with engine(queue, transport) as watching:
        queue("put", "-q", "-d", "a", "--tags", "task=7")
        assert taken(watching) == "1"
        queue("negative", "1", "--code", "EngineError", "--reason", "out of memory")
        assert records(queue) == []
        (record,) = records(queue, "--rear")
    assert (record["index"], record["data"]) == ("1", "a")
    tags = record["tags"]
    assert isinstance(tags, dict)
    assert {key: tags[key] for key in tags if key.startswith(("rear@", "last", "task"))} == {
        "lastCode": "EngineError",
        "lastReason": "out of memory",
        "rear@deliveries": "1",
        "rear@failures": "1",
        "rear@group": "default_group",
        "rear@index": "1",
        "task": "7",
    }


def test_every_word_for_a_stream_works_on_the_rear_store(queue: Easq) -> None:
    fail(queue, "a", "b", "c", "d")
    rear = ("--rear",)
    assert queue("info", "--field", "stream.length", "--field", "stream.lastEntry", *rear).text == "4\n4\n"
    assert queue("info", "--field", "stream.length").text == "0\n"
    assert queue("count", "--tags", "requestId=r-b", *rear).text == "1\n"
    assert queue("get", "2", "-o", "raw", *rear).text == "b"
    assert queue("delete", "2", *rear).status == 2
    assert queue("delete", "2", "-y", *rear).text == "[OK] deleted\n"
    assert queue("trunc", "3", "-y", *rear).text == "[OK] truncated\n"
    assert [record["data"] for record in records(queue, *rear)] == ["c", "d"]
    assert queue("get", "--delete", "-o", "raw", *rear).text == "c"
    assert queue("watch", "--commit", "output", "-n", "1", "-o", "raw", "-q", *rear).text == "d\n"
    assert queue("trunc", "--all", "-y", *rear).status == 0
    assert queue("count", *rear).text == "0\n"


def test_what_failed_is_put_again_from_the_rear_store(queue: Easq) -> None:
    """`put --input-format json` accepts the records of `get --rear -o json`."""
    fail(queue, "a", "b")
    dead = queue("get", "-l", "9", "--rear", "-o", "json").out
    assert queue("put", "-q", "--input-format", "json", "-f", "-", stdin=dead).text == "[OK] 3\n[OK] 4\n"
    assert [record["data"] for record in records(queue)] == ["a", "b"]


def test_a_consumer_whose_connection_is_lost_counts_as_a_failure(queue: Easq) -> None:
    queue("put", "-q", "-d", "a")
    with queue.start("watch", "--commit", "none", "-o", "json", "-q") as watching:
        assert taken(watching) == "1"
        watching.kill()
        watching.communicate()
    assert queue("wait", "--empty", "--timeout", "30s").status == 0
    (record,) = records(queue, "--rear")
    assert record["data"] == "a"


@pytest.mark.parametrize(
    ("code", "last_code", "last_reason"),
    [("422", "422", "no image"), ("EngineError", "500", "EngineError"), ("", "500", "no image")],
)
def test_a_dead_item_is_answered_in_the_sink(
    queue: Easq, code: str, last_code: str, last_reason: str
) -> None:
    fail(queue, "a", code=code, reason="no image")
    assert queue("wait", "--result", "r-a", "--timeout", "30s").status == 0
    (record,) = records(queue, "-k")
    tags = record["tags"]
    assert isinstance(tags, dict)
    assert (record["request_id"], record["data"]) == ("r-a", "no image")
    assert (tags["lastCode"], tags["lastReason"]) == (last_code, last_reason)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("422", 4, "easq: the model answered 422: no image\n"),
        ("503", 5, "easq: the model answered 503: no image\n"),
        ("EngineError", 5, "easq: the model answered 500: EngineError\n"),
    ],
)
def test_a_prediction_that_failed_shows_why(queue: Easq, code: str, status: int, said: str) -> None:
    with engine(queue) as watching, queue.start("predict", "-d", "a") as predicting:
        queue("negative", taken(watching), "--code", code, "--reason", "no image")
        out, err = predicting.communicate()
    assert (predicting.returncode, out, err.decode()) == (status, b"no image", said)
    assert queue("count", "-k").text == "0\n"
    assert queue("count", "--rear").text == "1\n"


def test_a_shutdown_is_no_failure(queue: Easq) -> None:
    queue("put", "-q", "-d", "a")
    with engine(queue) as watching:
        queue("negative", taken(watching), "--code", "Shutdown")
    assert queue("count").text == "1\n"
    assert queue("count", "--rear").text == "0\n"


def test_the_sink_has_a_rear_store_of_its_own(queue: Easq) -> None:
    """-k and --rear together select the rear store of the sink, for every command that has both options."""
    fail(queue, "a")
    queue("put", "-k", "-q", "-d", "result", "--tags", "task=k")
    tasks = ("--tags", "task=k")
    args = ("-k", "--commit", "none", "-o", "json", "-q", "--user", "engine", *tasks)
    with queue.start("watch", *args) as watching:
        index = taken(watching)
        assert queue("negative", "-k", index, "--code", "EngineError").status == 0
        eventually(lambda: queue("count", "-k", "--rear").text == "1\n")
        watching.terminate()
        watching.communicate()
    assert [record["data"] for record in records(queue, "-k", "--rear")] == ["result"]
    assert [record["data"] for record in records(queue, "--rear")] == ["a"]
    assert queue("info", "-k", "--rear", "--field", "stream.length").text == "1\n"
    watched = queue("watch", "-k", "--rear", "--commit", "none", "-n", "1", "-o", "raw", "-q")
    assert watched.text == "result\n"
    assert queue("delete", "-k", "--rear", "-y", str(records(queue, "-k", "--rear")[0]["index"])).status == 0
    assert queue("trunc", "-k", "--rear", "--all", "-y").status == 0
    assert (queue("count", "-k", "--rear").text, queue("count", "--rear").text) == ("0\n", "1\n")
