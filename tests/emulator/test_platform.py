"""What the cloud puts around a model: the gateway, and who says where the instances are."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from easq.emulator.emulator import open_service
from easq.emulator.settings import ModelService
from easq.errors import UsageError
from easq.server.server import ServerSettings
from tests.conftest import OpenCloud
from tests.server.conftest import Open
from tests.support.http import Connection, ask
from tests.support.waiting import PATIENCE_S, eventually
from tests.support.websocket import TEXT, Refused, Watch, early_frames, encode

GATEWAY = "/api/predict/model"
DOCUMENTED = "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/"
PYTHON = "/api/v1/servicediscovery/upstreams/"
#: of a call: the gateway gives it two seconds more, which makes 0.2
SHORT_S = -1.8
LOOKUP = "/v1/project/services/model/predict/endpoints?type=host_endpoints"


# discovery


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
@pytest.mark.parametrize("query", ["", "?internal=true", "?internal=false"])
def test_discovery_names_the_instances(cloud: OpenCloud, path: str, query: str) -> None:
    """At both paths, without a token, in the documented form."""
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
    """As the platform writes it."""
    service = start(service=ModelService("echo", "my_model"))
    (item,) = ask(service.port, "GET", f"{DOCUMENTED}my_model").json["endpoints"]["items"]
    assert item["app"] == "my-model"
    assert ask(service.port, "GET", f"{DOCUMENTED}my%5Fmodel").status == 200


#: what the Java SDK sends in its direct mode, but for Host: headers of its own, then those of its HTTP client
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
    """Again and again on one connection; its Content-Type stands there twice."""
    made = cloud()
    with Connection(made.port) as connection:
        for _ in range(3):
            connection.send(JAVA)
            answer = connection.read_answer()
            assert answer.status == 200
            assert answer.json["endpoints"]["items"][0]["port"] == made.ports[0]


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
def test_discovery_of_a_queue_names_the_service_itself(start: Open, path: str) -> None:
    """The SDK's QueueClient has a direct mode too."""
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
    """Not 200 with an empty list, by which official clients forget what they know."""
    assert ask(cloud().port, "GET", path + name).status == 404


@pytest.mark.parametrize("path", [DOCUMENTED, PYTHON])
def test_without_a_model_no_service_is_known(start: Open, path: str) -> None:
    """The doors are there, and a POST to one is no put into the first queue."""
    service = start()
    assert ask(service.port, "GET", path + "model").status == 404
    assert ask(service.port, "POST", path + "model", body=b"x").status == 405
    answer = ask(service.port, "GET", LOOKUP)
    assert (answer.status, answer.json["error_code"]) == (404, "ModelArts.0404")
    assert service.queue.length() == 0


def test_what_is_drained_or_gone_is_not_named(cloud: OpenCloud) -> None:
    """Weight 0 is left out: the Go SDK divides by it. With none left it is 503, never an empty list."""
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


def test_on_all_addresses_instances_are_where_the_caller_came_to(start: Open) -> None:
    """`0.0.0.0` is no address that anyone could call."""
    service = start(host="0.0.0.0", token="t", service=ModelService("echo"))
    (item,) = ask(service.port, "GET", f"{DOCUMENTED}model").json["endpoints"]["items"]
    assert item["ip"] == "127.0.0.1"
    assert ask(item["port"], "POST", GATEWAY, [("Authorization", "t")], b"x").body == b"x"


# ModelArts


def test_a_look_up_names_the_instances(cloud: OpenCloud) -> None:
    """For who has the token, in X-Auth-Token, whatever the project."""
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
def test_what_a_look_up_is_refused_with(cloud: OpenCloud, target: str, token: str, status: int) -> None:
    """JSON with code and message, as from the management's API."""
    headers = [("X-Auth-Token", token)] if token else []
    answer = ask(cloud(token="secret").port, "GET", target, headers)
    assert answer.status == status
    assert answer.header("Content-Type") == "application/json"
    assert set(answer.json) == {"error_code", "error_msg"}
    assert "secret" not in answer.text


def test_without_a_token_every_look_up_is_answered(cloud: OpenCloud) -> None:
    assert ask(cloud().port, "GET", LOOKUP, [("X-Auth-Token", "any")]).status == 200


# the gateway


def test_the_gateway_spreads_calls_by_weight(cloud: OpenCloud) -> None:
    """Exactly, in every cycle; and it is said who answered."""
    made = cloud(weights=(3, 0, 1))
    with Connection(made.port) as connection:
        answers = [connection.ask("POST", f"{GATEWAY}/p", body=b"%d" % n) for n in range(40)]
    assert [answer.body for answer in answers] == [b"%d" % n for n in range(40)]
    assert made.counts() == [30, 0, 10]
    served = Counter(answer.header("X-Easq-Instance") for answer in answers)
    assert served == {made.addresses[0]: 30, made.addresses[2]: 10}
    assert made.asked("gateway") == 40
    assert made.asked("discovery") == 0


