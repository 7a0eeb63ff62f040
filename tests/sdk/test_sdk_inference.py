"""The official Python SDK's two tests of an inference engine, against `easq serve`, `easq work` and a real model."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conftest import Serve
from tests.sdk.conftest import RunSdk
from tests.sdk.test_official_sdk import RUN_THEIR_TESTS
from tests.support.working import classifier, working


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("test_watch_with_inference_service_sync", 100),
        pytest.param("test_watch_with_inference_service_async", 2000, marks=pytest.mark.long),
    ],
)
def test_the_sdks_own_tests_of_an_engine_pass(
    serve: Serve, run_sdk: RunSdk, record_property: Callable[[str, object], None], name: str, items: int
) -> None:
    """Every item is answered by the model, under the request id that its put was answered with."""
    service = serve()
    with classifier() as url, working(service, "--forward", url) as worker:
        done = run_sdk(RUN_THEIR_TESTS, f"127.0.0.1:{service.port}", "qservice", "", name, timeout_s=180)
        outcome = json.loads(done.stdout)
        took_s = outcome.pop("seconds")
        assert outcome == {"ran": 1, "passed": [name], "skipped": 0, "failures": []}
        assert service.stream().length() == 0
    outcomes = [json.loads(line)["outcome"] for line in worker.log.read_text().splitlines()]
    assert outcomes == ["answered"] * items
    record_property("items a second, put to read", round(items / took_s))
