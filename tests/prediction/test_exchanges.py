from __future__ import annotations

import re
import time

import pytest

from easq import errors
from easq.client.queue import QueueClient
from easq.model import Frame
from easq.net.http import Transport
from easq.net.retry import Steps
from easq.net.settings import NetworkSettings
from easq.prediction.exchanges import Served, predict_gateway, predict_queue
from easq.protocol.frames import encode_frames
from easq.protocol.operations import Caller, Codec
from easq.protocol.signatures import sign
from tests.client.servers import Peer, answering, broken, free_port, reply

CALLER = Caller(token="canary-token-canary")
RESULT = Frame(9, {"requestId": "r-1", "lastCode": "500"}, b"result")
STORED = reply(200, b"1", X_Eas_Queueservice_Request_Id="r-1")
QUICK = NetworkSettings(connect_timeout_s=1.0, request_timeout_s=1.0, environ={})


def test_a_result_is_waited_for_by_its_request_id_and_stays_in_the_sink() -> None:
    found = reply(200, encode_frames([RESULT], Codec.PROTOBUF))
    with answering(STORED) as first, answering(reply(204), found) as second, Transport(QUICK) as transport:
        frame = transport.run(
            predict_queue(
                QueueClient.over(transport, first.url, CALLER),
                QueueClient.over(transport, f"{second.url}/sink", CALLER),
                b"question",
                timeout_s=30,
                tags={"k": "v"},
                path="/v1/x",
            )
        )
    assert frame == RESULT
    assert re.match(r"POST /api/predict/q/v1/x\?k=v&requestId=[0-9a-f-]{36} HTTP/1.1", first.requests[0][0])
    assert first.requests[0][1] == b"question"
    assert "Idempotency-Key: " in first.requests[0][0]
    for head in second.heads():
        target = head.split(" ")[1]
        assert target.startswith("/api/predict/q/sink?_index_=0&_length_=1&_timeout_=")
        assert target.endswith("&_auto_delete_=false&_raw_=false&requestId=r-1")


def test_a_result_that_does_not_come_names_the_request_and_how_to_fetch_it() -> None:
    with answering(STORED) as first, answering(reply(204)) as second, Transport(QUICK) as transport:
        with pytest.raises(errors.DeadlineExceeded) as caught:
            transport.run(
                predict_queue(
                    QueueClient.over(transport, first.url, CALLER),
                    QueueClient.over(transport, second.url, CALLER),
                    b"x",
                    timeout_s=0.5,
                )
            )
    assert caught.value.message == "no result of request r-1 within 0.5 s"
    assert "easq get -k --request-id r-1" in caught.value.hint


def test_a_failure_while_waiting_names_the_request_too() -> None:
    with (
        answering(STORED) as first,
        answering(reply(403, b"not you")) as second,
        Transport(QUICK) as transport,
    ):
        with pytest.raises(errors.Forbidden) as caught:
            transport.run(
                predict_queue(
                    QueueClient.over(transport, first.url, CALLER),
                    QueueClient.over(transport, second.url, CALLER),
                    b"x",
                    timeout_s=5,
                )
            )
    assert caught.value.message == "not you (while waiting for the result of request r-1)"
    assert "r-1" in caught.value.hint


def test_a_lost_sink_while_waiting_is_unreachable_and_names_the_request() -> None:
    with answering(STORED) as first, Transport(QUICK) as transport:
        gone = QueueClient.over(transport, f"http://127.0.0.1:{free_port()}/sink", CALLER)
        with pytest.raises(errors.Unreachable, match="request r-1"):
            transport.run(
                predict_queue(QueueClient.over(transport, first.url, CALLER), gone, b"x", timeout_s=9)
            )


def test_a_put_without_a_request_id_cannot_be_followed() -> None:
    with answering(reply(200, b"1")) as first, Transport(QUICK) as transport:
        queue = QueueClient.over(transport, first.url, CALLER)
        with pytest.raises(errors.NotAQueueService, match="request id"):
            transport.run(predict_queue(queue, queue, b"x", timeout_s=1))


def test_the_gateway_gets_the_bytes_and_its_answer_comes_back_untouched() -> None:
    with answering(reply(200, b"<html>\x00\xff")) as server, Transport(QUICK) as transport:
        answer = transport.run(
            predict_gateway(
                server.url,
                CALLER,
                transport.settings,
                b"\x00question",
                path="/v1/x%20y?a=b+c",
                content_type="a/b",
                headers={"X-A": "1"},
                timeout_s=5,
            )
        )
    assert answer.data == b"<html>\x00\xff"
    head, body = server.requests[0]
    lines = head.split("\r\n")
    assert lines[0] == "POST /api/predict/q/v1/x%20y?a=b+c HTTP/1.1"
    assert body == b"\x00question"
    assert {"Authorization: canary-token-canary", "Content-Type: a/b", "X-A: 1"} <= set(lines)
    assert "queueservice" not in head.lower()