def test_the_gateway_passes_what_was_sent_and_answered(cloud: OpenCloud) -> None:
    """Type, encoding and bytes as they are; who called and from where stays at the door."""
    show = "exec:sh -c 'echo $EASQ_PATH $EASQ_QUERY $EASQ_CONTENT_TYPE; env | grep -c gateway-canary'"
    made = cloud(show, token="gateway-canary")
    headers = [
        ("Authorization", "gateway-canary"),
        ("Content-Type", "a/b"),
        ("Origin", f"http://127.0.0.1:{made.port}"),
    ]
    answer = ask(made.port, "POST", f"{GATEWAY}/v1/%C3%A9?a=b%20c", headers, b"")
    assert answer.status == 500  # grep found nothing
    answer = ask(
        cloud().port, "POST", GATEWAY, [("Content-Type", "a/b"), ("Content-Encoding", "gzip")], b"\x1f\x8b"
    )
    assert (answer.body, answer.header("Content-Type")) == (b"\x1f\x8b", "a/b")


def test_the_path_reaches_the_model_through_the_gateway(cloud: OpenCloud) -> None:
    """In the encoding in which it was sent, as does the query."""
    made = cloud("exec:sh -c 'echo $EASQ_PATH $EASQ_QUERY'")
    assert (
        ask(made.port, "POST", f"{GATEWAY}/v1/%C3%A9%2Fx?a=b%20c", body=b"").text == "/v1/%C3%A9%2Fx a=b+c\n"
    )


def test_the_gateway_passes_over_an_instance_that_is_away(cloud: OpenCloud) -> None:
    """Nothing was sent to it; with none left it is 502, and 503 when the list is empty."""
    made = cloud(weights=(1, 1))
    made.kill(0)
    for _ in range(4):
        assert ask(made.port, "POST", GATEWAY, body=b"x").body == b"x"
    made.kill(1)
    answer = ask(made.port, "POST", GATEWAY, body=b"x")
    assert (answer.status, answer.text) == (502, "no instance can be reached")
    with pytest.raises(Refused) as caught:
        Watch(made.port, GATEWAY)
    assert caught.value.answer.status == 502
    made.list(0, False)
    made.list(1, False)
    answer = ask(made.port, "POST", GATEWAY, body=b"x")
    assert (answer.status, answer.text) == (503, "the service has no instance now")
    made.back(1)
    made.list(1, True)
    assert ask(made.port, "POST", GATEWAY, body=b"x").body == b"x"


@pytest.mark.parametrize(("fault", "status"), [("busy", 503), ("half", 502), ("hung", 504)])
def test_the_gateway_says_what_went_wrong_behind_it(cloud: OpenCloud, fault: str, status: int) -> None:
    """A refusal as it is, a broken answer as 502, none in time as 504; it does not send a call twice."""
    made = cloud(weights=(1, 1), timeout_s=SHORT_S if fault == "hung" else 30)
    for number in (0, 1):
        made.fault(number, fault)
    assert ask(made.port, "POST", GATEWAY, body=b"x").status == status
    assert sum(made.counts()) == 1


def test_a_socket_follows_a_call_on_the_same_connection(cloud: OpenCloud) -> None:
    """The gateway reuses its connection to the instance for the handshake."""
    made = cloud()
    assert ask(made.port, "POST", GATEWAY, body=b"x").text == "x"
    with Watch(made.port, GATEWAY) as socket:
        socket.send(TEXT, b"y")
        assert socket.read().payload == b"y"


def test_an_instance_that_dies_ends_the_relayed_socket(cloud: OpenCloud) -> None:
    """With 1001: the caller may connect again."""
    made = cloud()
    socket = Watch(made.port, GATEWAY)
    socket.send(TEXT, b"x")
    assert socket.read().payload == b"x"
    made.kill(0)
    assert socket.read_close() == 1001
    socket.connection.close()


@pytest.mark.parametrize("is_early", [True, False])
@pytest.mark.parametrize("is_gateway", [True, False])
def test_an_unmasked_frame_closes_a_socket(cloud: OpenCloud, is_gateway: bool, is_early: bool) -> None:
    """With 1002, at the gateway and at the instance, also in one piece with the handshake; it is not answered."""
    made = cloud()
    bad = encode(TEXT, b"yo", masked=False)
    with Connection(made.port if is_gateway else made.ports[0]) as connection:
        connection.send(early_frames(GATEWAY, bad if is_early else b""))
        assert connection.read_head()[0] == 101
        if not is_early:
            connection.send(bad)
        assert connection.read(4)[2:] == (1002).to_bytes(2, "big")


