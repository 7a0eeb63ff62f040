"""easq bench: its figures, the items that it deletes, and its failures."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import pytest

from tests.cli.conftest import Easq, finish
from tests.conftest import Serve
from tests.support.waiting import eventually

FIGURES = [
    "bench", "concurrency", "rate", "size", "warmup", "requests", "succeeded", "failed", "retried", "seconds",
    "throughput", "bytes_per_second", "min_ms", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms",
    "deleted",
]  # fmt: skip


def length(queue: Easq) -> str:
    return queue("info", "--field", "stream.length").text


def figures(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("what", ["put", "drain", "roundtrip"])
def test_every_request_is_measured_and_nothing_is_left(queue: Easq, what: str) -> None:
    done = queue("bench", what, "-n", "300", "-c", "4", "--warmup", "20", "--size", "1k", "-o", "json")
    assert (done.status, done.err) == (0, "")
    record = figures(done.text)
    assert list(record) == FIGURES
    assert (record["bench"], record["concurrency"], record["size"], record["warmup"]) == (what, 4, 1024, 20)
    assert (record["requests"], record["succeeded"], record["failed"]) == (300, 300, 0)
    assert record["deleted"] == 320
    ordered = [record[f"{name}_ms"] for name in ("min", "p50", "p90", "p99", "p99_9", "max")]
    assert ordered == sorted(ordered)
    assert record["throughput"] == pytest.approx(300 / record["seconds"], rel=0.01)
    assert length(queue) == "0\n"


def test_a_rate_is_kept_whatever_the_answers_take(queue: Easq) -> None:
    done = queue("bench", "put", "--duration", "0.5s", "--rate", "100", "--warmup", "5", "-o", "json")
    assert done.status == 0
    record = figures(done.text)
    assert record["rate"] == 100
    assert 25 <= record["requests"] <= 100
    assert record["throughput"] < 110


def test_the_lines_of_a_file_are_the_items(queue: Easq) -> None:
    (queue.home / "lines").write_text("a\nbbb\n")
    done = queue("bench", "put", "-n", "4", "--warmup", "0", "-f", "lines", "-o", "json")
    assert figures(done.text)["size"] == 2
    assert figures(done.text)["requests"] == 4


def test_a_queue_that_is_not_empty_is_left_alone(queue: Easq) -> None:
    queue("put", "-d", "mine")
    done = queue("bench", "put", "-n", "5")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("easq: the queue is not empty: it holds 1 items\nhint: ")
    for what in ("put", "drain", "roundtrip"):
        forced = queue("bench", what, "-n", "5", "--force", "-o", "json")
        assert forced.status == 0
        assert figures(forced.text)["succeeded"] == 5
    assert queue("get", "-l", "10", "-o", "raw").text == "mine\n"


def test_text_is_a_figure_a_line_and_a_histogram_on_a_terminal(queue: Easq) -> None:
    done = queue("bench", "put", "-n", "20")
    names = [line.partition(" : ")[0] for line in done.text.splitlines()]
    assert names == [
        "bench", "concurrency", "size", "warmup", "requests", "succeeded", "failed", "retried", "seconds",
        "throughput", "bytes_per_second", "min", "mean", "p50", "p90", "p99", "p99.9", "max", "deleted",
    ]  # fmt: skip
    status, text = finish(queue.terminal("bench", "put", "-n", "20"))
    assert status == 0
    assert len(re.findall(r"^ *<= [0-9.]+(?:µs|ms|s) #* +[0-9]+$", text, re.MULTILINE)) == 12
    table = queue("bench", "put", "-n", "20", "-o", "table")
    assert table.text.startswith("figure\tvalue\nbench\tput\n")


def test_a_condition_that_holds_is_the_exit_status(queue: Easq) -> None:
    done = queue("bench", "put", "-n", "20", "-o", "json", "--fail-if", "p99>0ms", "--fail-if", "errors>0")
    assert done.status == 11
    assert figures(done.text)["succeeded"] == 20
    error = json.loads(done.err)["error"]
    assert error["kind"] == "check"
    assert re.fullmatch(r"p99>0ms holds: p99 is [0-9.]+(?:µs|ms|s)", error["message"])
    fine = queue("bench", "put", "-n", "20", "--fail-if", "p99>1h", "--fail-if", "errors>0", "-o", "none")
    assert (fine.status, fine.out) == (0, b"")


def test_what_is_no_condition_is_refused_before_anything_is_sent(queue: Easq) -> None:
    done = queue("bench", "put", "--fail-if", "p99>50")
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        "easq: invalid value for '--fail-if': '50' has no unit: write 50ms or 50s\n"
        "hint: easq bench put --help\n"
    )


@pytest.mark.parametrize(
    "args",
    [
        ["-n", "5", "--duration", "1s"],
        ["--size", "5", "-f", "x"],
        ["-n", "0"],
        ["--rate", "0"],
        ["--rate", "nan"],
    ],
)
def test_what_cannot_be_meant_is_refused(queue: Easq, args: list[str]) -> None:
    (queue.home / "x").write_text("x\n")
    done = queue("bench", "put", *args)
    assert (done.status, done.out) == (2, b"")


def test_failures_are_counted_by_kind_and_told(easq: Easq, serve: Serve) -> None:
    url = serve("--max-length", "30", storage="memory:").url()
    done = easq("bench", "put", "-n", "40", "-c", "4", "--warmup", "0", "--url", url, "-o", "json")
    assert done.status == 10
    record = figures(done.text)
    assert (record["succeeded"], record["failed"], record["error_queue_full"]) == (30, 10, 10)
    assert json.loads(done.err)["error"]["message"].startswith("30 succeeded, 10 failed; the first: ")
    assert easq("info", "--field", "stream.length", "--url", url).text == "0\n"


def test_a_service_that_is_not_there(easq: Easq) -> None:
    done = easq("bench", "put", "--url", "http://127.0.0.1:1/q", "--connect-timeout", "0.1")
    assert (done.status, done.out) == (6, b"")


@pytest.mark.parametrize("what", ["put", "roundtrip"])
def test_an_interrupt_tells_what_was_measured_and_cleans_up(queue: Easq, what: str) -> None:
    with queue.start("bench", what, "--duration", "1h", "--rate", "200", "-o", "json") as process:
        eventually(lambda: int(queue("info", "--field", "stream.lastEntry").text) > 120)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    record = figures(out.decode())
    # behind the 100 of the warm-up, some may have been put and not come back yet
    assert record["deleted"] - 100 >= record["succeeded"] > 0
    assert length(queue) == "0\n"


def test_an_interrupt_while_a_drain_puts_its_items_is_no_error(queue: Easq) -> None:
    with queue.start("bench", "drain", "-n", "1000000", "-o", "json") as process:
        eventually(lambda: int(queue("info", "--field", "stream.lastEntry").text) > 120)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    record = figures(out.decode())
    assert (record["requests"], record["failed"]) == (0, 0)
    assert record["deleted"] > 120
    assert length(queue) == "0\n"


@pytest.mark.parametrize("what", ["put", "drain", "roundtrip", "predict"])
def test_a_size_that_the_queue_does_not_take_is_refused_before_it_is_made(queue: Easq, what: str) -> None:
    done = queue("bench", what, "--size", "100GiB")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("easq: --size 107374182400: at most 8388608 bytes are taken\n")


def test_a_size_that_no_model_takes_is_refused_before_it_is_made(easq: Easq) -> None:
    done = easq("bench", "predict", "--via", "gateway", "--url", "http://127.0.0.1:1/q", "--size", "100GiB")
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith("easq: --size 107374182400: at most 268435456 bytes are taken\n")