def test_signed_headers_win_over_the_token() -> None:
    signed = sign(
        "canary-token-canary",
        b"x",
        content_type="a/b",
        date="Mon, 02 Jan 2006 15:04:05 GMT",
        path="/api/predict/q",
    )
    with answering(reply(200)) as server, Transport(QUICK) as transport:
        transport.run(
            predict_gateway(server.url, CALLER, transport.settings, b"x", headers=signed, timeout_s=5)
        )
    assert f"Authorization: {signed['Authorization']}" in server.heads()[0].split("\r\n")
    assert "canary-token" not in server.heads()[0]


@pytest.mark.parametrize("first", [broken, reply(502), reply(503), reply(504)])
def test_the_gateway_is_asked_again_where_another_instance_may_do_better(first) -> None:
    with answering(first, reply(200, b"yes")) as server, Transport(QUICK) as transport:
        assert (
            transport.run(predict_gateway(server.url, CALLER, transport.settings, b"x", timeout_s=10)).data
            == b"yes"
        )
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 429, 450, 500])
def test_the_gateway_is_not_asked_again_about_what_the_model_said(status: int) -> None:
    with answering(reply(status, b"why")) as server, Transport(QUICK) as transport:
        with pytest.raises(errors.error_class(status), match=rf"^the server answered {status}: why$"):
            transport.run(predict_gateway(server.url, CALLER, transport.settings, b"x", timeout_s=10))
    assert len(server.requests) == 1


def attempts_until(steps: Steps[Served], *errors_of_attempts: Exception) -> list[float]:
    """Return the time that each attempt may take, while the attempts fail with these errors."""
    granted = []
    step = next(steps)
    for error in errors_of_attempts:
        while isinstance(step, float):
            step = next(steps)
        granted.append(step.until - time.monotonic())
        step = steps.throw(error)
    while isinstance(step, float):
        step = next(steps)
    return [*granted, step.until - time.monotonic()]


def test_an_attempt_at_the_gateway_may_take_all_of_the_time() -> None:
    settings = NetworkSettings(request_timeout_s=600.0, environ={})
    steps = predict_gateway("http://h/q", CALLER, settings, b"x", timeout_s=600.0)
    first, second = attempts_until(steps, errors.Unreachable("lost"))
    assert 500 < second <= first <= 600


def test_a_slow_model_is_asked_once() -> None:
    def slow(peer: Peer) -> None:
        peer.stop.wait(1.2)
        reply(200, b"yes")(peer)

    with answering(slow) as server, Transport(NetworkSettings(environ={})) as transport:
        steps = predict_gateway(server.url, CALLER, transport.settings, b"x", timeout_s=3)
        assert transport.run(steps).data == b"yes"
    assert len(server.requests) == 1


def test_an_attempt_that_had_most_of_the_time_is_reported_not_the_one_before() -> None:
    def silent(peer: Peer) -> None:
        peer.stop.wait()

    with answering(reply(503), silent) as server, Transport(NetworkSettings(environ={})) as transport:
        with pytest.raises(errors.DeadlineExceeded, match=r"^no answer from http://\S+ within 0\.9 s$"):
            transport.run(predict_gateway(server.url, CALLER, transport.settings, b"x", timeout_s=0.9))
        server.stop.set()
    assert len(server.requests) == 2


def test_a_gateway_that_never_answers_is_a_deadline() -> None:
    def silent(peer: Peer) -> None:
        peer.stop.wait()

    with answering(silent) as server, Transport(NetworkSettings(environ={})) as transport:
        with pytest.raises(errors.DeadlineExceeded, match=r"^no answer from http://\S+ within 0\.6 s$"):
            transport.run(predict_gateway(server.url, CALLER, transport.settings, b"x", timeout_s=0.6))
        server.stop.set()


def test_a_put_whose_answer_is_lost_names_the_request_that_may_be_stored() -> None:
    """Its id is ours, and was sent with it; a refused one is not called in doubt."""
    with answering(broken) as first, Transport(QUICK) as transport:
        queue = QueueClient.over(transport, first.url, CALLER)
        with pytest.raises(errors.Unreachable) as caught:
            transport.run(predict_queue(queue, queue, b"x", timeout_s=0.5))
    ids = {re.search(r"requestId=([0-9a-f-]{36})", head)[1] for head, _ in first.requests}  # type: ignore[index]
    (own_id,) = ids
    assert f"whether request {own_id} was stored is not known" in caught.value.message
    assert caught.value.hint.endswith(f"easq get -k --request-id {own_id}")
    with answering(reply(403, b"not you")) as first, Transport(QUICK) as transport:
        queue = QueueClient.over(transport, first.url, CALLER)
        with pytest.raises(errors.Forbidden, match=r"^not you$"):
            transport.run(predict_queue(queue, queue, b"x", timeout_s=0.5))


def test_a_request_id_that_was_given_is_the_one_that_is_sent() -> None:
    found = reply(200, encode_frames([RESULT], Codec.PROTOBUF))
    asked: dict[str, bool] = {}
    with answering(STORED, found) as server, Transport(QUICK) as transport:
        queue = QueueClient.over(transport, server.url, CALLER)
        tags = {"requestId": "r-1"}
        assert transport.run(predict_queue(queue, queue, b"x", timeout_s=9, tags=tags, asked=asked)) == RESULT
    assert server.requests[0][0].count("requestId=r-1 ") == 1
    assert asked == {"r-1": True}
