"""Watches over real sockets: handshake, frames, window, and the delivery of items after a consumer has left."""

from __future__ import annotations

import json
import re
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from easq.server import queue as queue_module
from easq.server.queue import Queue
from easq.server.watch import Liveness
from easq.storage.base import Timing
from easq.storage.ticker import Ticker
from tests.server.conftest import Open
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.protobuf import read_item
from tests.support.waiting import eventually, promptly
from tests.support.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Refused,
    Watch,
    early_frames,
    encode,
    watch,
)

#: a time longer than any test, in seconds: an event within the test did not wait for it
NEVER_S = 600.0


def fill(queue: Stream, count: int, **query: object) -> list[int]:
    """Put `count` items, and return their indexes."""
    return [queue.put(str(number).encode(), **query) for number in range(count)]


def pending(queue: Stream) -> int:
    """Return the number of delivered, uncommitted items from the service's attributes."""
    lines = [text for key, text in queue.attributes().items() if key.startswith("groups.list.")]
    return sum(int(re.search(r"Pending: (\d+)", line)[1]) for line in lines)


# -- handshake ---------------------------------------------------------------------------------------------------------


def test_the_handshake_offers_no_extension(queue: Stream) -> None:
    """The Go library requires `Connection: Upgrade`, and no extension or subprotocol."""
    offers = [
        ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
        ("Sec-WebSocket-Protocol", "chat, superchat"),
    ]
    with watch(queue, offers) as watching:
        answer = watching.answer
        assert answer.header("Connection").lower() == "upgrade"
        assert answer.header("Upgrade") == "websocket"
        assert answer.header("Sec-WebSocket-Extensions") is None
        assert answer.header("Sec-WebSocket-Protocol") is None
        queue.put(b"a" * 1000)
        assert watching.next().data == b"a" * 1000


_GOOD = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


@pytest.mark.parametrize(
    "change",
    [
        {"Sec-WebSocket-Key": None},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Key": "ü"},
        {"Sec-WebSocket-Version": None},
        {"Connection": None},
        {"Connection": "close"},
    ],
)
def test_an_invalid_handshake_is_400(queue: Stream, change: dict[str, str | None]) -> None:
    """It leaves no consumer and no pending item."""
    queue.put()
    headers = [(name, value) for name, value in {**_GOOD, **change}.items() if value is not None]
    answer = queue.ask("GET", headers, _watch_="true")
    assert answer.status == 400
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"
    assert queue.attributes()["consumers.stats.total"] == "0"
    assert pending(queue) == 0


@pytest.mark.parametrize("version", ["8", "14", "99", "x"])
def test_another_version_of_websocket_is_426_and_names_ours(queue: Stream, version: str) -> None:
    """See RFC 6455, section 4.4."""
    answer = queue.ask("GET", list({**_GOOD, "Sec-WebSocket-Version": version}.items()), _watch_="true")
    assert (answer.status, answer.header("Sec-WebSocket-Version")) == (426, "13")
    assert queue.attributes()["consumers.stats.total"] == "0"


def test_connection_may_hold_more_than_upgrade(queue: Stream) -> None:
    queue.put()
    headers = {**_GOOD, "Connection": "keep-alive, Upgrade"}
    with Connection(queue.port) as connection:
        answer = connection.ask("GET", queue.target(_watch_="true"), [*headers.items(), PROTOBUF])
        assert answer.status == 101
        assert answer.header("Sec-WebSocket-Accept") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_a_malformed_watch_is_refused_before_the_upgrade(queue: Stream) -> None:
    for query in ({"_window_": "x"}, {"_index_": "-2"}, {"_auto_commit_": "maybe"}):
        with pytest.raises(Refused) as refused:
            watch(queue, **query)
        assert refused.value.answer.status == 400


def test_an_ended_and_empty_stream_is_410_before_the_upgrade(queue: Stream) -> None:
    """After a close frame the Python SDK would connect hundreds of times a second.

    Remaining items are delivered first.
    """
    queue.put(b"last")
    queue.ask("POST", (), b"", _eos_="true")
    with watch(queue) as watching:
        assert watching.next().data == b"last"
        queue.commit(1)
    with pytest.raises(Refused) as refused:
        watch(queue)
    assert refused.value.answer.status == 410


# -- frames ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 8 * 1024**2])
def test_one_item_is_one_frame(queue: Stream, size: int) -> None:
    """Each frame is binary, final, unmasked and whole: Go's reader takes one frame for one message."""
    queue.put(b"x" * size)
    with watch(queue) as watching:
        frame = watching.read_other_than_ping()
        assert (frame.opcode, frame.final, frame.reserved, frame.masked) == (BINARY, True, 0, False)
        assert read_item(frame.payload).data == b"x" * size


