"""Discovery of EAS and look-up of ModelArts: the addresses of a service's instances."""

from __future__ import annotations

import json

import pytest

from easq.emulator.settings import ModelService
from tests.conftest import OpenCloud
from tests.server.conftest import Open
from tests.support.http import Connection, ask

GATEWAY = "/api/predict/model"
DOCUMENTED = "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/"
PYTHON = "/api/v1/servicediscovery/upstreams/"
LOOKUP = "/v1/project/services/model/predict/endpoints?type=host_endpoints"


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
@pytest.mark.parametrize("query", ["", "?internal=true", "?internal=false"])
def test_discovery_names_the_instances(cloud: OpenCloud, path: str, query: str) -> None:
    """Both paths return them in the documented form, without a token."""
    made = cloud(weights=(100, 50), token="t")
    answer = ask(made.port, "GET", f"{path}model{query}")
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/json"
    first, second = made.ports
    assert answer.json == {
        "correlative": ["model"],
        "endpoints": {
            "items": [
                {"app": "model", "ip": "127.0.0.1", "port": first, "weight": 100},
                {"app": "model", "ip": "127.0.0.1", "port": second, "weight": 50},
            ]
        },
    }
    assert made.asked("discovery") == 1


def test_the_app_is_the_name_with_dashes(start: Open) -> None:
    """EAS replaces underscores by dashes in `app`."""
    service = start(service=ModelService("echo", "my_model"))
    (item,) = ask(service.port, "GET", f"{DOCUMENTED}my_model").json["endpoints"]["items"]
    assert item["app"] == "my-model"
    assert ask(service.port, "GET", f"{DOCUMENTED}my%5Fmodel").status == 200


#: the headers that the Java SDK sends in its direct mode, without Host: its own, then those of its HTTP client
JAVA = (
    b"GET /exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/model HTTP/1.1\r\n"
    b"User-Agent: EAS-Java-Client:v2.0\r\n"
    b"Accept-Encoding: gzip,deflate,sdch\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Type: application/x-www-form-urlencoded;charset=UTF-8\r\n"
    b"Accept-Charset: UTF-8\r\n"
    b"Host: 127.0.0.1\r\n"
    b"Accept: text/html, image/gif, image/jpeg, */*; q=0.2\r\n"
    b"Connection: keep-alive\r\n\r\n"
)


def test_the_java_sdks_discovery_is_answered(cloud: OpenCloud) -> None:
    """Its GET has two Content-Type headers, and is repeated on the same connection."""
    made = cloud()
    with Connection(made.port) as connection:
        for _ in range(3):
            connection.send(JAVA)
            answer = connection.read_answer()
            assert answer.status == 200
            assert answer.json["endpoints"]["items"][0]["port"] == made.ports[0]


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
def test_discovery_of_a_queue_names_the_service_itself(start: Open, path: str) -> None:
    """The SDK's QueueClient has a direct mode as well."""
    service = start(queues=("q", "other"), token="t")
    for name in ("q", "other", "%71"):
        answer = ask(service.port, "GET", path + name)
        assert answer.status == 200
        assert [(item["ip"], item["port"], item["weight"]) for item in answer.json["endpoints"]["items"]] == [
            ("127.0.0.1", service.port, 100)
        ]
    assert ask(service.port, "GET", path + "third").status == 404


@pytest.mark.parametrize("name", ["other", "q/sink", "", "model/x", "%FF"])
@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
def test_an_unknown_service_is_404(cloud: OpenCloud, path: str, name: str) -> None:
    """After a 200 with an empty list, official clients would clear their own lists."""
    assert ask(cloud().port, "GET", path + name).status == 404


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
def test_without_a_model_no_service_is_known(start: Open, path: str) -> None:
    """The paths exist without a model. A POST to one is not a put into the first queue."""
    service = start()
    assert ask(service.port, "GET", path + "model").status == 404
    assert ask(service.port, "POST", path + "model", body=b"x").status == 405
    answer = ask(service.port, "GET", LOOKUP)
    assert (answer.status, answer.json["error_code"]) == (404, "ModelArts.0404")
    assert service.queue.length() == 0


