"""The emulator beside the queues: base paths, the end of the service, and settings that cannot be served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from easq.emulator.emulator import open_service
from easq.emulator.settings import ModelService
from easq.errors import UsageError
from easq.server.server import ServerSettings
from tests.conftest import OpenCloud
from tests.support.http import ask
from tests.support.waiting import PATIENCE_S, eventually

GATEWAY = "/api/predict/model"


def test_queues_stand_beside_the_service(cloud: OpenCloud) -> None:
    """A name belongs to a queue or to the service. Any other name is 404."""
    made = cloud()
    index = made.queue.put(b"item")
    assert made.queue.get()[0].data == b"item"
    assert index == 1
    assert ask(made.port, "POST", "/v1/any/path", body=b"x").status == 200
    assert made.queue.length() == 2
    assert ask(made.port, "POST", "/api/predict/models", body=b"x").status == 404
    assert made.counts() == [0]


def test_a_base_path_may_be_empty(cloud: OpenCloud) -> None:
    """The path then begins with the service's name, at the instances as well."""
    made = cloud(base_path="/")
    for port in (made.port, made.ports[0]):
        assert ask(port, "POST", "/model/x", body=b"y").body == b"y"
    assert made.counts() == [2]


def test_calls_under_way_are_answered_when_the_service_stops(cloud: OpenCloud) -> None:
    """Calls in flight have a grace period of some seconds."""
    made = cloud("exec:sh -c 'read line; sleep 0.5; echo done'")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, made.port, "POST", GATEWAY, (), b"go\n")
        eventually(lambda: made.counts() == [1])
        made.request_stop()
        assert call.result(PATIENCE_S).body == b"done\n"


@pytest.mark.long
def test_calls_that_outlast_the_grace_period_get_503_when_the_service_stops(cloud: OpenCloud) -> None:
    """The command of the call is killed."""
    made = cloud("exec:sleep 1000")
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, port, "POST", GATEWAY, (), b"") for port in (made.port, made.ports[0])]
        eventually(lambda: made.counts() == [2])
        made.stop()
        for call in calls:
            answer = call.result(PATIENCE_S)
            assert (answer.status, answer.text) == (503, "the call was cancelled")


@pytest.mark.parametrize(
    ("service", "message"),
    [
        (ModelService("ech"), "model 'ech': not known"),
        (ModelService("exec:"), "model 'exec:': no command"),
        (ModelService("echo", "a/b"), "--service: "),
        (ModelService("echo", ""), "--service: "),
        (ModelService("echo", "q"), "q is a queue and a service: a name is one of them"),
        (ModelService("echo", weights=()), "--weights : one of 0 to 1000000 for each instance"),
        (ModelService("echo", weights=(1, -1)), "--weights 1,-1: one of 0 to 1000000 for each instance"),
        (
            ModelService("echo", weights=(1_000_001,)),
            "--weights 1000001: one of 0 to 1000000 for each instance",
        ),
    ],
)
def test_settings_that_cannot_be_served_are_refused(service: ModelService, message: str) -> None:
    """The error is raised before anything listens."""
    with pytest.raises(UsageError) as caught:
        open_service(ServerSettings(port=0, queues=("q",)), service)
    assert caught.value.message.startswith(message)