def test_a_hand_tool_that_accepts_json_gets_text(queue: Stream) -> None:
    queue.put(b"\xff", requestId="r")
    with Watch(queue.port, queue.target(_watch_="true"), [("Accept", "application/json")]) as watching:
        frame = watching.read_other_than_ping()
        assert frame.opcode == TEXT
        assert json.loads(frame.payload)["index"] == 1
        assert json.loads(frame.payload)["data"] == "/w=="


@pytest.mark.parametrize("accept", [[], [("Accept", "*/*")]])
def test_without_accept_it_is_protobuf(queue: Stream, accept: list[tuple[str, str]]) -> None:
    queue.put(b"x")
    with Watch(queue.port, queue.target(_watch_="true"), accept) as watching:
        assert watching.next().data == b"x"


@pytest.mark.parametrize("payload", [b"", b"ping", b"\x00\xff" * 62])
def test_a_ping_is_answered_with_its_payload(queue: Stream, payload: bytes) -> None:
    with watch(queue) as watching:
        watching.send(PING, payload)
        frame = watching.read_other_than_ping()
        assert (frame.opcode, frame.payload, frame.masked) == (PONG, payload, False)


def test_index_only_frames_have_tags_and_no_data(queue: Stream) -> None:
    queue.put(b"payload", a="b")
    with watch(queue, _index_only_="true") as watching:
        item = watching.next()
    assert (item.index, item.tags["a"], item.data) == (1, "b", b"")


def test_the_http_stream_is_length_and_frame(queue: Stream) -> None:
    """Each frame follows its length in four bytes, big endian. Window and commit work as with a WebSocket."""
    fill(queue, 3)
    with Connection(queue.port) as connection:
        connection.send_request("GET", queue.target(_watch_="true", _window_=2), [PROTOBUF])
        status, headers = connection.read_head()
        assert status == 200
        assert ("Transfer-Encoding", "chunked") in headers

        def next_index() -> int:
            size = int(connection.read_until(b"\r\n"), 16)
            chunk = connection.read(size)
            connection.read(2)
            (length,) = struct.unpack(">I", chunk[:4])
            assert length == size - 4
            return read_item(chunk[4:]).index

        assert [next_index(), next_index()] == [1, 2]
        assert connection.is_quiet(0.4)
        queue.commit(1)
        assert next_index() == 3


