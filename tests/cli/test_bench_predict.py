"""easq bench predict: load on a model, over every route of predict except WebSocket."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.cli.conftest import Easq
from tests.cli.direct import Service, service
from tests.cli.test_bench import FIGURES
from tests.client.servers import reply
from tests.conftest import OpenCloud, Serve
from tests.support.waiting import eventually

__all__ = ["service"]  # the fixture

KEYS = ["bench", "via", *(name for name in FIGURES if name not in ("bench", "deleted"))]


def figures(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.mark.parametrize("via", ["queue", "gateway", "direct"])
def test_every_request_is_measured_and_nothing_is_left(
    easq: Easq, cloud: OpenCloud, serve: Serve, via: str
) -> None:
    made = cloud(weights=(1, 1, 1))
    queue = serve("--model", "echo", storage="memory:").url() if via == "queue" else ""
    where = {
        "queue": ("--url", queue),
        "gateway": ("--url", made.url),
        "direct": ("--endpoint", made.origin, "--service", "model"),
    }[via]
    options = ("-n", "150", "-c", "4", "--warmup", "10", "--size", "1k", "-o", "json")
    done = easq("bench", "predict", "--via", via, *where, *options)
    assert (done.status, done.err) == (0, "")
    record = figures(done.text)
    assert list(record) == KEYS
    assert (record["bench"], record["via"], record["concurrency"], record["size"]) == (
        "predict",
        via,
        4,
        1024,
    )
    assert (record["requests"], record["succeeded"], record["failed"]) == (150, 150, 0)
    assert record["bytes_per_second"] == pytest.approx(record["throughput"] * 1024, rel=0.01)
    if via == "queue":
        assert easq("count", "-k", "--url", queue).text == "0\n"
    else:
        assert sum(made.counts()) == 160


def test_a_rate_is_kept_and_the_profile_says_which_way(easq: Easq, service: Service) -> None:
    options = (
        "--duration",
        "0.5s",
        "--rate",
        "100",
        "--warmup",
        "5",
        "--path",
        "v1/x",
        "--content-type",
        "a/b",
    )
    done = easq("bench", "predict", *options, "-o", "json")
    assert done.status == 0
    record = figures(done.text)
    assert (record["via"], record["rate"]) == ("direct", 100)
    assert 25 <= record["requests"] <= 100
    assert all(head.startswith("POST /api/predict/svc/v1/x ") for head in service.heads)
    assert all("Content-Type: a/b" in head.split("\r\n") for head in service.heads)


def test_the_lines_of_a_file_are_the_requests_in_turn(easq: Easq, service: Service) -> None:
    (easq.home / "lines").write_text("a\nbbb\n")
    done = easq("bench", "predict", "-n", "4", "--warmup", "0", "-c", "1", "-f", "lines", "-o", "none")
    assert done.status == 0
    assert sorted(body for _, body in service.requests) == [b"a", b"a", b"bbb", b"bbb"]


def test_failures_are_counted_by_kind_and_told(easq: Easq, service: Service) -> None:
    service.behaviours[0].now = reply(500, b"no memory")
    done = easq("bench", "predict", "-n", "40", "-c", "4", "--warmup", "0", "-o", "json")
    assert done.status == 10
    record = figures(done.text)
    assert (record["succeeded"], record["failed"], record["error_server"]) == (20, 20, 20)
    assert json.loads(done.err)["error"]["message"] == "20 succeeded, 20 failed; the first: no memory"
    done = easq("bench", "predict", "-n", "10", "--fail-if", "errors>10%", "-o", "none")
    assert done.status == 11


def test_what_another_instance_answered_is_counted_as_sent_again(easq: Easq, service: Service) -> None:
    service.behaviours[0].now = reply(503)
    done = easq("bench", "predict", "-n", "40", "--warmup", "0", "-o", "json")
    assert done.status == 0
    record = figures(done.text)
    assert record["succeeded"] == 40
    assert record["retried"] >= 10


def test_an_interrupt_tells_what_was_measured(easq: Easq, service: Service) -> None:
    with easq.start("bench", "predict", "--duration", "1h", "--rate", "200", "-o", "json") as process:
        eventually(lambda: len(service.requests) > 120)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert figures(out.decode())["succeeded"] > 0


@pytest.mark.usefixtures("service")
def test_what_does_not_go_together_is_refused(easq: Easq) -> None:
    done = easq("bench", "predict", "--via", "gateway", "--service", "x", "--url", "http://127.0.0.1:1/q")
    assert (done.status, done.err) == (2, "easq: --service is only for --via direct and modelarts\n")
    easq("config", "set", "via", "websocket")
    done = easq("bench", "predict")
    assert (done.status, done.out) == (2, b"")
    assert done.err == (
        "easq: bench predict does not support --via websocket\nhint: --via queue, gateway, direct or modelarts\n"
    )


def test_requests_that_nobody_answered_are_deleted_again(easq: Easq, serve: Serve) -> None:
    """Also requests of the warm-up, and requests in flight at Ctrl-C. Items of other clients stay."""
    url = serve(storage="memory:").url()
    assert easq("put", "-q", "-d", "mine", "--url", url).status == 0
    done = easq(
        *("bench", "predict", "-n", "3", "--warmup", "2", "--timeout", "1s", "--url", url, "-o", "none")
    )
    assert done.status == 9
    assert easq("count", "--url", url).text == "1\n"
    command = ("bench", "predict", "-n", "4", "-c", "4", "--warmup", "0", "--url", url, "-o", "json")
    with easq.start(*command) as process:
        eventually(lambda: easq("count", "--url", url).text == "5\n")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (130, b"")
    assert figures(out.decode())["failed"] == 0
    assert easq("get", "-l", "9", "-o", "raw", "--url", url).text == "mine\n"