@pytest.mark.parametrize("is_gateway", [True, False])
def test_a_socket_of_another_version_is_426(cloud: OpenCloud, is_gateway: bool) -> None:
    made = cloud()
    with Connection(made.port if is_gateway else made.ports[0]) as connection:
        connection.send(early_frames(GATEWAY, b"").replace(b"Version: 13", b"Version: 8"))
        status, headers = connection.read_head()[:2]
        assert (status, dict(headers)["Sec-WebSocket-Version"]) == (426, "13")


def test_a_caller_that_vanishes_ends_the_relay(cloud: OpenCloud) -> None:
    """Nothing is left of it at the instance."""
    made = cloud()
    socket = Watch(made.port, GATEWAY)
    socket.send(TEXT, b"x")
    assert socket.read().payload == b"x"
    assert len(made.instances[0]._sockets) == 1
    socket.reset()
    eventually(lambda: not made.instances[0]._sockets)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_the_gateway_takes_post(cloud: OpenCloud, method: str) -> None:
    assert ask(cloud().port, method, GATEWAY, body=b"").status == 405


def test_queues_stand_beside_the_service(cloud: OpenCloud) -> None:
    """A name is one of them; what names neither is 404."""
    made = cloud()
    index = made.queue.put(b"item")
    assert made.queue.get()[0].data == b"item"
    assert index == 1
    assert ask(made.port, "POST", "/v1/any/path", body=b"x").status == 200
    assert made.queue.length() == 2
    assert ask(made.port, "POST", "/api/predict/models", body=b"x").status == 404
    assert made.counts() == [0]


def test_a_base_path_may_be_empty(cloud: OpenCloud) -> None:
    """Then the service's name stands at the root, on the instances too."""
    made = cloud(base_path="/")
    for port in (made.port, made.ports[0]):
        assert ask(port, "POST", "/model/x", body=b"y").body == b"y"
    assert made.counts() == [2]


def test_calls_under_way_are_answered_when_the_service_stops(cloud: OpenCloud) -> None:
    """As puts are."""
    made = cloud("exec:sh -c 'read line; sleep 0.5; echo done'")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(ask, made.port, "POST", GATEWAY, (), b"go\n")
        eventually(lambda: made.counts() == [1])
        made.request_stop()
        assert call.result(PATIENCE_S).body == b"done\n"


@pytest.mark.long
def test_calls_that_take_too_long_are_told_when_the_service_stops(cloud: OpenCloud) -> None:
    """With 503: the command was killed, and the caller may ask elsewhere."""
    made = cloud("exec:sleep 1000")
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(ask, port, "POST", GATEWAY, (), b"") for port in (made.port, made.ports[0])]
        eventually(lambda: made.counts() == [2])
        made.stop()
        for call in calls:
            answer = call.result(PATIENCE_S)
            assert (answer.status, answer.text) == (503, "the call was cancelled")


def test_the_lists_are_json_of_one_line(cloud: OpenCloud) -> None:
    """No client has to guess where it ends."""
    body = ask(cloud().port, "GET", f"{PYTHON}model").body
    assert b"\n" not in body
    assert json.loads(body)


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
def test_what_cannot_be_served_is_refused(service: ModelService, message: str) -> None:
    """Before anything listens."""
    with pytest.raises(UsageError) as caught:
        open_service(ServerSettings(port=0, queues=("q",)), service)
    assert caught.value.message.startswith(message)


def test_the_gateway_gives_up_with_its_caller(cloud: OpenCloud) -> None:
    """A call that nobody waits for any more leaves its instance."""
    made = cloud()
    made.fault(0, "hung")
    with Connection(made.port) as connection:
        connection.send_request("POST", GATEWAY, body=b"x")
        eventually(lambda: made.counts() == [1])
        connection.reset()
    eventually(lambda: made.hanging == 0)


@pytest.mark.parametrize("fault", ["half", "hung"])
def test_an_instance_without_an_answer_is_passed_over_for_a_while(cloud: OpenCloud, fault: str) -> None:
    """A caller's next attempt meets another one; but it is asked when there is no other."""
    made = cloud(weights=(1, 1), timeout_s=SHORT_S if fault == "hung" else 30)
    made.fault(0, fault)
    made.list(1, False)
    assert ask(made.port, "POST", GATEWAY, body=b"x").status in (502, 504)
    assert ask(made.port, "POST", GATEWAY, body=b"x").status in (502, 504)
    assert made.counts() == [2, 0]
    made.list(1, True)
    for _ in range(6):
        assert ask(made.port, "POST", GATEWAY, body=b"x").status == 200
    assert made.counts() == [2, 6]
