"""`easq.predict`: one prediction as a function call, on each route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import easq
from easq.cli.app import App
from easq.cli.routes import chosen_route
from easq.local import Service, serve
from easq.prediction import routes
from easq.prediction.routes import Route, Terms

TOKEN = "a-secret-token"


def model(data: bytes) -> bytes:
    if data == b"bad":
        raise easq.ModelFailed("no picture", status=422)
    return data.upper()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serve(token=TOKEN, model=model, retry_delay_s=[0.0], max_delivery=1) as running:
        yield running


def origin(service: Service) -> str:
    return service.url.split("/api/")[0]


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(1.0, 30.0), (100.0, 100.0)])
def test_a_request_may_take_all_of_the_time_by_default(
    monkeypatch: pytest.MonkeyPatch, service: Service, timeout_s: float, limit_s: float
) -> None:
    limits = []

    def gateway_route(*args: Any) -> Route:
        limits.append(args[2].settings.request_timeout_s)
        return routes.gateway_route(*args)

    monkeypatch.setattr("easq.prediction.predict.gateway_route", gateway_route)
    url = service.queue_url("model")
    assert easq.predict(b"x", url, via="gateway", token=TOKEN, timeout_s=timeout_s) == b"X"
    app = App({})
    app.options |= {"url": url}
    limits.append(chosen_route(app, "gateway", Terms(timeout_s)).transport.settings.request_timeout_s)
    assert limits == [limit_s, limit_s]


def test_an_option_that_was_given_limits_each_request(service: Service) -> None:
    app = App({})
    app.options |= {"url": service.queue_url("model"), "request_timeout": 2.0}
    assert chosen_route(app, "gateway", Terms(100.0)).transport.settings.request_timeout_s == 2.0


def test_through_the_queue(service: Service) -> None:
    assert easq.predict("text", service.url, token=TOKEN, tags={"a": "b"}, priority=1) == b"TEXT"
    with easq.QueueClient(service.url, TOKEN) as queue:
        assert easq.predict(b"x", queue) == b"X"
        assert (queue.count(), queue.sink.count()) == (0, 0)


@pytest.mark.parametrize("sign", ["auto", "token", "hmac"])
def test_by_the_gateway(service: Service, sign: str) -> None:
    url = service.queue_url("model")
    assert easq.predict(b"x", url, via="gateway", token=TOKEN, sign=sign) == b"X"  # type: ignore[arg-type]


def test_from_an_instance(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        answer = easq.predict(b"x", via="direct", endpoint=origin(service), service="model", token=TOKEN)
        assert answer == b"X"
    assert list(tmp_path.rglob("*.json")) or list(tmp_path.rglob("*"))


def test_a_failure_of_the_model_is_raised(service: Service) -> None:
    with pytest.raises(easq.Refused, match="422"):
        easq.predict(b"bad", service.url, token=TOKEN)
    with pytest.raises(easq.Refused):
        easq.predict(b"bad", service.queue_url("model"), via="gateway", token=TOKEN)


def test_a_wrong_token_is_in_no_message(service: Service) -> None:
    for via, url in (("queue", service.url), ("gateway", service.queue_url("model"))):
        with pytest.raises(easq.AuthFailed) as refused:
            easq.predict(b"x", url, via=via, token="another-secret")  # type: ignore[arg-type]
        assert "another-secret" not in f"{refused.value} {refused.value.hint}"


def test_no_result_in_time_names_the_request() -> None:
    with serve() as alone, pytest.raises(easq.DeadlineExceeded) as late:
        easq.predict(b"x", alone.url, timeout_s=0.3)
    assert "--request-id" in late.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"url": "http://127.0.0.1:1/q", "timeout_s": 0},
        {"url": "http://127.0.0.1:1/q", "via": "nowhere"},
        {"url": "http://127.0.0.1:1/q", "via": "gateway", "tags": {"a": "b"}},
        {"url": "http://127.0.0.1:1/q", "endpoint": "http://127.0.0.1:1", "service": "s"},
        {"via": "direct", "endpoint": "http://127.0.0.1:1"},
        {"url": "http://127.0.0.1:1/q", "data": "\ud800"},
    ],
)
def test_arguments_that_do_not_go_together_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(easq.UsageError):
        easq.predict(**{"data": b"x", **options})  # type: ignore[arg-type]


def test_no_address_is_refused() -> None:
    with pytest.raises(easq.ConfigError, match="no url"):
        easq.predict(b"x")
