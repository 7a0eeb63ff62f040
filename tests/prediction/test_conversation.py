"""WebSocket services asked message by message, over real sockets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from easq import errors
from easq.net.settings import NetworkSettings
from easq.prediction.conversation import Conversation, ConversationPool
from tests.client.servers import Peer, Server, Speaking, answering, echo, eventually, free_port, reply

SETTINGS = NetworkSettings(connect_timeout_s=2.0, environ={})
TOKEN = "canary-token-canary"


def conversation(server: Server, **options: Any) -> Conversation:
    url = getattr(server, "url", "").replace("http", "ws", 1)
    return Conversation(url, {"X-Auth-Token": TOKEN}, SETTINGS, **{"text": True, **options})


def then_closing(code: int) -> Callable[[Peer, int, bytes], None]:
    """Answers, and closes: some containers take one request a connection."""

    def answer(peer: Peer, opcode: int, data: bytes) -> None:
        echo(peer, opcode, data)
        peer.send_close(code)
        peer.socket.close()

    return answer


def dropping(times: int) -> Callable[[Peer, int, bytes], None]:
    """Drops the connection of the first `times` messages, without an answer."""
    left = [times]

    def answer(peer: Peer, opcode: int, data: bytes) -> None:
        left[0] -= 1
        if left[0] >= 0:
            peer.buffer = b""  # nor of what came with it
            peer.socket.close()
        else:
            echo(peer, opcode, data)

    return answer


def test_messages_and_answers_are_untouched_over_one_connection() -> None:
    data = ["ü", "b\r\n c", "x" * 200_000]
    with Speaking(echo) as server, conversation(server) as service:
        served = [service.ask(one.encode(), timeout_s=30.0) for one in data]
    assert [one.data for one in served] == [one.encode()[::-1] for one in data]
    assert [opcode for opcode, _ in server.messages] == [1, 1, 1]
    assert server.connections == 1
    head = server.heads()[0]
    assert head.startswith("GET /v1/x HTTP/1.1\r\n")
    assert f"X-Auth-Token: {TOKEN}" in head.split("\r\n")
    assert "authorization" not in head.lower()
    assert "queueservice" not in head.lower()


def test_binary_messages_go_as_they_are() -> None:
    with Speaking(echo) as server, conversation(server, text=False) as service:
        assert service.ask(b"\xff\x00a", timeout_s=30.0).data == b"a\x00\xff"
    assert server.messages == [(2, b"\xff\x00a")]


def test_what_is_no_text_is_not_sent_as_text() -> None:
    with Speaking(echo) as server, conversation(server) as service:
        with pytest.raises(errors.UsageError, match=r"^not UTF-8 at byte 1") as caught:
            service.ask(b"a\xff", timeout_s=30.0)
        assert server.connections == 0
    assert "--binary" in caught.value.hint


def test_the_times_tell_connecting_the_first_byte_and_all() -> None:
    with Speaking(echo) as server, conversation(server) as service:
        first, second = (service.ask(b"x", timeout_s=30.0) for _ in range(2))
    assert first.address == f"127.0.0.1:{server.port}"
    times = first.times
    assert times.attempts == 1
    assert times.connect_s is not None
    assert times.first_byte_s is not None
    assert 0 < times.connect_s < times.first_byte_s <= times.total_s
    assert second.times.connect_s is None


@pytest.mark.parametrize("code", [1000, 1001, 1011])
def test_a_service_that_closes_after_each_answer_is_asked_on_new_connections(code: int) -> None:
    with Speaking(then_closing(code)) as server, conversation(server) as service:
        answers = []
        for number in range(5):
            answers.append(service.ask(b"a%d" % number, timeout_s=30.0).data)
            assert eventually(lambda: all(not thread.is_alive() for thread in server.threads))
    assert answers == [b"%da" % number for number in range(5)]
    assert (server.connections, len(server.messages)) == (5, 5)


def test_a_message_without_an_answer_before_the_close_goes_out_again() -> None:
    with Speaking(dropping(2)) as server, conversation(server) as service:
        served = service.ask(b"ab", timeout_s=60.0)
    assert (served.data, served.times.attempts) == (b"ba", 3)
    assert [data for _, data in server.messages] == [b"ab"] * 3


def test_a_slow_service_is_asked_once() -> None:
    def slow(peer: Peer, opcode: int, data: bytes) -> None:
        peer.stop.wait(1.2)
        echo(peer, opcode, data)

    with Speaking(slow) as server, conversation(server) as service:
        assert service.ask(b"ab", timeout_s=3.0).data == b"ba"
    assert len(server.messages) == 1


def test_a_service_that_never_answers_is_a_deadline_after_one_attempt() -> None:
    with Speaking(lambda _peer, _opcode, _data: None) as server, conversation(server) as service:
        with pytest.raises(
            errors.DeadlineExceeded, match=r"^no answer from ws://\S+ within 0\.9 s$"
        ) as caught:
            service.ask(b"x", timeout_s=0.9)
        assert len(server.messages) == 1
    assert caught.value.exit == 9


def test_a_service_that_drops_every_connection_is_given_up_within_the_time() -> None:
    with Speaking(dropping(1000)) as server, conversation(server) as service:
        began = time.monotonic()
        with pytest.raises(errors.Unreachable, match=r"lost \(the last of \d+ attempts\)$"):
            service.ask(b"x", timeout_s=0.5)
        assert time.monotonic() - began < 20
        assert server.connections >= 2


def test_nobody_there_is_unreachable() -> None:
    server = Server(lambda _server, _peer: None, port=free_port())
    with conversation(server) as service, pytest.raises(errors.Unreachable, match="refused"):
        service.ask(b"x", timeout_s=0.5)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_handshake_that_another_time_may_go_well_is_tried_again(status: int) -> None:
    refused: list[bool] = []

    def handle(_: Server, peer: Peer) -> None:
        if not refused:
            refused.append(True)
            peer.read_request()
            peer.answer(status)
            return
        peer.upgrade()
        peer.send_frame(peer.serve_pings()[1], 1)
        peer.serve_pings()

    with Server(handle) as server, conversation(server) as service:
        assert service.ask(b"x", timeout_s=60.0).times.attempts == 2


@pytest.mark.parametrize(
    ("status", "exit_code"), [(400, 4), (401, 7), (403, 7), (404, 8), (426, 6), (500, 5), (200, 5), (302, 5)]
)
def test_a_handshake_that_is_refused_is_told_at_once(status: int, exit_code: int) -> None:
    refusal = b'{"error_code":"APIG.0301","error_msg":"Incorrect IAM authentication information"}'
    with answering(reply(status, refusal, Location="http://127.0.0.1:1/")) as server:
        with conversation(server) as service, pytest.raises(errors.EasqError) as caught:
            service.ask(b"x", timeout_s=30.0)
    assert caught.value.exit == exit_code
    assert len(server.requests) == 1
    if exit_code == 7:
        assert caught.value.message == "Incorrect IAM authentication information (APIG.0301)"
        assert caught.value.hint.startswith("check the credentials: ")


def test_a_handshake_that_is_not_answered_is_a_deadline() -> None:
    with answering(lambda peer: peer.stop.wait(30) and None) as server:
        with (
            conversation(server) as service,
            pytest.raises(errors.DeadlineExceeded, match=r"^no answer from ws://"),
        ):
            service.ask(b"x", timeout_s=0.6)
        server.stop.set()


def test_what_nothing_asked_for_is_never_the_answer_to_what_comes_later() -> None:
    """A second message behind an answer is dropped, with one warning, before the next message goes out."""
    sent = threading.Event()
    warnings: list[str] = []

    def talkative(peer: Peer, opcode: int, data: bytes) -> None:
        echo(peer, opcode, data)
        peer.send_frame(b"by the way", 1)
        peer.send_frame(b"and more", 1)
        sent.set()

    with Speaking(talkative) as server, conversation(server, warn=warnings.append) as service:
        for data in (b"ab", b"cd", b"ef"):
            sent.clear()
            assert service.ask(data, timeout_s=30.0).data == data[::-1]
            assert sent.wait(30)
    assert warnings == ["messages that nothing asked for are dropped; --idle-timeout shows them"]


def test_more_is_all_that_comes_until_nothing_does() -> None:
    def counting(peer: Peer, opcode: int, data: bytes) -> None:
        for number in range(int(data)):
            peer.send_frame(b"%d" % number, opcode)

    with Speaking(counting) as server, conversation(server) as service:
        for _ in range(2):
            assert service.ask(b"4", timeout_s=30.0).data == b"0"
            assert list(service.more(0.5)) == [b"1", b"2", b"3"]
        assert list(service.more(0.0)) == []
    assert server.connections == 1


def test_more_ends_with_a_close_in_good_order_and_says_of_another() -> None:
    def counting(peer: Peer, opcode: int, data: bytes) -> None:
        for number in range(3):
            peer.send_frame(b"%d" % number, opcode)
        peer.send_close(int(data), "why")
        peer.read_frame()

    with Speaking(counting) as server, conversation(server) as service:
        service.ask(b"1000", timeout_s=30.0)
        assert list(service.more(60.0)) == [b"1", b"2"]
        service.ask(b"1011", timeout_s=30.0)
        with pytest.raises(errors.Unreachable, match=r"closed the connection \(1011 'why'\)"):
            list(service.more(60.0))


def heard(service: Conversation, count: int) -> list[bytes]:
    """Return the messages that come, until there are `count` of them."""
    found: list[bytes] = []
    assert eventually(lambda: found.extend(filter(None, [service.receive()])) or len(found) >= count)
    return found


def test_saying_and_hearing_go_both_ways_at_once() -> None:
    def late(peer: Peer, opcode: int, data: bytes) -> None:
        if data == b"second":
            for one in (b"1", b"2", b"unasked"):
                peer.send_frame(one, opcode)

    with Speaking(late) as server, conversation(server) as service:
        service.connect(timeout_s=30.0)
        service.send(b"first", timeout_s=60.0)
        service.send(b"second", timeout_s=60.0)
        assert service.awaits_answers
        assert heard(service, 3) == [b"1", b"2", b"unasked"]
        assert not service.awaits_answers
        assert service.receive() is None
    assert [data for _, data in server.messages] == [b"first", b"second"]


def test_what_was_said_and_not_answered_is_said_again_after_a_lost_connection() -> None:
    with Speaking(dropping(2)) as server, conversation(server) as service:
        service.send(b"ab", timeout_s=60.0)
        service.send(b"cd", timeout_s=60.0)
        assert heard(service, 2) == [b"ba", b"dc"]
        assert server.connections == 3
        service.send(b"ef", timeout_s=60.0)
        assert heard(service, 1) == [b"fe"]


def test_a_connection_that_ends_while_nothing_waits_is_made_again_by_the_next_message() -> None:
    with Speaking(then_closing(1000)) as server, conversation(server) as service:
        for data in (b"ab", b"cd"):
            service.send(data, timeout_s=60.0)
            assert heard(service, 1) == [data[::-1]]
            assert eventually(lambda: service.receive() is None and not server.threads[-1].is_alive())
    assert server.connections == 2


def test_what_is_not_answered_in_time_is_no_longer_waited_for() -> None:
    with Speaking(lambda _peer, _opcode, _data: None) as server, conversation(server) as service:
        service.send(b"x", timeout_s=0.2)
        with pytest.raises(errors.DeadlineExceeded):
            heard(service, 1)
        assert not service.awaits_answers
        assert server.connections == 1


def test_what_is_not_answered_says_what_was_in_the_way() -> None:
    with Speaking(dropping(1000)) as server, conversation(server) as service:
        service.send(b"x", timeout_s=0.5)
        with pytest.raises(errors.DeadlineExceeded, match=r" in time: connection to .* lost"):
            heard(service, 1)
    assert server.connections >= 1


def test_each_of_many_at_once_has_a_connection_and_its_own_answer() -> None:
    with Speaking(echo) as server, ConversationPool(lambda: conversation(server)) as services:
        with ThreadPoolExecutor(8) as pool:
            served = list(pool.map(lambda n: services.ask(b"x%03d" % n, timeout_s=60.0).data, range(200)))
        assert server.connections <= 8
    assert served == [(b"x%03d" % n)[::-1] for n in range(200)]


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\0"])
def test_what_cannot_stand_in_a_header_never_leaves(value: str) -> None:
    with Speaking(echo) as server:
        with pytest.raises(errors.UsageError):
            Conversation(server.url, {"X-Auth-Token": value}, SETTINGS, text=True)
        assert server.connections == 0


def test_the_trace_has_messages_and_no_secret() -> None:
    lines: list[str] = []
    settings = NetworkSettings(trace=lambda _level, line: lines.append(line), environ={})
    with Speaking(echo) as server:
        url = f"{server.url}?token={TOKEN}"
        with Conversation(url, {"X-Auth-Token": TOKEN}, settings, text=True) as service:
            service.ask(b"question", timeout_s=30.0)
    assert f"> GET {server.url}" in lines
    assert "> question" in lines
    assert "< noitseuq" in lines
    assert TOKEN not in "\n".join(lines)
