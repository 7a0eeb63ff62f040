"""--timeout limits every wait of a command: connecting, the exchange under way, and every retry.

The requests here may take an hour: a command that waits for one does not end within the patience of the tests.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from easq.model import Frame
from easq.protocol.frames import encode_frame, encode_frames
from easq.protocol.operations import Codec
from tests.cli.conftest import Easq
from tests.client.servers import Peer, Server, answering, reply, silent

PATIENT = ("--request-timeout", "1h", "--connect-timeout", "1h")


@pytest.mark.parametrize(
    "args",
    [
        ("get",),
        ("get", "-l", "10", "-k"),
        ("watch", "--commit", "none"),
        ("watch", "--commit", "none", "--transport", "http"),
        ("predict", "-d", "x"),
        ("wait", "--empty"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("timeout", ["0", "200ms"])
def test_a_service_that_never_answers_is_out_of_reach(
    easq: Easq, args: tuple[str, ...], timeout: str
) -> None:
    with answering(silent) as server:
        done = easq(*args, "--timeout", timeout, "--url", server.url, *PATIENT)
    assert (done.status, done.out) == (6, b""), done.err


@pytest.mark.parametrize(
    ("args", "first", "status"),
    [
        (("get",), reply(204), 3),
        (("predict", "-d", "x"), reply(200, b"1", X_Eas_Queueservice_Request_Id="r-1"), 9),
        (("wait", "--empty"), reply(200, b'{"stream.length":"1"}'), 9),
    ],
    ids=["get", "predict", "wait"],
)
def test_a_service_that_answered_and_falls_silent_had_nothing_in_time(
    easq: Easq, args: tuple[str, ...], first: Callable[[Peer], None], status: int
) -> None:
    with answering(first, silent) as server:
        done = easq(*args, "--timeout", "600ms", "--url", server.url, *PATIENT)
    assert (done.status, done.out) == (status, b""), done.err


def test_a_result_that_cannot_be_deleted_in_time_is_printed(easq: Easq) -> None:
    result = encode_frames([Frame(7, data=b"result")], Codec.PROTOBUF)
    put = reply(200, b"1", X_Eas_Queueservice_Request_Id="r-1")
    with answering(put, reply(200, result, Content_Type=Codec.PROTOBUF.value), silent) as server:
        done = easq("predict", "-d", "x", "--timeout", "1s", "--url", server.url, *PATIENT)
        assert server.heads()[2].startswith("DELETE ")
    assert (done.status, done.out) == (6, b"result"), done.err


def test_a_watch_whose_service_falls_silent_ends_too(easq: Easq) -> None:
    """Also the commit, the close and the last check: the item was shown, and a message says that it is not
    committed.
    """

    def push_one(server: Server, peer: Peer) -> None:
        if not server.requests:
            server.requests.append((peer.upgrade(), b""))
            peer.send_frame(encode_frame(Frame(1, data=b"one"), Codec.PROTOBUF))
        while not peer.stop.is_set() and not peer.gone():
            peer.stop.wait(0.02)

    with Server(push_one) as server:
        args = ("--commit", "output", "-o", "raw", "--timeout", "1s")
        done = easq("watch", *args, "--url", server.url, *PATIENT)
    assert (done.status, done.out) == (6, b"one\n")
    assert "not committed" in done.err


@pytest.mark.parametrize(
    ("bounds", "named"),
    [
        (("--timeout", "1s"), "--timeout"),
        (("--timeout", "2s", "--request-timeout", "100ms"), "--request-timeout"),
    ],
)
def test_the_bound_that_ended_a_prediction_is_named(easq: Easq, bounds: tuple[str, ...], named: str) -> None:
    with answering(silent) as server:
        done = easq("predict", "-d", "x", "--via", "gateway", "--url", server.url, *bounds)
    assert done.status == 9
    assert f"\nhint: raise {named} if it is slow\n" in done.err