def test_the_end_of_an_http_stream_is_noticed_without_polling(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One heartbeat is sent at the beginning. The lost connection ends the session long before the next one."""
    beats: list[int] = []
    heartbeat = Queue.heartbeat

    async def counted(self: Queue, session: int) -> None:
        beats.append(session)
        await heartbeat(self, session)

    monkeypatch.setattr(Queue, "heartbeat", counted)
    monkeypatch.setattr("easq.server.watch._HEARTBEAT_S", NEVER_S)
    queue = start(timing=Timing(leave_grace_s=0.0)).queue
    fill(queue, 1)
    with Connection(queue.port) as connection:
        connection.send_request("GET", queue.target(_watch_="true"), [PROTOBUF])
        assert connection.read_head()[0] == 200
        connection.peek(1)
    eventually(lambda: pending(queue) == 0)
    assert len(beats) == 1


def test_no_proxy_buffers_the_http_stream(queue: Stream) -> None:
    """nginx reads the first header; caches and compressors read the second."""
    with Connection(queue.port) as connection:
        connection.send_request("GET", queue.target(_watch_="true"), [PROTOBUF])
        _, headers = connection.read_head()
    assert ("X-Accel-Buffering", "no") in headers
    assert ("Cache-Control", "no-cache, no-transform") in headers


@pytest.mark.parametrize("name", ["Sec-WebSocket-Key", "sec-websocket-version", "Sec-WebSocket-Extensions"])
def test_a_handshake_without_its_upgrade_is_426_and_delivers_nothing(queue: Stream, name: str) -> None:
    """A proxy has removed the header: the client waits for 101, and would lose deliveries."""
    queue.put()
    answer = queue.ask("GET", [(name, "x"), ("X-Easq-Transport", "http")], _watch_="true")
    assert (answer.status, answer.header("Upgrade"), answer.header("Connection")) == (
        426,
        "websocket",
        "Upgrade",
    )
    assert queue.attributes()["consumers.stats.total"] == "0"
    assert queue.ask("GET", [(name, "x")]).status == 200  # no watch: nothing to upgrade


def ask_as_1_0(queue: Stream, *headers: str) -> Connection:
    """Request a watch over HTTP/1.0, and return the connection."""
    connection = Connection(queue.port)
    lines = [
        f"GET {queue.target(_watch_='true')} HTTP/1.0",
        f"Host: 127.0.0.1:{queue.port}",
        "Connection: close",
        *headers,
    ]
    connection.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
    return connection


def test_a_watch_over_http_1_0_needs_the_transport_header(queue: Stream) -> None:
    """Proxies that speak HTTP/1.0 would buffer the stream."""
    queue.put()
    for headers in ((), ("X-Easq-Transport: ws",)):
        with ask_as_1_0(queue, *headers) as connection:
            assert connection.read_head()[0] == 426
    assert queue.attributes()["consumers.stats.total"] == "0"
    with ask_as_1_0(queue, "X-Easq-Transport: HTTP") as connection:
        assert connection.read_head()[0] == 200
        (length,) = struct.unpack(">I", connection.read(4))
        assert read_item(connection.read(length)).index == 1


# -- window, order, filter ---------------------------------------------------------------------------------------------


def test_no_more_than_the_window_is_pending(queue: Stream) -> None:
    """Each commit, negative and delete of a pending item allows exactly one further delivery."""
    fill(queue, 12)
    with watch(queue, _window_=3) as watching:
        assert watching.indexes(3) == [1, 2, 3]
        assert watching.has_no_more()
        queue.commit(2)
        assert watching.indexes(1) == [4]
        queue.commit(1, 3)
        assert watching.indexes(2) == [5, 6]
        queue.delete(4)
        assert watching.indexes(1) == [7]
        queue.truncate(7)
        assert watching.indexes(2) == [8, 9]
        assert watching.has_no_more()
        queue.commit(99, 1, 12)
        assert watching.has_no_more()
        assert pending(queue) == 3


@pytest.mark.parametrize("window", [{}, {"_window_": 0}])
def test_without_a_window_it_is_ten(queue: Stream, window: dict[str, int]) -> None:
    fill(queue, 12)
    with watch(queue, **window) as watching:
        assert watching.indexes(10) == list(range(1, 11))
        assert watching.has_no_more()


def test_the_highest_priority_comes_first_and_first_in_first_out_within(queue: Stream) -> None:
    """With one slot, the exact order is by priority, then by index."""
    priorities = [0, 1, 0, 2, 1, 0, 2, -5]
    for priority in priorities:
        queue.put(b"x", _priority_=priority)
    expected = [4, 7, 2, 5, 1, 3, 6, 8]
    seen = []
    with watch(queue, _window_=1) as watching:
        for _ in expected:
            item = watching.next()
            seen.append(item.index)
            queue.commit(item.index)
    assert seen == expected


def test_priority_may_come_in_a_header(queue: Stream) -> None:
    """The query overrides the header."""
    queue.put(b"normal")
    queue.put(b"high", [("X-EAS-QueueService-Priority", "1")])
    queue.put(b"low", [("X-EAS-QueueService-Priority", "9")], _priority_=0)
    with watch(queue, _window_=3) as watching:
        assert watching.indexes(3) == [2, 1, 3]


def test_a_delivered_item_is_not_withdrawn_for_an_urgent_one(queue: Stream) -> None:
    """An urgent item that comes later waits for a slot, and is the next one."""
    fill(queue, 3)
    with watch(queue, _window_=2) as watching:
        assert watching.indexes(2) == [1, 2]
        urgent = queue.put(b"now", _priority_=1)
        assert watching.has_no_more()
        queue.commit(1, 2)
        assert watching.indexes(2) == [urgent, 3]


def test_only_items_with_all_the_tags_are_delivered(queue: Stream) -> None:
    queue.put(b"1", a="x")
    queue.put(b"2", a="x", b="y")
    queue.put(b"3", b="y")
    queue.put(b"4", a="x", b="y", c="z")
    with watch(queue, a="x", b="y") as watching:
        assert watching.indexes(2) == [2, 4]
        assert watching.has_no_more()
        assert queue.put(b"5", b="y", a="x") == 5
        assert watching.indexes(1) == [5]


def test_a_watch_starts_at_its_index(queue: Stream) -> None:
    fill(queue, 4)
    with watch(queue, _index_=3) as watching:
        assert watching.indexes(2) == [3, 4]


def test_the_newest_are_only_what_comes(queue: Stream) -> None:
    fill(queue, 4)
    with watch(queue, _index_=-1) as watching:
        assert watching.has_no_more(0.3)
        queue.put()
        assert watching.indexes(1) == [5]


def test_consumers_of_a_group_share_by_free_slots(queue: Stream) -> None:
    """Each item goes to one of them; a consumer with more room gets more."""
    with (
        watch(queue.as_consumer("small"), _window_=2) as small,
        watch(queue.as_consumer("large"), _window_=6) as large,
    ):
        fill(queue, 20)
        first, second = small.indexes(2), large.indexes(6)
        assert sorted(first + second) == list(range(1, 9))
        assert small.has_no_more(0.3)
        assert large.has_no_more(0.3)
        queue.as_consumer("anyone").commit(*second)
        assert large.indexes(6) == list(range(9, 15))


def test_each_group_gets_every_item(queue: Stream) -> None:
    """Each group commits on its own. An item is removed once both have committed it."""
    one, two = queue.as_consumer("u", "one"), queue.as_consumer("u", "two")
    with watch(one) as first, watch(two) as second:
        fill(queue, 3)
        assert first.indexes(3) == [1, 2, 3]
        assert second.indexes(3) == [1, 2, 3]
        one.commit(1, 2, 3)
        assert queue.length() == 3
        two.commit(1)
        assert queue.length() == 2
        queue.delete(2)
        assert queue.length() == 1
        assert two.commit(2, 3).header("X-Easq-Committed") == "1"
        assert queue.length() == 0


def test_a_group_that_comes_later_sees_what_is_still_there(queue: Stream) -> None:
    fill(queue, 3)
    one = queue.as_consumer("u", "one")
    with watch(one) as first:
        first.indexes(3)
        one.commit(2)
        with watch(queue.as_consumer("u", "two")) as second:
            assert second.indexes(2) == [1, 3]


# -- commit ------------------------------------------------------------------------------------------------------------


def test_auto_commit_empties_the_queue_and_ignores_the_window(queue: Stream) -> None:
    fill(queue, 200)
    with watch(queue, _auto_commit_="true", _window_=1) as watching:
        assert watching.indexes(200) == list(range(1, 201))
        eventually(lambda: queue.length() == 0)
        queue.put()
        assert watching.indexes(1) == [201]


def test_an_item_written_with_auto_commit_is_never_redelivered(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Delivery is at most once, even if the connection breaks in the middle of a write."""
    monkeypatch.setattr("easq.storage.embedded._FETCH_BYTES", 1 << 30)  # more than the system takes from us
    queue = start(timing=Timing(leave_grace_s=0.0)).queue
    for _ in range(20):
        queue.put(b"x" * 1_000_000)
    with watch(queue, _auto_commit_="true") as watching:
        assert watching.indexes(3) == [1, 2, 3]
        watching.reset()
    eventually(lambda: "Running" not in "".join(queue.attributes().values()))
    with watch(queue, _auto_commit_="true") as again:
        assert again.indexes(1)[0] > 3


def test_a_watch_that_is_dropped_at_once_auto_commits_nothing(queue: Stream) -> None:
    """The Go SDK opens such a watch while it is closed. This must not drain the queue."""
    fill(queue, 3)
    for _ in range(5):
        watch(queue, _auto_commit_="true").reset()
    eventually(lambda: "Running" not in "".join(queue.attributes().values()))
    assert queue.length() == 3


def test_a_commit_is_seen_at_once_and_kept_over_a_reconnect(queue: Stream) -> None:
    fill(queue, 4)
    with watch(queue) as watching:
        assert watching.indexes(4) == [1, 2, 3, 4]
        queue.commit(2, 3)
        assert queue.length() == 2
        watching.leave()
    with watch(queue) as watching:
        assert watching.indexes(2) == [1, 4]


def test_anyone_of_the_group_may_commit(queue: Stream) -> None:
    """A commit may come from any connection and user of the group. Commits of another group are independent."""
    queue.put()
    with watch(queue.as_consumer("owner"), _window_=1) as watching:
        watching.next()
        queue.put()
        assert queue.as_consumer("helper").commit(1).header("X-Easq-Committed") == "1"
        assert watching.indexes(1) == [2]
        queue.as_consumer("owner", "other").commit(2)
        assert queue.length() == 1
        assert pending(queue) == 1


def test_a_commit_after_redelivery_began_is_honoured(queue: Stream) -> None:
    """The late commit of a consumer that was considered lost counts, and the item is not delivered again."""
    queue.put()
    first, second = queue.as_consumer("first"), queue.as_consumer("second")
    with watch(first) as watching:
        watching.next()
        watching.leave()
    with watch(second) as watching:
        assert watching.indexes(1) == [1]
        assert first.commit(1).header("X-Easq-Committed") == "1"
        assert second.commit(1).header("X-Easq-Committed") == "0"
    with watch(second) as watching:
        assert watching.has_no_more()
    assert queue.length() == 0


def test_a_negative_returns_the_item(queue: Stream) -> None:
    """It is redelivered before all other items, with its delivery count. A commit then removes it."""
    fill(queue, 2)
    with watch(queue, _window_=1) as watching:
        assert "deliveryCount" not in watching.next().tags
        answer = queue.negative(1, code="Engine.Error", reason="of its own")
        assert (answer.status, answer.body, answer.header("X-Easq-Committed")) == (200, b"OK", "1")
        again = watching.next()
        assert (again.index, again.tags["deliveryCount"]) == (1, "2")
        queue.negative(1)
        later = watching.take(1)[0]
        assert later.index in {1, 2}
        assert queue.negative(99).header("X-Easq-Committed") == "0"


def test_a_negative_with_shutdown_hands_over(queue: Stream) -> None:
    """The consumer gets no more items. Another consumer gets its items at once."""
    fill(queue, 2)
    leaving = queue.as_consumer("leaving")
    with watch(leaving, _window_=2) as old:
        assert old.indexes(2) == [1, 2]
        leaving.negative(1, 2, code="Shutdown")
        assert old.has_no_more(0.3)
        with watch(queue.as_consumer("fresh"), _window_=2) as new:
            assert new.indexes(2) == [1, 2]


def test_a_pending_item_is_searched_found_with_its_owner(queue: Stream) -> None:
    queue.put()
    with watch(queue.as_consumer("u1", "eas")) as watching:
        watching.next()
        found = queue.as_consumer("x", "eas").ask("GET", _search_="true", _index_=1)
        assert found.body == b'{"ConsumerId":"eas.u1","IsPending":true,"WaitCount":0}'
        assert (
            queue.as_consumer("x", "other").ask("GET", _search_="true", _index_=1).json["IsPending"] is False
        )


def test_a_get_takes_a_pending_item(queue: Stream) -> None:
    """A get ignores deliveries. The slot is free afterwards, and a late commit changes nothing."""
    fill(queue, 2)
    with watch(queue, _window_=1) as watching:
        watching.next()
        assert queue.ask("GET", _index_=1).body == b"0"
        assert watching.indexes(1) == [2]
        assert queue.commit(1).header("X-Easq-Committed") == "0"


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_after_a_close_frame_others_get_the_items_at_once(start: Open) -> None:
    """A consumer that sent a close frame has no grace period."""
    queue = start(timing=Timing(leave_grace_s=NEVER_S)).queue
    fill(queue, 3)
    with watch(queue.as_consumer("first")) as first, watch(queue.as_consumer("second")) as second:
        assert first.indexes(3) == [1, 2, 3]
        assert first.leave() == 1000
        assert second.indexes(3) == [1, 2, 3]


@pytest.mark.parametrize("how", ["reset", "close"])
def test_after_a_lost_connection_the_same_user_gets_its_items_at_once(start: Open, how: str) -> None:
    """A short network failure must not move an expensive inference to another machine."""
    queue = start(timing=Timing(leave_grace_s=NEVER_S)).queue
    fill(queue, 4)
    with watch(queue.as_consumer("other"), _window_=1) as other:
        mine = watch(queue.as_consumer("mine"), _window_=2)
        (owned,) = other.indexes(1)
        seen = mine.indexes(2)
        assert owned not in seen
        mine.reset() if how == "reset" else mine.connection.close()
        assert other.has_no_more()
        with watch(queue.as_consumer("mine"), _window_=2) as back:
            for index in seen:  # each alone: one of them may be what ended the connection
                (item,) = back.take(1)
                assert (item.index, item.tags["deliveryCount"]) == (index, "2")
                assert back.has_no_more()
                queue.as_consumer("mine").commit(index)


def test_a_process_that_reconnects_has_all_its_pending_items(start: Open) -> None:
    """This holds before the service has noticed the lost connection, and for repeated reconnects."""
    queue = start(timing=Timing(leave_grace_s=NEVER_S)).queue
    fill(queue, 3)
    mine = queue.as_consumer("mine")
    mine = Stream(mine.port, mine.path, [*mine.headers, ("X-Easq-Session", "abc")])
    connections = []
    for number in range(1, 5):
        connections.append(watch(mine, _window_=2))
        again = connections[-1].take(2)
        assert [item.index for item in again] == [1, 2]
        assert [item.tags.get("deliveryCount", "1") for item in again] == [str(number)] * 2
        if number % 2:
            connections[-1].reset()
    for connection in connections:
        connection.connection.close()


def test_a_session_that_is_no_name_is_refused(queue: Stream) -> None:
    with pytest.raises(Refused) as refused:
        watch(queue, [("X-Easq-Session", "a b")])
    assert refused.value.answer.status == 400


@pytest.mark.parametrize("how", ["reset", "close"])
def test_after_the_grace_others_get_the_items(start: Open, how: str) -> None:
    queue = start(timing=Timing(leave_grace_s=1.0)).queue
    fill(queue, 3)
    lost = watch(queue.as_consumer("lost"))
    assert lost.indexes(3) == [1, 2, 3]
    with watch(queue.as_consumer("other")) as other:
        lost.reset() if how == "reset" else lost.connection.close()
        assert other.has_no_more(0.3)
        for index in (1, 2, 3):
            (item,) = other.take(1)
            assert (item.index, item.tags["deliveryCount"]) == (index, "2")
            queue.as_consumer("other").commit(index)


def test_a_process_that_reconnects_while_the_service_is_suspended_is_in_time(
    start: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the grace period ends, the handshake waits in the socket. It is read before others get the items."""
    monkeypatch.setattr(Ticker, "stood_still_s", 0.3)
    local = start(timing=Timing(leave_grace_s=0.6))
    queue = local.queue
    fill(queue, 1)
    mine = watch(queue.as_consumer("mine"))
    assert mine.indexes(1) == [1]

    async def stand_still(_: object) -> None:
        time.sleep(1.2)

    with watch(queue.as_consumer("other")) as other, ThreadPoolExecutor(1) as pool:
        mine.reset()
        eventually(lambda: pending(queue) == 0)
        standing = pool.submit(local.do, stand_still)
        with watch(queue.as_consumer("mine")) as back:
            standing.result()
            assert back.indexes(1) == [1]
            assert other.has_no_more()


def test_an_http_stream_that_is_cut_is_lost(start: Open) -> None:
    queue = start(timing=Timing(leave_grace_s=0.5)).queue
    queue.put()
    with watch(queue.as_consumer("other"), _window_=1, nothing="matches"):
        connection = Connection(queue.port)
        mine = queue.as_consumer("mine")
        connection.send_request("GET", mine.target(_watch_="true"), [*mine.headers, PROTOBUF])
        connection.read_head()
        eventually(lambda: pending(queue) == 1)
        connection.reset()
        eventually(lambda: pending(queue) == 0)
    with watch(queue.as_consumer("third")) as third:
        assert third.indexes(1) == [1]


def test_returned_items_come_before_later_ones_of_their_class(start: Open) -> None:
    queue = start(timing=Timing(leave_grace_s=0.0)).queue
    fill(queue, 6)
    urgent = queue.put(b"u", _priority_=1)
    lost = watch(queue.as_consumer("lost"), _window_=3)
    assert lost.indexes(3) == [urgent, 1, 2]
    lost.leave()
    lost.connection.close()
    eventually(lambda: pending(queue) == 0)
    with watch(queue.as_consumer("other"), _window_=7) as other:
        assert other.indexes(7) == [urgent, 1, 2, 3, 4, 5, 6]


def test_a_silent_watcher_is_dropped_and_a_pinging_one_is_not(start: Open) -> None:
    """Any inbound byte counts: the SDKs send pings, but do not answer pings while they work."""
    queue = start(liveness=Liveness(silent_after_s=1.5), timing=Timing(leave_grace_s=0.1)).queue
    fill(queue, 2)
    with (
        watch(queue.as_consumer("silent"), _window_=1) as silent,
        watch(queue.as_consumer("alive"), _window_=1) as alive,
    ):
        (held,) = silent.indexes(1)
        (mine,) = alive.indexes(1)
        assert {held, mine} == {1, 2}

        def pinged_until_dropped() -> bool:
            alive.send(PING, b"ping")
            return "Running" not in line_of(queue, "g.silent")

        eventually(pinged_until_dropped)
        assert "Running" in line_of(queue, "g.alive")
        queue.as_consumer("alive").commit(mine)
        while (frame := alive.read_other_than_ping()).opcode == PONG:
            pass
        assert read_item(frame.payload).index == held


def test_a_service_that_was_suspended_reads_before_it_drops_silent_watchers(start: Open) -> None:
    """Pings that waited in the socket count: no watcher is dropped, and no item has failed."""
    local = start(liveness=Liveness(silent_after_s=0.3), timing=Timing(leave_grace_s=0.0))
    queue = local.queue
    fill(queue, 1)

    async def stand_still(_: object) -> None:
        time.sleep(0.5)  # the whole service, as if it was stopped

    with watch(queue.as_consumer("u"), _window_=1) as watching:
        assert watching.indexes(1) == [1]
        for _ in range(4):
            pinging = threading.Timer(0.1, watching.send, (PING, b"ping"))
            pinging.start()
            local.do(stand_still)
            pinging.join()
            watching.send(PING, b"ping")
        assert "Running" in line_of(queue, "g.u")
        assert pending(queue) == 1


def test_the_service_pings_a_quiet_client(start: Open) -> None:
    """A client that sends nothing by itself answers these pings."""
    queue = start(liveness=Liveness(silent_after_s=1.0)).queue
    with watch(queue.as_consumer("u")) as watching:
        for _ in range(6):
            frame = watching.read()
            assert frame.opcode == PING
            watching.send(PONG, frame.payload)
        assert "Running" in line_of(queue, "g.u")


def line_of(queue: Stream, name: str) -> str:
    """Return the consumer's line in the attributes."""
    lines = [text for key, text in queue.attributes().items() if key.startswith("consumers.list.")]
    return next(text for text in lines if text.startswith(f"Id: {name},"))


# -- one name, two connections -----------------------------------------------------------------------------------------


def test_a_second_watcher_of_a_living_name_is_409(queue: Stream) -> None:
    """This holds within one group, and the first watcher continues.

    In another group, or on the sink, the name is free.
    """
    queue.put()
    me = queue.as_consumer("me")
    with watch(me) as first:
        first.next()
        with pytest.raises(Refused) as refused:
            watch(me)
        assert refused.value.answer.status == 409
        assert refused.value.answer.text == "consumer g.me is watching already"
        with watch(queue.as_consumer("me", "other")), watch(me.sink):
            pass
        queue.put()
        assert first.indexes(1) == [2]


def test_a_name_is_free_once_its_watcher_left(queue: Stream) -> None:
    """The new watch may already wait, since a reconnect can arrive before the end of the old connection."""
    me = queue.as_consumer("me")
    for how in ("leave", "reset", "close"):
        first = watch(me)
        if how == "leave":
            first.leave()
            first.connection.close()
        elif how == "reset":
            first.reset()
        else:
            first.connection.close()
        watch(me).connection.close()


def test_a_silent_holder_of_a_name_is_replaced(queue: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed with 1008, and its items move to the new connection in one step."""
    monkeypatch.setattr(queue_module, "ALIVE_S", 0.2)
    fill(queue, 3)
    me = queue.as_consumer("me")
    with watch(me, _window_=3) as old:
        assert old.indexes(3) == [1, 2, 3]
        with watch(me, _window_=3) as new:
            assert new.indexes(3) == [1, 2, 3]
            assert pending(queue) == 3
            assert old.read_close() == 1008


@pytest.mark.parametrize("upgrade", [True, False], ids=["WebSocket", "HTTP stream"])
def test_a_watcher_that_hangs_up_before_it_is_answered_leaves_nothing(
    queue: Stream, upgrade: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The Go SDK opens such a watch while it is closed. No error is logged, and no consumer is left."""
    shaking = list(_GOOD.items()) if upgrade else []
    for number in range(20):
        with Connection(queue.port) as phantom:
            me = queue.as_consumer(f"u{number}")
            phantom.send_request("GET", me.target(_watch_="true"), [*shaking, *me.headers])
            phantom.reset()
    eventually(lambda: "Running" not in "".join(queue.attributes().values()))
    assert [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


# -- invalid input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (encode(PING, b"x", reserved=4), 1002),
        (encode(BINARY, b"x", reserved=1), 1002),
        (encode(3), 1002),
        (encode(7, b"x"), 1002),
        (encode(11), 1002),
        (encode(15), 1002),
        (encode(PING, b"x" * 126), 1002),
        (encode(PING, b"x", final=False), 1002),
        (encode(CLOSE, b"x"), 1002),
        (encode(CLOSE, b"\x00\x00"), 1002),
        (encode(CLOSE, struct.pack(">H", 999)), 1002),
        (encode(CLOSE, struct.pack(">H", 1005)), 1002),
        (encode(CLOSE, struct.pack(">H", 1000) + b"\xff"), 1007),
        (encode(CONTINUATION, b"x"), 1002),
        (encode(BINARY, b"a", final=False) + encode(TEXT, b"b"), 1002),
        (encode(TEXT, b"\xff\xfe"), 1007),
        (encode(BINARY, b"x" * 1025), 1009),
        (encode(BINARY, b"x" * 70_000), 1009),
        (b"\x82\xff" + b"\x40" + b"\0" * 7, 1009),
        (b"\x82\xff" + b"\xff" * 8, 1009),
        (
            b"".join(encode(BINARY if not n else CONTINUATION, b"x" * 200, final=False) for n in range(8)),
            1009,
        ),
    ],
)
def test_an_invalid_frame_ends_the_connection_with_its_code(start: Open, wire: bytes, code: int) -> None:
    """Its items are released as after any lost connection, first to the same user."""
    queue = start(timing=Timing(leave_grace_s=NEVER_S)).queue
    fill(queue, 2)
    me = queue.as_consumer("me")

    def be_refused() -> None:
        with watch(me) as watching:
            assert watching.indexes(2) == [1, 2]
            watching.connection.send(wire)
            assert watching.read_close() == code
            eventually(watching.connection.is_over)

    promptly(be_refused)
    with watch(me) as watching:
        assert watching.indexes(1) == [1]
        me.commit(1)
        assert watching.indexes(1) == [2]


def test_messages_of_a_client_are_ignored(queue: Stream) -> None:
    """Messages of up to a KiB, whole or fragmented, with pings between the fragments, change nothing."""
    queue.put()
    with watch(queue) as watching:
        watching.send(TEXT, b"commit 1")
        watching.send(BINARY, b"x" * 1024)
        watching.send(BINARY, b"a", final=False)
        watching.send(PING, b"between")
        watching.send(CONTINUATION, b"b")
        assert watching.next().index == 1
        assert watching.read_other_than_ping().payload == b"between"
        assert watching.has_no_more(0.3)
        assert pending(queue) == 1


def test_many_tiny_fragments_are_bounded(queue: Stream) -> None:
    """A message of a hundred thousand fragments ends with 1009 long before its last one."""
    with watch(queue) as watching:
        piece = encode(CONTINUATION, b"x", final=False)
        watching.connection.send(encode(BINARY, b"x", final=False) + piece * 2000)
        assert watching.read_close() == 1009


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_goodbye_is_answered(queue: Stream, code: int) -> None:
    with watch(queue) as watching:
        assert watching.leave(code) == 1000
        eventually(watching.connection.is_over)


# -- the service stops -------------------------------------------------------------------------------------------------


def test_a_service_that_stops_closes_watches_with_1001_and_accepts_no_connection(start: Open) -> None:
    """Each watcher gets 1001, each long poll an answer. The port is closed first, so that no client reconnects."""
    service = start()
    with Connection(service.port) as poll, watch(service.queue) as watching:
        poll.send_request("GET", service.queue.target(_timeout_="60s"))
        assert poll.is_quiet(0.3)
        began = time.monotonic()
        service.stop()
        assert watching.read_close() == 1001
        assert poll.read_answer().status == 204
        assert time.monotonic() - began < 10
        with pytest.raises(ConnectionRefusedError):
            watch(service.queue)


# -- attributes --------------------------------------------------------------------------------------------------------


def test_attributes_list_consumers_and_groups(queue: Stream) -> None:
    """The lines have the documented form, for a consumer that works and one that has left."""
    fill(queue, 3)
    with watch(queue.as_consumer("u1", "g1"), _window_=5, foo="bar"):
        with watch(queue.as_consumer("u2", "g1"), _window_=2) as second:
            second.indexes(2)
            found = queue.attributes()
            assert found["consumers.stats.total"] == found["consumers.status.total"] == "2"
            assert re.fullmatch(
                r"Id: g1\.u1, Index: 0, Pending: 0, Status: Running, Idle: [0-9.]+m?s, Window: 5, Slots: 5, "
                r"AutoCommit: false, Tags: tags\[foo=bar\]",
                found["consumers.list.[0]"],
            )
            assert re.fullmatch(
                r"Id: g1\.u2, Index: 2, Pending: 2, Status: Running, Idle: [0-9.]+m?s, Window: 2, Slots: 0, "
                r"AutoCommit: false",
                found["consumers.list.[1]"],
            )
            assert found["groups.list.[0]"] == "Id: g1, Index: 1, Pending: 2, Delivered: 3, Consumers: 2"
        eventually(lambda: "Leaving" in line_of(queue, "g1.u2"))
        assert "Pending: 2, Status: Leaving" in line_of(queue, "g1.u2")
        assert "Window: 0, Slots: 0" in line_of(queue, "g1.u2")
        queue.as_consumer("any", "g1").commit(1, 2)
    eventually(lambda: "Complete" in line_of(queue, "g1.u1"))


@pytest.mark.parametrize("before", [b"", encode(PING, b"x" * 100)], ids=["first", "after a good one"])
def test_a_frame_that_is_not_masked_ends_the_watch(queue: Stream, before: bytes) -> None:
    """The close code is 1002. The items are ready for others at once."""
    queue.put()
    with watch(queue.as_consumer("u")) as watching:
        assert watching.indexes(1) == [1]
        watching.connection.send(before + encode(PING, b"here", masked=False))
        while (frame := watching.read()).opcode == PONG:
            pass
        assert (frame.opcode, frame.payload[:2]) == (CLOSE, (1002).to_bytes(2, "big"))
    with watch(queue.as_consumer("other")) as other:
        assert other.indexes(1) == [1]


def test_an_unmasked_frame_in_one_piece_with_the_handshake_ends_the_watch(queue: Stream) -> None:
    with Connection(queue.port) as connection:
        connection.send(early_frames(queue.target(_watch_="true"), encode(PING, b"yo", masked=False)))
        assert connection.read_head()[0] == 101
        assert connection.read(4) == bytes([0x80 | CLOSE, 24]) + (1002).to_bytes(2, "big")


def test_a_masked_frame_in_one_piece_with_the_handshake_is_answered(queue: Stream) -> None:
    with Connection(queue.port) as connection:
        connection.send(early_frames(queue.target(_watch_="true"), encode(PING, b"yo")))
        assert connection.read_head()[0] == 101
        assert connection.read(4) == bytes([0x80 | PONG, 2]) + b"yo"
