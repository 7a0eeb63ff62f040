"""Idempotency keys, failures, the rear store, the end of a stream and reconnect storms, over the wire."""

from __future__ import annotations

import struct
import time

import pytest

from easq.server.queue import QueuePolicy
from easq.server.watch import Liveness
from easq.storage.base import Timing
from tests.server.conftest import Open
from tests.support.http import Connection, Stream
from tests.support.waiting import eventually
from tests.support.websocket import CLOSE, Refused, Watch, watch

REAR = ("X-EAS-QueueService-Access-Rear", "true")
AT_ONCE = Timing(leave_grace_s=0.0, backoff_s=(0.0,))


# -- idempotency keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Idempotency-Key", "X-Easq-Idempotency-Key", "x-easq-idempotency-key"])
def test_a_repeated_put_is_answered_as_the_first(start: Open, header: str) -> None:
    queue = start().queue
    first = queue.ask("POST", [(header, "k-1")], b"x", task="t")
    again = queue.ask("POST", [(header, "k-1")], b"x", task="t")
    other = queue.ask("POST", [(header, "k-2")], b"x")
    assert [answer.body for answer in (first, again, other)] == [b"1", b"1", b"2"]
    assert first.header("X-Easq-Duplicate") is None
    assert again.header("X-Easq-Duplicate") == "1"
    name = "X-Eas-Queueservice-Request-Id"
    assert first.header(name) == again.header(name) != other.header(name)
    assert queue.length() == 2


def test_a_key_with_another_body_is_422_and_stores_nothing(start: Open) -> None:
    queue = start().queue
    queue.ask("POST", [("Idempotency-Key", "k")], b"x")
    refused = queue.ask("POST", [("Idempotency-Key", "k")], b"y")
    assert (refused.status, refused.body) == (
        422,
        b"the idempotency key 'k' was used before, with another payload",
    )
    assert queue.length() == 1


@pytest.mark.parametrize("key", ["", "a b", "\x7f", "k" * 129, "é"])
def test_a_key_that_is_none_is_400(start: Open, key: str) -> None:
    queue = start().queue
    assert queue.ask("POST", [("Idempotency-Key", key)], b"x").status == 400
    assert queue.length() == 0


# -- failures and the rear store ---------------------------------------------------------------------------------------


def fail(queue: Stream, times: int, code: str = "500", reason: str = "out of memory") -> None:
    """Take the first item as a consumer and return it with a negative, `times` times."""
    me = queue.as_consumer("engine")
    with watch(me, _window_=1) as watching:
        for _ in range(times):
            (item,) = watching.take(1)
            assert me.negative(item.index, code=code, reason=reason).status == 200


def test_a_dead_input_item_is_in_the_rear_store_and_answered_in_the_sink(start: Open) -> None:
    """The access header reads, deletes and truncates the rear store. The answer ends the long poll for the result."""
    local = start(policy=QueuePolicy(max_failures=3), timing=AT_ONCE)
    queue = local.queue
    queue.put(b"poison", requestId="r", task="t")
    fail(queue, 3, code="422")
    assert queue.length() == 0
    rear = local.stream(headers=[REAR])
    (copy,) = rear.get(_auto_delete_="false")
    assert copy.data == b"poison"
    expected = {"requestId": "r", "task": "t", "rear@index": "1", "rear@group": "g", "rear@failures": "3"}
    assert expected.items() <= copy.tags.items()
    assert rear.attributes()["stream.length"] == "1"
    (answer,) = queue.sink.get(requestId="r", _timeout_="5s")
    assert (answer.data, answer.tags["lastCode"], answer.tags["task"]) == (b"out of memory", "422", "t")
    assert rear.delete(copy.index).status == 200
    assert rear.length() == 0


def test_an_item_put_into_the_rear_store_is_read_from_it(start: Open) -> None:
    """The Go SDK sends the access header with every operation."""
    local = start()
    rear = local.stream(headers=[REAR])
    index = rear.put(b"abc", requestId="r")
    assert [item.data for item in rear.get(requestId="r", _auto_delete_="false")] == [b"abc"]
    assert local.queue.length() == 0
    assert rear.truncate(index + 1).status == 200
    assert rear.length() == 0


def test_a_dead_sink_item_is_in_the_sinks_own_rear_store(start: Open) -> None:
    local = start(sink_policy=QueuePolicy(max_failures=2), timing=AT_ONCE)
    sink = local.queue.sink
    sink.put(b"result")
    fail(sink, 2)
    assert sink.length() == 0
    assert [item.data for item in local.stream("/api/predict/q/sink", [REAR]).get()] == [b"result"]
    assert local.stream(headers=[REAR]).length() == 0


