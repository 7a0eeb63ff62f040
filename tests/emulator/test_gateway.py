"""The gateway: forwards calls and WebSockets to instances, by weight."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import OpenCloud
from tests.support.http import Connection, ask
from tests.support.waiting import eventually
from tests.support.websocket import TEXT, Refused, Watch, early_frames, encode

GATEWAY = "/api/predict/model"
#: time limit of a call, in seconds: the gateway adds two seconds, so its own limit is 0.2 s
SHORT_S = -1.8


def test_the_gateway_spreads_calls_by_weight(cloud: OpenCloud) -> None:
    """The shares are exact in each cycle, and a header names the instance."""
    made = cloud(weights=(3, 0, 1))
    with Connection(made.port) as connection:
        answers = [connection.ask("POST", f"{GATEWAY}/p", body=b"%d" % n) for n in range(40)]
    assert [answer.body for answer in answers] == [b"%d" % n for n in range(40)]
    assert made.counts() == [30, 0, 10]
    served = Counter(answer.header("X-Easq-Instance") for answer in answers)
    assert served == {made.addresses[0]: 30, made.addresses[2]: 10}
    assert made.asked("gateway") == 40
    assert made.asked("discovery") == 0


def test_the_gateway_forwards_requests_and_answers_unchanged(cloud: OpenCloud) -> None:
    """Type, encoding and bytes are unchanged. Credentials and origin of the caller are withheld."""
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
    """Path and query reach the model in the encoding in which they were sent."""
    made = cloud("exec:sh -c 'echo $EASQ_PATH $EASQ_QUERY'")
    assert (
        ask(made.port, "POST", f"{GATEWAY}/v1/%C3%A9%2Fx?a=b%20c", body=b"").text == "/v1/%C3%A9%2Fx a=b+c\n"
    )


def test_the_gateway_skips_an_instance_that_cannot_be_reached(cloud: OpenCloud) -> None:
    """If no instance can be reached the status is 502, with an empty list 503."""
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
def test_the_status_of_the_gateway_names_the_failure_of_the_instance(
    cloud: OpenCloud, fault: str, status: int
) -> None:
    """A refusal is forwarded unchanged, a broken answer is 502, a timeout 504. No call is sent twice."""
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
    """The close code is 1001, so that the caller may connect again."""
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
    """The close code is 1002, at gateway and instance, also for a frame that arrives with the handshake."""
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
    """The instance then has no connection left."""
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


def test_the_gateway_cancels_the_call_of_a_caller_that_left(cloud: OpenCloud) -> None:
    """The call is cancelled at its instance."""
    made = cloud()
    made.fault(0, "hung")
    with Connection(made.port) as connection:
        connection.send_request("POST", GATEWAY, body=b"x")
        eventually(lambda: made.counts() == [1])
        connection.reset()
    eventually(lambda: made.hanging == 0)


@pytest.mark.parametrize("fault", ["half", "hung"])
def test_an_instance_without_an_answer_is_avoided_for_some_seconds(cloud: OpenCloud, fault: str) -> None:
    """The caller's next attempt gets another instance, unless there is no other."""
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