def test_drained_and_removed_instances_are_not_listed(cloud: OpenCloud) -> None:
    """The Go SDK divides by the weight, so weight 0 is left out. Without an instance the status is 503."""
    made = cloud(weights=(100, 0, 7))

    def named() -> list[tuple[int, int]]:
        items = ask(made.port, "GET", f"{DOCUMENTED}model").json["endpoints"]["items"]
        return [(made.ports.index(item["port"]), item["weight"]) for item in items]

    assert named() == [(0, 100), (2, 7)]
    made.weigh(1, 3)
    assert named() == [(0, 100), (1, 3), (2, 7)]
    made.list(0, False)
    assert named() == [(1, 3), (2, 7)]
    made.weigh(1, 0)
    made.list(2, False)
    for path in (f"{DOCUMENTED}model", f"{PYTHON}model", LOOKUP):
        answer = ask(made.port, "GET", path)
        assert (answer.status, answer.header("Retry-After")) == (503, None)
    made.list(0, True)
    assert named() == [(0, 100)]


def test_instances_on_all_addresses_have_the_address_that_the_caller_used(start: Open) -> None:
    """A service bound to `0.0.0.0` returns the local address of the caller's connection."""
    service = start(host="0.0.0.0", token="t", service=ModelService("echo"))
    (item,) = ask(service.port, "GET", f"{DOCUMENTED}model").json["endpoints"]["items"]
    assert item["ip"] == "127.0.0.1"
    assert ask(item["port"], "POST", GATEWAY, [("Authorization", "t")], b"x").body == b"x"


def test_a_look_up_names_the_instances(cloud: OpenCloud) -> None:
    """The token stands in X-Auth-Token. The project may be any."""
    made = cloud(weights=(1, 1), token="secret")
    answer = ask(made.port, "GET", LOOKUP, [("X-Auth-Token", "secret")])
    assert answer.status == 200
    assert answer.header("X-Request-Id")
    assert answer.json == {
        "service_id": "model",
        "host_endpoints": [{"schema": "http", "ip": "127.0.0.1", "port": port} for port in made.ports],
    }
    assert made.asked("modelarts") == 1


@pytest.mark.parametrize(
    ("target", "token", "status"),
    [
        (LOOKUP, "", 401),
        (LOOKUP, "wrong", 401),
        (LOOKUP, "\u00fc", 401),
        (LOOKUP.replace("model/", "other/"), "wrong", 401),
        (LOOKUP.replace("model/", "other/"), "secret", 404),
        (LOOKUP.replace("model/", "q/"), "secret", 404),
        ("/v1/project/services/model", "secret", 404),
        ("/v1/project/services/model/predict/other?type=host_endpoints", "secret", 404),
        (LOOKUP.partition("?")[0], "secret", 400),
        (LOOKUP + "s", "secret", 400),
        (LOOKUP + "&type=x", "secret", 400),
    ],
)
def test_errors_of_the_look_up_have_the_form_of_modelarts(
    cloud: OpenCloud, target: str, token: str, status: int
) -> None:
    """Errors are JSON with code and message, as from ModelArts' management API."""
    headers = [("X-Auth-Token", token)] if token else []
    answer = ask(cloud(token="secret").port, "GET", target, headers)
    assert answer.status == status
    assert answer.header("Content-Type") == "application/json"
    assert set(answer.json) == {"error_code", "error_msg"}
    assert "secret" not in answer.text


def test_without_a_token_every_look_up_is_answered(cloud: OpenCloud) -> None:
    assert ask(cloud().port, "GET", LOOKUP, [("X-Auth-Token", "any")]).status == 200


def test_the_lists_are_json_of_one_line(cloud: OpenCloud) -> None:
    """The JSON has no newline."""
    body = ask(cloud().port, "GET", f"{PYTHON}model").body
    assert b"\n" not in body
    assert json.loads(body)