def test_other_items_are_processed_while_one_item_kills_its_consumers(start: Open) -> None:
    """Lost connections soon count only against the item that caused them, and leave one dead letter."""
    local = start(policy=QueuePolicy(max_failures=4), timing=AT_ONCE)
    queue = local.queue
    for number in range(12):
        queue.put(b"poison" if number == 5 else b"good")
    me = queue.as_consumer("engine")
    for _ in range(40):
        if not queue.length():
            break
        watching = watch(me, _window_=4)
        while queue.length():
            (item,) = watching.take(1)
            if item.data == b"poison":
                watching.reset()
                break
            me.commit(item.index)
        else:
            watching.leave()
            watching.connection.close()
    assert [item.tags["rear@index"] for item in local.stream(headers=[REAR]).get(_length_=9)] == ["6"]
    assert len(queue.sink.get(_length_=9)) == 1


# -- the end of a stream -----------------------------------------------------------------------------------------------


def test_the_last_commit_of_an_ended_stream_closes_its_watch(start: Open) -> None:
    queue = start().queue
    me = queue.as_consumer("u")
    queue.put()
    with watch(me) as watching:
        assert watching.indexes(1) == [1]
        assert queue.ask("POST", (), b"", _eos_="true").body == b"OK"
        assert queue.ask("POST", (), b"more").status == 410
        assert watching.has_no_more()
        me.commit(1)
        frame = watching.read_other_than_ping()
        assert (frame.opcode, frame.payload) == (CLOSE, struct.pack(">H", 1000) + b"eos")
    with pytest.raises(Refused) as refused:
        watch(me)
    assert refused.value.answer.status == 410
    assert queue.ask("POST", (), b"", _eos_="false").body == b"OK"
    with watch(me) as again:
        queue.put()
        assert again.indexes(1) == [2]


def test_a_forced_end_drops_what_is_left(start: Open) -> None:
    queue = start().queue
    queue.put()
    with watch(queue.as_consumer("u")) as watching:
        assert watching.indexes(1) == [1]
        queue.ask("POST", (), b"", _eos_="true", _force_="true")
        assert watching.read_other_than_ping().payload[2:] == b"eos"
    assert queue.length() == 0


def test_an_http_stream_ends_with_its_stream(start: Open) -> None:
    local = start()
    queue = local.queue
    with Connection(local.port) as connection:
        target = queue.target(_watch_="true")
        connection.send_request("GET", target, queue.as_consumer("u").headers, None)
        assert connection.read_head()[0] == 200
        queue.ask("POST", (), b"", _eos_="true")
        assert connection.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_a_silent_watcher_gets_no_close_frame(start: Open) -> None:
    """The connection is aborted. After a close frame the Python SDK would connect again without a pause."""
    queue = start(liveness=Liveness(silent_after_s=0.5)).queue

    def read_to_the_end(silent: Watch) -> None:
        while True:
            assert silent.read().opcode != CLOSE

    with watch(queue.as_consumer("silent")) as silent, pytest.raises((EOFError, OSError)):
        read_to_the_end(silent)


def test_a_client_that_reconnects_without_a_pause_is_slowed_down(start: Open) -> None:
    """It gets fewer than 20 connections a second. Other consumers are answered at once."""
    queue = start().queue
    me = queue.as_consumer("storm")
    began = time.monotonic()
    for _ in range(12):
        watching = watch(me)
        watching.leave()
        watching.connection.close()
    taken = time.monotonic() - began
    # five at once, then five a second: at least 1.2 s; without pacing these take some 50 ms
    assert taken > 1.0
    with watch(queue.as_consumer("other")) as other:
        queue.put()
        assert other.indexes(1) == [1]


def test_idle_time_and_states_are_shown(start: Open) -> None:
    queue = start(timing=Timing(leave_grace_s=0.3)).queue

    def states() -> dict[str, str]:
        lines = (text for key, text in queue.attributes().items() if key.startswith("consumers.list."))
        return {line.split(",")[0][4:]: line.split("Status: ")[1].split(",")[0] for line in lines}

    queue.put()
    lost, done = watch(queue.as_consumer("lost"), _window_=1), watch(queue.as_consumer("done"), _window_=1)
    assert lost.indexes(1) == [1]
    assert states() == {"g.lost": "Running", "g.done": "Running"}
    done.leave()
    done.connection.close()
    lost.reset()
    eventually(lambda: states() == {"g.lost": "Leaving", "g.done": "Complete"})
    eventually(lambda: states() == {"g.lost": "Exit", "g.done": "Complete"})
    with watch(queue.as_consumer("lost"), _window_=1) as back:
        assert back.indexes(1) == [1]
        assert states()["g.lost"] == "Running"
