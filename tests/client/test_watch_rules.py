"""The rules of a watch, without a connection: reconnects, and frames in messages and chunks."""

from __future__ import annotations

import pytest

from easq.client.watch_rules import CONNECT_SPACING_S, GOOD_AFTER_S, Reconnecting, WatchFrames
from easq.errors import AnotherWatcher, AuthFailed, EasqError, NotAQueueService, StreamEnded, Unreachable
from easq.errors import Unavailable as Busy
from easq.model import Frame
from easq.net.failures import Closed, Unconnected
from easq.net.settings import NetworkSettings
from easq.protocol.frames import delimit, encode_frame
from easq.protocol.operations import Codec

URL = "http://h:1/q"


def rules(**options: float) -> tuple[Reconnecting, list[str]]:
    notices: list[str] = []
    settings = NetworkSettings(connect_timeout_s=5.0, request_timeout_s=30.0, environ={})
    given = {"reconnect_for_s": 60.0, **options}
    return Reconnecting(URL, settings, notice=notices.append, **given), notices


def test_a_start_is_tried_again_as_long_as_other_requests_are() -> None:
    """A connection that does not come about for the connect timeout, a busy service for the request timeout."""
    made, notices = rules()
    made.begin(0.0)
    assert 0 <= made.start_failed(Unconnected("refused"), 1.0) <= 0.1
    with pytest.raises(Unconnected, match="refused"):
        made.start_failed(Unconnected("refused"), 5.0)
    made, notices = rules()
    made.begin(0.0)
    made.start_failed(Busy("later"), 29.0)
    assert notices == ["later; trying again"]
    with pytest.raises(Busy):
        made.start_failed(Busy("later"), 30.0)


@pytest.mark.parametrize(
    "error",
    [AnotherWatcher("taken"), AuthFailed("no"), NotAQueueService("no"), Unconnected("no", lasting=True)],
)
def test_a_start_that_cannot_succeed_later_is_not_tried_again(error: EasqError) -> None:
    made, _ = rules()
    made.begin(0.0)
    with pytest.raises(type(error)):
        made.start_failed(error, 0.0)


def test_an_attempt_ends_with_the_time_of_the_watch() -> None:
    made, _ = rules(until=2.0)
    assert made.begin(0.5).connect_timeout_s == 1.5
    assert 0 < made.begin(9.0).request_timeout_s < 0.01


def test_two_attempts_are_apart() -> None:
    made, _ = rules()
    assert made.spacing_s(0.0) == 0.0
    made.begin(1.0)
    assert made.spacing_s(1.0) == pytest.approx(CONNECT_SPACING_S)
    assert made.spacing_s(2.0) == 0.0


def test_a_lost_connection_is_replaced_within_its_time() -> None:
    made, notices = rules()
    made.begin(0.0)
    made.started()
    made.lost(Unreachable("gone"), 1.0, had_frames=False)
    assert isinstance(made.error, Unreachable)
    assert 0 <= made.pause_s(1.0) <= 0.1
    made.failed(AnotherWatcher("not noticed yet"))
    with pytest.raises(AuthFailed):
        made.failed(AuthFailed("no"))
    assert 0 <= made.pause_s(60.9) <= 0.1 + 1e-9  # never beyond the end
    with pytest.raises(Unreachable, match=r"^not noticed yet; no lasting connection for 60 s$"):
        made.pause_s(61.0)
    made.connected()
    assert made.error is None
    assert notices == ["gone; connecting again", f"connected to {URL} again"]


@pytest.mark.parametrize(("lasted_s", "had_frames", "is_over"), [
    (0.0, False, True), (0.0, True, False), (GOOD_AFTER_S, False, False),
])  # fmt: skip
def test_only_a_good_connection_begins_the_time_anew(
    lasted_s: float, had_frames: bool, is_over: bool
) -> None:
    """One that brought a frame, or lasted; a service that closes each connection at once is given up."""
    made, _ = rules(reconnect_for_s=1.0)
    made.begin(0.0)
    made.lost(Unreachable("gone"), 0.0, had_frames=False)
    made.begin(10.0)
    made.lost(Unreachable("gone"), 10.0 + lasted_s, had_frames=had_frames)
    if is_over:
        with pytest.raises(Unreachable):
            made.pause_s(10.0 + lasted_s)
    else:
        assert made.pause_s(10.0 + lasted_s) <= 1.0


def test_frames_of_messages() -> None:
    frames = WatchFrames(URL, Codec.PROTOBUF)
    frame = Frame(1, {"a": "b"}, b"data")
    assert frames.of_message(encode_frame(frame, Codec.PROTOBUF), is_text=False) == [frame]
    assert frames.of_message(encode_frame(frame, Codec.JSON), is_text=True) == [frame]
    assert frames.of_message(b"", is_text=False) == []
    with pytest.raises(NotAQueueService, match="what is no frame"):
        frames.of_message(b"\xff", is_text=False)


def test_frames_of_an_http_answer() -> None:
    """They come in pieces of any size; an empty frame is the end."""
    frames = WatchFrames(URL, Codec.PROTOBUF)
    data = delimit(encode_frame(Frame(1), Codec.PROTOBUF)) + bytes(len(delimit(b"x")) - 1)
    assert frames.of_chunk(data[:2]) == []
    assert not frames.is_complete
    assert frames.of_chunk(data[2:]) == [Frame(1)]
    assert frames.is_complete
    with pytest.raises(Unreachable, match="ended the connection"):
        frames.of_chunk(b"")


def test_the_end_of_the_stream_is_told_by_the_close_frame() -> None:
    assert isinstance(WatchFrames.ended(Closed("h", 1000, "eos")), StreamEnded)
    error = Closed("h", 1001, "going away")
    assert WatchFrames.ended(error) is error
