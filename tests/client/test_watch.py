import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from easq import errors
from easq.client.queue import QueueClient
from easq.client.watch import Watcher
from easq.model import Consumer, Frame
from easq.net.failures import Unconnected, unconnected
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.protocol.frames import delimit, encode_frame
from easq.protocol.operations import Caller, Codec, Watch
from tests.client.on_loop import OnLoop
from tests.client.servers import Peer, Server, encrypting, eventually, free_port, secured

#: tests of what a Watcher does for the thread that takes its frames; an AsyncWatcher reads nothing ahead
in_a_thread = pytest.mark.parametrize("kind", ["thread"], indirect=True)

TOKEN = "canary-token-canary"
CALLER = Caller(Consumer("g", "u"), TOKEN)
SETTINGS = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=10.0, environ={})
BIG = 2**64 - 1


@pytest.fixture(params=["thread", "loop"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a watch runs in a thread or on an event loop."""
    if request.param == "loop":
        monkeypatch.setattr(sys.modules[__name__], "Watcher", OnLoop)
    return str(request.param)


def frame(index: int) -> Frame:
    return Frame(index, {"requestId": f"r-{index}"}, b"data" * index if index < 1000 else b"")


def bytes_of(index: int) -> bytes:
    return encode_frame(frame(index), Codec.PROTOBUF)


class Watched(Server):
    """A server whose connections each follow the next of its scripts, the last again and again."""

    def __init__(self, *scripts: Callable[["Watched", Peer], None]) -> None:
        super().__init__(Watched.follow)
        self.scripts = scripts
        self.heard: list[tuple[int, bytes]] = []
        self.times: list[float] = []

    def follow(self, peer: Peer) -> None:
        self.times.append(time.monotonic())
        self.scripts[min(len(self.times), len(self.scripts)) - 1](self, peer)


def pushing(
    *indexes: int, then: Callable[[Watched, Peer], None] | None = None
) -> Callable[[Watched, Peer], None]:
    """Upgrades, pushes these items, and then lives on, or does `then`."""

    def script(server: Watched, peer: Peer) -> None:
        server.requests.append((peer.upgrade(), b""))
        for index in indexes:
            peer.send_frame(bytes_of(index))
        (then or living)(server, peer)

    return script


def living(server: Watched, peer: Peer) -> None:
    """Answers pings until the client says something else, which is noted and, if a close, answered."""
    opcode, data = peer.serve_pings()
    server.heard.append((opcode, data))
    if opcode == 8:
        peer.send_frame(data, 8)


def closing(code: int, reason: str = "") -> Callable[[Watched, Peer], None]:
    def script(_: Watched, peer: Peer) -> None:
        peer.send_close(code, reason)
        peer.read_frame()

    return script


def vanishing(_: Watched, peer: Peer) -> None:
    peer.socket.close()


def refusing(status: int, body: bytes = b"why", **headers: str) -> Callable[[Watched, Peer], None]:
    def script(server: Watched, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.answer(status, body, **headers)

    return script


@contextmanager
def watching(server: Server, operation: Watch | None = None, **options: Any) -> Iterator[Watcher]:
    settings = options.pop("settings", SETTINGS)
    with server, Watcher(server.url, CALLER, operation or Watch(), settings, **options) as watcher:
        yield watcher


def test_frames_come_in_order_with_exact_indexes() -> None:
    server = Watched(pushing(1, 2, BIG))
    with watching(server, Watch(0, 5, tags={"a": "b c"})) as watcher:
        assert [watcher.next(10) for _ in range(3)] == [frame(1), frame(2), frame(BIG)]
        assert watcher.next(0.05) is None
        assert watcher.epoch == 1
    lines = server.heads()[0].split("\r\n")
    assert lines[0] == (
        "GET /api/predict/q?_watch_=true&_index_=0&_window_=5&_index_only_=false&_auto_commit_=false&a=b+c"
        " HTTP/1.1"
    )
    assert {
        "Upgrade: websocket",
        "Accept: application/vnd.google.protobuf",
        f"Authorization: {TOKEN}",
        "X-EAS-QueueService-Uid: u",
        "X-EAS-QueueService-Redis-Gid: g",
    } <= set(lines)
    names = [line.partition(":")[0].lower() for line in lines[1:]]
    assert len(names) == len(set(names))
    assert "origin" not in names
    assert "sec-websocket-extensions" not in names


@in_a_thread  # on an event loop the connection is closed with it, and a pong that was not read can discard the frame
def test_leaving_sends_a_close_frame() -> None:
    server = Watched(pushing(1))
    with watching(server) as watcher:
        assert watcher.next(10) == frame(1)
    assert server.heard == [(8, (1000).to_bytes(2, "big"))]


def test_after_leaving_there_is_nothing() -> None:
    with watching(Watched(pushing())) as watcher:
        watcher.close()
        assert watcher.next() is None


def test_aborting_sends_none() -> None:
    server = Watched(pushing(1))
    with watching(server) as watcher:
        watcher.next(10)
        watcher.abort()
        assert eventually(lambda: bool(server.heard))
    assert server.heard[0][0] == -1


@in_a_thread
def test_a_waiting_next_ends_when_another_thread_closes() -> None:
    with watching(Watched(pushing())) as watcher:
        found: list[Frame | None] = []
        waiting = threading.Thread(target=lambda: found.append(watcher.next()))
        waiting.start()
        watcher.close()
        waiting.join(10)
        assert found == [None]


def test_a_large_frame_and_an_empty_one() -> None:
    big = Frame(7, {}, bytes(5_000_000))

    def script(server: Watched, peer: Peer) -> None:
        peer.upgrade()
        peer.send_frame(b"")
        peer.send_frame(encode_frame(big, Codec.PROTOBUF))
        living(server, peer)

    with watching(Watched(script)) as watcher:
        assert watcher.next(20) == big


def test_a_text_frame_is_json() -> None:
    def script(server: Watched, peer: Peer) -> None:
        peer.upgrade()
        peer.send_frame(encode_frame(frame(BIG), Codec.JSON), 1)
        living(server, peer)

    for codec in (Codec.JSON, Codec.PROTOBUF):
        with watching(Watched(script), Watch(codec=codec)) as watcher:
            assert watcher.next(10) == frame(BIG)


@pytest.mark.parametrize(
    "then",
    [
        closing(1000),
        closing(1001, "going away"),
        closing(1008),
        closing(1011),
        closing(4000, "mine"),
        vanishing,
    ],
)
def test_it_connects_again_after_any_end(then: Callable[[Watched, Peer], None]) -> None:
    notices: list[str] = []
    server = Watched(pushing(1, then=then), pushing(2))
    with watching(server, on_notice=notices.append) as watcher:
        found = watcher.next(10)
        if found == frame(1):
            found = watcher.next(10)
        assert found == frame(2)
        assert watcher.epoch == 2
    assert notices[0].endswith("; connecting again")
    assert notices[1].endswith(" again")
    assert server.heads()[0].split("\r\n")[0] == server.heads()[1].split("\r\n")[0]


def garbage(peer: Peer) -> None:
    peer.send_frame(b"\xff\xff\xff")


def garbled_json(peer: Peer) -> None:
    peer.send_frame(b"hello", 1)


def reserved_bits(peer: Peer) -> None:
    peer.send(b"\xf2\x01a")


def unknown_opcode(peer: Peer) -> None:
    peer.send(b"\x83\x01a")


def lone_continuation(peer: Peer) -> None:
    peer.send(b"\x80\x01a")


def bad_close(peer: Peer) -> None:
    peer.send(b"\x88\x02\x00\x05")


def empty_close(peer: Peer) -> None:
    peer.send(b"\x88\x00")


def torn(peer: Peer) -> None:
    peer.send(b"\x82\x7e\x10\x00abc")
    peer.socket.close()


@pytest.mark.parametrize(
    "say",
    [garbage, garbled_json, reserved_bits, unknown_opcode, lone_continuation, bad_close, empty_close, torn],
)
def test_it_connects_again_after_nonsense(say: Callable[[Peer], None]) -> None:
    def script(_: Watched, peer: Peer) -> None:
        peer.upgrade()
        say(peer)
        peer.read_frame()

    with watching(Watched(script, pushing(2))) as watcher:
        assert watcher.next(10) == frame(2)


def test_a_frame_that_claims_to_be_endless_is_given_up() -> None:
    def script(_: Watched, peer: Peer) -> None:
        peer.upgrade()
        peer.send(b"\x82\x7f" + (2**62).to_bytes(8, "big"))
        peer.flood()

    notices: list[str] = []
    with watching(Watched(script, pushing(2)), on_notice=notices.append) as watcher:
        assert watcher.next(60) == frame(2)
    assert "sends more than is taken in one message" in notices[0]


@in_a_thread
def test_what_was_read_ahead_is_dropped_with_its_connection() -> None:
    """It is pushed again: nothing is handed over twice, and nothing late."""
    server = Watched(pushing(1, 2, 3, then=closing(1001)), pushing(1, 2, 3, 4))
    with watching(server) as watcher:
        assert eventually(lambda: watcher.epoch == 2)
        assert [watcher.next(10) for _ in range(4)] == [frame(1), frame(2), frame(3), frame(4)]
        assert watcher.next(0.05) is None


@in_a_thread
def test_what_was_committed_on_sending_is_kept() -> None:
    server = Watched(pushing(1, 2, then=closing(1001)), pushing(3))
    with watching(server, Watch(auto_commit=True)) as watcher:
        assert eventually(lambda: watcher.epoch == 2)
        assert [watcher.next(10) for _ in range(3)] == [frame(1), frame(2), frame(3)]


def test_the_end_of_the_stream_is_told_after_its_last_frame() -> None:
    with watching(Watched(pushing(1, then=closing(1000, "eos")))) as watcher:
        assert watcher.next(10) == frame(1)
        for _ in range(2):
            with pytest.raises(errors.StreamEnded):
                watcher.next(10)


def test_the_end_of_the_stream_on_connecting_again() -> None:
    server = Watched(pushing(then=closing(1001)), refusing(410, b"the stream has ended"))
    with watching(server) as watcher:
        with pytest.raises(errors.StreamEnded, match=r"^the stream has ended$"):
            watcher.next(10)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.BadRequest),
        (401, errors.AuthFailed),
        (403, errors.Forbidden),
        (404, errors.NotFound),
        (409, errors.AnotherWatcher),
        (410, errors.StreamEnded),
        (426, errors.UpgradeRequired),
    ],
)
@pytest.mark.parametrize("upgrade", [True, False], ids=["ws", "http"])
def test_a_refusal_at_the_start_is_raised_at_once(
    status: int, kind: type[errors.EasqError], upgrade: bool
) -> None:
    server = Watched(refusing(status, f"no: {TOKEN}".encode()))
    with pytest.raises(kind, match=r"^no: \*\*\*\*$") as caught, watching(server, Watch(upgrade=upgrade)):
        pass
    assert type(caught.value) is kind
    assert len(server.requests) == 1
    assert server.requests[0][0].split(" ")[1].startswith("/api/predict/q?_watch_=true")


def test_a_watch_without_its_upgrade_says_what_to_do() -> None:
    with pytest.raises(errors.UpgradeRequired) as caught, watching(Watched(refusing(426))):
        pass
    assert caught.value.exit == errors.Exit.UNREACHABLE
    assert "Upgrade" in caught.value.hint
    assert "--transport http" in caught.value.hint


def test_a_watch_over_http_says_so() -> None:
    """easq serve gives a stream over HTTP/1.0, as proxies speak it, to no other."""
    server = Watched(refusing(404))
    with pytest.raises(errors.NotFound), watching(server, Watch(upgrade=False)):
        pass
    assert "X-Easq-Transport: http" in server.heads()[0].split("\r\n")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("upgrade", [True, False], ids=["ws", "http"])
def test_what_may_pass_is_tried_again_at_the_start_and_said(status: int, upgrade: bool) -> None:
    """A gateway whose service starts again answers so for a moment."""
    pushed = pushing(1) if upgrade else streaming(delimit(bytes_of(1)))
    server = Watched(refusing(status, b"wait"), refusing(status, b"wait"), pushed)
    said: list[str] = []
    with watching(server, Watch(upgrade=upgrade), on_notice=said.append) as watcher:
        assert watcher.next(10) == frame(1)
    assert said == [f"the server answered {status}: wait; trying again"]
    assert len(server.times) == 3


def test_what_does_not_pass_at_the_start_is_raised_in_the_end() -> None:
    settings = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=0.3, environ={})
    server = Watched(refusing(502))
    with (
        pytest.raises(errors.ServerError, match=r"^the server answered 502: why$"),
        watching(server, settings=settings),
    ):
        pass
    assert len(server.times) > 1


@in_a_thread
@pytest.mark.parametrize("upgrade", [True, False], ids=["ws", "http"])
def test_a_start_ends_by_its_bound(upgrade: bool) -> None:
    """A service that takes the connection and says nothing."""
    settings = NetworkSettings(connect_timeout_s=3600.0, request_timeout_s=3600.0, environ={})

    def mute(_: Watched, peer: Peer) -> None:
        peer.stop.wait(60)

    with Watched(mute) as server:
        watcher = Watcher(server.url, CALLER, Watch(upgrade=upgrade), settings, until=time.monotonic() + 0.2)
        with pytest.raises(errors.Unreachable):
            watcher.__enter__()


@in_a_thread
def test_an_end_does_not_wait_for_a_connection_that_is_made_anew() -> None:
    """Leaving the watch would take an hour here."""

    def mute(server: Watched, peer: Peer) -> None:
        server.heard.append((0, b""))
        peer.stop.wait(60)

    settings = NetworkSettings(connect_timeout_s=3600.0, request_timeout_s=3600.0, environ={})
    server = Watched(pushing(then=vanishing), mute)
    with watching(server, settings=settings):
        assert eventually(lambda: bool(server.heard))


def test_another_watcher_at_the_start_says_what_to_do() -> None:
    with pytest.raises(errors.AnotherWatcher) as caught, watching(Watched(refusing(409))):
        pass
    assert "--user" in caught.value.hint


def test_another_watcher_on_connecting_again_is_waited_for() -> None:
    server = Watched(pushing(1, then=vanishing), refusing(409), refusing(503), refusing(429), pushing(2))
    with watching(server) as watcher:
        found = watcher.next(10)
        while found == frame(1):
            found = watcher.next(20)
        assert found == frame(2)
        assert watcher.epoch == 2
    assert len(server.times) == 5


def test_a_refusal_on_connecting_again_is_final() -> None:
    with watching(Watched(pushing(then=vanishing), refusing(401))) as watcher:
        with pytest.raises(errors.AuthFailed):
            watcher.next(10)


def test_no_more_than_one_connect_in_100_ms() -> None:
    server = Watched(pushing(1, then=closing(1001)))
    with watching(server):
        assert eventually(lambda: len(server.times) >= 6)
    # what the server sees is what the client did, give or take a scheduling of threads
    assert server.times[5] - server.times[0] >= 0.45


def test_a_service_that_closes_every_connection_at_once_is_given_up() -> None:
    server = Watched(pushing(then=closing(1001)))
    with watching(server, reconnect_for_s=1.0) as watcher:
        with pytest.raises(
            errors.Unreachable, match=r"closed the connection \(1001\); no lasting connection for 1 s$"
        ):
            watcher.next(30)


def test_a_service_that_is_gone_is_given_up() -> None:
    server = Watched(pushing(1, then=vanishing))
    with server, Watcher(server.url, CALLER, Watch(), SETTINGS, reconnect_for_s=1.0) as watcher:
        server.stop.set()
        server.acceptor.join()
        server.listener.close()
        with pytest.raises(errors.Unreachable, match="no lasting connection"):
            list(iter(lambda: watcher.next(30), None))


def test_a_start_waits_for_a_service_that_comes_up() -> None:
    server = Watched(pushing(1))
    server.port = free_port()
    watcher = Watcher(server.url, CALLER, Watch(), SETTINGS)
    entering = threading.Thread(target=watcher.__enter__)
    entering.start()
    with server:
        entering.join()
        assert watcher.next(10) == frame(1)
        watcher.close()


def test_a_start_where_nothing_listens_says_so() -> None:
    settings = NetworkSettings(connect_timeout_s=0.2, environ={})
    with pytest.raises(errors.Unreachable, match=r"^connection to http://127\.0\.0\.1:\d+/q refused$"):
        Watcher(f"http://127.0.0.1:{free_port()}/q", CALLER, Watch(), settings).__enter__()


def test_pings_are_answered_and_sent() -> None:
    def script(server: Watched, peer: Peer) -> None:
        peer.upgrade()
        peer.send_frame(b"are you there", 9)
        for _ in range(3):
            server.heard.append(peer.read_frame())
            if server.heard[-1][0] == 9:
                peer.send_frame(server.heard[-1][1], 10)
        living(server, peer)

    server = Watched(script)
    with watching(server, ping_every_s=0.1) as watcher:
        assert eventually(lambda: len(server.heard) >= 3)
        assert watcher.epoch == 1
    assert (10, b"are you there") in server.heard[:3]
    assert [opcode for opcode, _ in server.heard[:3]].count(9) == 2


@in_a_thread
def test_pings_go_on_while_nobody_takes_the_frames() -> None:
    """A service that hears nothing counts the consumer lost, and what it works on is given to another."""

    def script(server: Watched, peer: Peer) -> None:
        peer.upgrade()
        for index in range(1, 301):
            peer.send_frame(encode_frame(Frame(index), Codec.PROTOBUF))
        while (found := peer.read_frame())[0] == 9:
            server.heard.append(found)
            peer.send_frame(found[1], 10)

    server = Watched(script)
    with watching(server, ping_every_s=0.1, silent_after_s=0.5) as watcher:
        assert eventually(lambda: len(server.heard) >= 10)
        found = [watcher.next(10) for _ in range(300)]
        assert [item.index for item in found if item] == list(range(1, 301))
        assert watcher.epoch == 1


def test_silence_is_a_lost_connection() -> None:
    def silent(server: Watched, peer: Peer) -> None:
        peer.upgrade()
        server.stop.wait()

    notices: list[str] = []
    server = Watched(silent, pushing(2))
    with watching(server, ping_every_s=0.1, silent_after_s=0.5, on_notice=notices.append) as watcher:
        assert watcher.next(20) == frame(2)
        server.stop.set()
    assert "nothing was heard" in notices[0]


def test_an_answer_without_upgrade_is_told_apart() -> None:
    for script in (
        refusing(200, b"<html>portal</html>", Content_Type="text/html"),
        refusing(200, b'{"index":1}'),
        refusing(101, b""),
    ):
        with pytest.raises(errors.NotAQueueService), watching(Watched(script)):
            pass


@pytest.mark.parametrize(
    "said", [b"SSH-2.0-x\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1\r\n\r\n", b"\xff\xfe\xfd\r\n\r\n", b""]
)
def test_a_start_at_what_is_not_http_is_an_error_of_ours(said: bytes) -> None:
    def script(_: Watched, peer: Peer) -> None:
        peer.read_request()
        peer.send(said)
        peer.socket.close()

    with pytest.raises((errors.NotAQueueService, errors.Unreachable)), watching(Watched(script)):
        pass


@pytest.mark.parametrize("upgrade", [True, False], ids=["ws", "http"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, upgrade: bool) -> None:
    with Watched(pushing()) as other:
        to = f"http://user:secret@127.0.0.1:{other.port}/x"
        with pytest.raises(errors.NotAQueueService, match=f"http://127.0.0.1:{other.port}/x") as caught:
            with watching(Watched(refusing(status, b"", Location=to)), Watch(upgrade=upgrade)):
                pass
        assert other.connections == 0
    assert "secret" not in caught.value.message


def test_a_handshake_that_drips_ends_by_the_deadline() -> None:
    def script(_: Watched, peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 101 x\r\nX-A: ")
        while not peer.stop.wait(0.05):
            peer.send(b"a")

    began = time.monotonic()
    server = Watched(script)
    with pytest.raises(errors.Unreachable, match="did not answer within 1 s"):
        with watching(server, settings=NetworkSettings(request_timeout_s=1.0, environ={})):
            pass
    assert time.monotonic() - began < 8


def test_a_refusal_that_never_ends_is_cut() -> None:
    def script(_: Watched, peer: Peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 500 x\r\nContent-Length: 99999999999\r\n\r\n")
        peer.flood()

    # websocket-client 1.9 reads on until there is more than is taken, 1.7 makes do with what came
    with (
        pytest.raises(errors.ServerError, match=r"more than|above the limit|500 without a reason"),
        watching(Watched(script)),
    ):
        pass


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0"])
def test_what_cannot_stand_in_a_header_never_leaves(value: str) -> None:
    with Watched(pushing()) as server:
        for caller, settings in (
            (Caller(token=value), SETTINGS),
            (Caller(Consumer(value, "u")), SETTINGS),
            (CALLER, NetworkSettings(headers={"X-A": value}, environ={})),
        ):
            with pytest.raises((errors.UsageError, errors.ConfigError)):
                Watcher(server.url, caller, Watch(), settings).__enter__()
        assert server.connections == 0


def test_the_trace_of_a_watch_has_no_secret() -> None:
    lines: list[tuple[int, str]] = []
    settings = NetworkSettings(trace=lambda level, line: lines.append((level, line)), environ={})
    server = Watched(pushing(1))
    with watching(server, settings=settings) as watcher:
        watcher.next(10)
    text = "\n".join(line for _, line in lines)
    assert TOKEN not in text
    assert lines[0][1].startswith(f"> GET {server.url}?_watch_=true")
    assert any(line.startswith("< 101 in ") for _, line in lines)


def test_a_watch_over_tls(certificate: Path) -> None:
    def script(_: Server, peer: Peer) -> None:
        peer.upgrade()
        for index in range(1, 51):
            peer.send_frame(encode_frame(Frame(index, {}, bytes(20_000)), Codec.PROTOBUF))
        peer.serve_pings()

    with encrypting(certificate, script) as server:
        url = server.url.replace("http", "https", 1)
        settings = NetworkSettings(cacert=str(certificate), environ={})
        with Watcher(url, CALLER, Watch(), settings, ping_every_s=0.05) as watcher:
            found = [watcher.next(10) for _ in range(50)]
        assert [item.index for item in found if item] == list(range(1, 51))


def test_a_watch_over_tls_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    with (
        secured(certificate) as server,
        pytest.raises(errors.Unreachable, match=r"^TLS with https://.* failed: self"),
    ):
        Watcher(server.url.replace("http", "https", 1), CALLER, Watch(), SETTINGS).__enter__()
    assert server.requests == []


def test_a_watch_goes_through_the_proxy_of_its_host() -> None:
    def proxy(server: Watched, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        pushing(1)(server, peer)

    server = Watched(proxy)
    with server:
        settings = NetworkSettings(environ={"HTTP_PROXY": f"http://u:p%40@127.0.0.1:{server.port}"})
        with Watcher("http://queue.example.test/q", CALLER, Watch(), settings) as watcher:
            assert watcher.next(10) == frame(1)
    lines = server.heads()[0].split("\r\n")
    assert lines[0] == "CONNECT queue.example.test:80 HTTP/1.1"
    assert "Proxy-Authorization: Basic dTpwQA==" in lines
    assert TOKEN not in server.heads()[0]
    assert "Host: queue.example.test" in server.heads()[1].split("\r\n")


def test_a_proxy_that_refuses_is_named() -> None:
    with Watched(refusing(403)) as server:
        settings = NetworkSettings(connect_timeout_s=0.1, environ={"ALL_PROXY": f"127.0.0.1:{server.port}"})
        with pytest.raises(
            errors.Unreachable,
            match=r"^the proxy http://127\.0\.0\.1:\d+ on the way to .* refused: 403 Text$",
        ):
            Watcher("http://queue.example.test/q", CALLER, Watch(), settings).__enter__()


def streaming(
    *pieces: bytes, then: Callable[[Watched, Peer], None] | None = None
) -> Callable[[Watched, Peer], None]:
    """Answers a watch over HTTP with these pieces, and then lives on, or does `then`."""

    def script(server: Watched, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\r\n")
        for piece in pieces:
            peer.send(piece)
        if then is not None:
            then(server, peer)
        else:
            server.heard.append(peer.read_frame())

    return script


HTTP = Watch(upgrade=False)


def test_frames_come_over_http_too() -> None:
    stream = delimit(bytes_of(1)) + delimit(bytes_of(BIG))
    server = Watched(streaming(stream[:3], stream[3:40], stream[40:]))
    with watching(server, HTTP) as watcher:
        assert [watcher.next(10), watcher.next(10)] == [frame(1), frame(BIG)]
        assert watcher.next(0.05) is None
    assert "upgrade:" not in server.heads()[0].lower()
    assert server.heard == [(-1, b"")]


@pytest.mark.parametrize(
    "ending", [b"", b"\0\0\0\0", b"\0\0\0\x09torn", b"\xff\xff\xff\xff", delimit(b"\xff")]
)
def test_an_http_stream_that_ends_or_breaks_is_connected_again(ending: bytes) -> None:
    server = Watched(streaming(delimit(bytes_of(1)), ending, then=vanishing), streaming(delimit(bytes_of(2))))
    with watching(server, HTTP) as watcher:
        found = watcher.next(10)
        if found == frame(1):
            found = watcher.next(10)
        assert found == frame(2)
        assert watcher.epoch == 2


def test_an_http_stream_outlives_the_request_timeout() -> None:
    def later(server: Watched, peer: Peer) -> None:
        server.stop.wait(1.0)
        peer.send(delimit(bytes_of(2)))
        peer.read_frame()

    settings = NetworkSettings(request_timeout_s=0.3, environ={})
    with watching(Watched(streaming(then=later)), HTTP, settings=settings) as watcher:
        assert watcher.next(10) == frame(2)
        assert watcher.epoch == 1


@in_a_thread
def test_a_queue_client_gives_its_watcher() -> None:
    with Watched(pushing(1)) as server, Transport(SETTINGS) as transport:
        queue = QueueClient.over(transport, server.url, CALLER)
        with pytest.raises(errors.UsageError):
            queue.watcher(Watch(tags={"_x": "1"}))
        with queue.watcher(Watch()) as watcher:
            assert watcher.next(10) == frame(1)


@in_a_thread
def test_a_refused_connection_is_told_though_the_last_attempt_ran_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ends: list[errors.EasqError] = [
        Unconnected("refused"), unconnected(TimeoutError(), "http://h/q")
    ]  # fmt: skip
    settings = replace(SETTINGS, connect_timeout_s=0.5)

    def connect(*_: object) -> None:
        if len(ends) == 1:
            time.sleep(settings.connect_timeout_s)
        raise ends.pop(0)

    monkeypatch.setattr("easq.client.watch.WebSocketLink", connect)
    with (
        pytest.raises(Unconnected, match=r"^refused$"),
        Watcher("http://h/q", CALLER, Watch(), settings),
    ):
        pass
    assert ends == []


@pytest.mark.skipif(
    sys.platform != "linux", reason="an event loop sees no bytes of an unfinished message elsewhere"
)
def test_a_message_that_comes_slowly_is_no_silence() -> None:
    """It takes longer than a connection may be silent."""

    def script(_: Watched, peer: Peer) -> None:
        peer.upgrade()
        data = bytes_of(900)
        whole = b"\x82\x7e" + len(data).to_bytes(2, "big") + data
        for at in range(0, len(whole), len(whole) // 20):
            peer.send(whole[at : at + len(whole) // 20])
            time.sleep(0.05)  # this is what the network does, not what the test waits for
        living(_, peer)

    with watching(Watched(script), ping_every_s=0.1, silent_after_s=0.3) as watcher:
        assert watcher.next(20) == frame(900)
        assert watcher.epoch == 1


@pytest.mark.parametrize("kind", ["loop"], indirect=True)  # a thread connects first
def test_a_ca_file_that_is_none_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    settings = NetworkSettings(cacert=str(tmp_path / "none.pem"), environ={})
    watcher = Watcher("https://127.0.0.1:1/q", CALLER, Watch(), settings)
    with pytest.raises(errors.ConfigError):
        watcher.__enter__()
