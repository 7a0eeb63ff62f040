"""Operations that are answered at once: each reply as the protocol defines it."""

from __future__ import annotations

import base64
import gzip
import re
import socket
import threading
import time

import pytest

from easq.server.queue import QueuePolicy
from easq.storage.base import Limits
from tests.server.conftest import Open
from tests.support.http import PROTOBUF, Connection, Stream
from tests.support.protobuf import read_map
from tests.support.waiting import eventually

REQUEST_ID = "X-Eas-Queueservice-Request-Id"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


# -- put ---------------------------------------------------------------------------------------------------------------


def test_a_put_is_answered_with_bare_digits_and_the_request_id(queue: Stream) -> None:
    """No newline, blank or leading zero is sent: the Go SDK parses the whole body as a number, and detects its base."""
    for index in range(1, 11):
        answer = queue.ask("POST", (), b"x")
        assert (answer.status, answer.body) == (200, str(index).encode())
        assert _UUID.fullmatch(answer.header(REQUEST_ID) or "")
        assert answer.header("Content-Length") == str(len(answer.body))


def test_the_header_spells_the_request_id_as_the_sdks_read_it(queue: Stream) -> None:
    """urllib3 and Go ignore the case, but only this spelling is documented."""
    names = [name for name, _ in queue.ask("POST", (), b"x").headers]
    assert REQUEST_ID in names


def test_the_request_id_of_the_answer_is_the_items_tag(queue: Stream) -> None:
    answer = queue.ask("POST", (), b"x")
    assert queue.get()[0].request_id == answer.header(REQUEST_ID)


def test_a_given_request_id_is_kept(queue: Stream) -> None:
    answer = queue.ask("POST", (), b"x", requestId="mine-1")
    assert answer.header(REQUEST_ID) == "mine-1"
    assert queue.get(requestId="mine-1")[0].data == b"x"


def test_tags_are_the_decoded_parameters_of_the_query(queue: Stream) -> None:
    """`+` is a blank, percent-encoding is UTF-8, and names that begin with an underscore are not tags."""
    answer = queue.ask("POST", (), b"x", path="?foo=b+ar%2F%C3%BC&empty=&_priority_=1")
    assert answer.status == 200
    tags = queue.get()[0].tags
    assert tags["foo"] == "b ar/ü"
    assert tags["empty"] == ""
    assert set(tags) == {"foo", "empty", "requestId", "ts@source", "Header:Content-Type"}


@pytest.mark.parametrize(
    ("data", "headers", "stored"),
    [
        (b"text", [], "text/plain; charset=utf-8"),
        (b"\x89PNG\x0d\x0a\x1a\x0a", [], "image/png"),
        (b"\x00\x01", [], "application/octet-stream"),
        (b"{}", [("Content-Type", "application/json")], "application/json"),
    ],
)
def test_the_content_type_is_a_tag_given_or_guessed(
    queue: Stream, data: bytes, headers: list[tuple[str, str]], stored: str
) -> None:
    queue.put(data, headers)
    assert queue.get()[0].tags["Header:Content-Type"] == stored


def test_items_of_input_and_sink_have_time_tags_of_their_own(queue: Stream) -> None:
    """The input sets `ts@source`, the sink `ts@sink`, in milliseconds.

    The sink retains the tags that an engine sends.
    """
    queue.put()
    queue.sink.put(
        b"result", requestId="r", lastCode="500", **{"ts@source": "17", "Header:Content-Type": "a/b"}
    )
    (item,) = queue.get()
    (result,) = queue.sink.get()
    assert len(item.tags["ts@source"]) == 13
    assert "ts@sink" not in item.tags
    assert len(result.tags["ts@sink"]) == 13
    assert {**result.tags, "ts@sink": ""} == {
        "requestId": "r",
        "lastCode": "500",
        "ts@source": "17",
        "ts@sink": "",
        "Header:Content-Type": "a/b",
    }


def test_an_input_item_cannot_be_given_the_services_own_tags(queue: Stream) -> None:
    queue.put(b"x", **{"ts@source": "17", "ts@sink": "18", "Header:Cookie": "c", "deliveryCount": "9"})
    tags = queue.get()[0].tags
    assert tags["ts@source"] != "17"
    assert set(tags) == {"ts@source", "requestId", "Header:Content-Type"}


def test_no_secret_of_the_caller_becomes_a_tag(start: Open) -> None:
    """Authorization, cookies and identity are not stored: every consumer would see them."""
    service = start(token="canary-token")
    secrets = [
        ("Authorization", "canary-token"),
        ("Cookie", "canary-cookie"),
        ("Proxy-Authorization", "canary-proxy"),
        ("X-EAS-QueueService-Uid", "canary-user"),
    ]
    service.queue.ask("POST", secrets, b"x")
    tags = service.stream(headers=secrets[:1]).get()[0].tags
    assert "canary" not in repr(tags)


def test_bytes_come_back_identical(queue: Stream) -> None:
    """Payloads: every byte value, no byte, and a megabyte."""
    for data in (bytes(range(256)), b"", b"\0" * 3, b"\r\n--x\r\n", bytes(range(256)) * 4096):
        index = queue.put(data)
        assert queue.get(_index_=index)[0].data == data
        assert queue.ask("GET", _index_=index).body == data


@pytest.mark.parametrize("word", ["_trunc_", "_search_", "_attrs_", "_watch_"])
def test_a_post_with_a_parameter_of_another_method_stores_nothing(queue: Stream, word: str) -> None:
    """A complete WebSocket handshake sent with POST is refused as well."""
    upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    for headers in ([], upgrade):
        answer = queue.ask("POST", headers, b"", **{word: "true", "_index_": "5"})
        assert (answer.status, word in answer.text) == (400, True)
    assert queue.length() == 0


def test_a_gzip_body_is_stored_unchanged_with_its_encoding(queue: Stream) -> None:
    """The body is not decoded, and Content-Encoding is stored: clients get back the compressed bytes."""
    data = gzip.compress(b"a" * 100_000)
    queue.put(data, [("Content-Encoding", "gzip"), ("Content-Type", "text/plain")])
    (item,) = queue.get()
    assert item.data == data
    assert item.tags["Header:Content-Encoding"] == "gzip"
    raw = queue.ask("GET")
    assert raw.body == data
    assert raw.header("Content-Encoding") is None


def test_a_chunked_put_is_one_item(queue: Stream) -> None:
    body = b"3\r\nabc\r\n5\r\ndefgh\r\n0\r\n\r\n"
    assert queue.ask("POST", [("Transfer-Encoding", "chunked")], body).body == b"1"
    assert queue.get()[0].data == b"abcdefgh"


def test_a_client_that_expects_100_continue_is_told_to(queue: Stream) -> None:
    """curl and Java wait for the 100 before they send a large body."""
    with Connection(queue.port) as connection:
        connection.send_request("POST", queue.path, [("Expect", "100-continue"), ("Content-Length", "3")])
        assert connection.read_head() == (100, [])
        connection.send(b"abc")
        assert connection.read_answer().body == b"1"
    assert queue.get()[0].data == b"abc"


def test_a_sub_path_of_a_put_is_kept_for_the_engine(queue: Stream) -> None:
    assert queue.ask("POST", (), b"x", path="/sdapi/v1/txt2img", task_id="7").body == b"1"
    (item,) = queue.get()
    assert item.tags["Path"] == "/sdapi/v1/txt2img"
    assert item.tags["task_id"] == "7"


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["content length", "chunked"])
@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413)])
def test_the_payload_limit_is_exact(start: Open, chunked: bool, size: int, status: int) -> None:
    """A payload of the limit is accepted, and one more byte is refused, with or without a declared length."""
    queue = start(policy=QueuePolicy(max_payload=1000)).queue
    data = b"x" * size
    if chunked:
        wire = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
        answer = queue.ask("POST", [("Transfer-Encoding", "chunked")], wire)
    else:
        answer = queue.ask("POST", (), data)
    assert answer.status == status
    assert queue.length() == (1 if status == 200 else 0)
    if status == 413:
        assert answer.text == "the payload has 1001 bytes, an item may have 1000"
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"


def test_a_payload_far_above_the_limit_is_refused_before_it_is_sent(start: Open) -> None:
    """The answer comes right after the head, and announces that the connection will be closed."""
    queue = start(policy=QueuePolicy(max_payload=1000)).queue
    with Connection(queue.port) as connection:
        connection.send_request("POST", queue.path, [("Content-Length", str(10**12))])
        answer = connection.read_answer()
    assert answer.status == 413
    assert answer.header("Connection") == "close"


@pytest.mark.parametrize("size", [1000, 1])
def test_an_endless_chunked_payload_is_refused_at_the_limit(start: Open, size: int) -> None:
    """The answer comes after the first byte above the limit."""
    queue = start(policy=QueuePolicy(max_payload=1000)).queue
    with Connection(queue.port) as connection:
        connection.send_request("POST", queue.path, [("Transfer-Encoding", "chunked")])
        for _ in range(1000 // size):
            connection.send(b"%x\r\n%s\r\n" % (size, b"x" * size))
        connection.send(b"1\r\nx\r\n")
        answer = connection.read_answer()
    assert (answer.status, answer.text) == (413, "the payload has 1001 bytes, an item may have 1000")
    assert answer.header("Connection") == "close"
    assert queue.length() == 0


def test_a_client_that_sends_its_large_body_first_still_reads_the_413(start: Open) -> None:
    """The connection is not reset while the client writes."""
    queue = start(policy=QueuePolicy(max_payload=1000)).queue
    assert queue.ask("POST", (), b"x" * 3_000_000).status == 413


def test_a_full_queue_is_429_and_drains(start: Open) -> None:
    """Nothing is stored, and no Retry-After is sent. After a commit a put is accepted again."""
    queue = start(policy=QueuePolicy(limits=Limits(max_items=3))).queue
    for _ in range(3):
        queue.put()
    refused = queue.ask("POST", (), b"one too many")
    assert refused.status == 429
    assert refused.text == "the queue is full: 3 of 3 items, 12 of 10737418240 bytes"
    assert refused.header("Retry-After") is None
    assert queue.length() == 3
    assert queue.sink.put() == 1
    assert queue.commit(1).status == 200
    index = queue.put()
    assert index > 3
    assert queue.ask("POST", (), b"again too many").status == 429


def test_bytes_are_limited_as_items_are(start: Open) -> None:
    queue = start(policy=QueuePolicy(limits=Limits(max_bytes=10))).queue
    queue.put(b"123456")
    assert queue.ask("POST", (), b"12345").status == 429
    assert queue.ask("POST", (), b"1234").status == 200


def test_a_queue_that_evicts_drops_its_oldest(start: Open) -> None:
    queue = start(policy=QueuePolicy(limits=Limits(max_items=2, evict=True))).queue
    assert [queue.put(), queue.put(), queue.put()] == [1, 2, 3]
    assert [item.index for item in queue.get(_length_=9)] == [2, 3]


def test_after_the_end_of_a_stream_a_put_is_410(queue: Stream) -> None:
    """The items stay. `_eos_=false` reopens the stream."""
    queue.put()
    assert queue.ask("POST", (), b"", _eos_="true").body == b"OK"
    assert queue.ask("POST", (), b"x").status == 410
    assert queue.attributes()["meta.state"] == "End"
    assert queue.length() == 1
    assert queue.ask("POST", (), b"", _eos_="false").status == 200
    assert queue.put() == 2


def test_a_forced_end_drops_what_is_there(queue: Stream) -> None:
    queue.put()
    assert queue.ask("POST", (), b"", _eos_="true", _force_="true").body == b"OK"
    assert queue.length() == 0


# -- get ---------------------------------------------------------------------------------------------------------------


def test_a_raw_get_is_the_payload_under_its_own_type(queue: Stream) -> None:
    """curl on a queue shows the payload, since `_raw_` and deleting are the defaults."""
    queue.put(b"[{}]", [("Content-Type", "application/json")], requestId="r-1")
    answer = queue.ask("GET")
    assert (answer.status, answer.body) == (200, b"[{}]")
    assert answer.header("Content-Type") == "application/json"
    assert answer.header(REQUEST_ID) == "r-1"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    assert queue.length() == 0


def test_the_type_that_curl_gives_everything_is_guessed_over(queue: Stream) -> None:
    queue.put(b"[{}]", [("Content-Type", "application/x-www-form-urlencoded")])
    assert queue.ask("GET").header("Content-Type") == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    "kind",
    ["text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/javascript"],
)
def test_what_a_browser_would_run_comes_as_plain_bytes(queue: Stream, kind: str) -> None:
    queue.put(b"<script>alert(1)</script>", [("Content-Type", kind)])
    answer = queue.ask("GET")
    assert answer.header("Content-Type") == "application/octet-stream"
    assert answer.header("X-Content-Type-Options") == "nosniff"


def test_a_page_without_a_type_is_not_guessed_into_one(queue: Stream) -> None:
    queue.put(b"<!DOCTYPE html><script>alert(1)</script>")
    assert queue.ask("GET").header("Content-Type") == "application/octet-stream"


@pytest.mark.parametrize("accept", [[], [("Accept", "*/*")], [("Accept", "application/json")]])
def test_a_list_is_a_json_array(queue: Stream, accept: list[tuple[str, str]]) -> None:
    """`_raw_=false` without protobuf returns the form that pai-python-sdk reads: index, tags object, base64 data, no
    message.
    """
    queue.put(b"\xff\x00", requestId="r")
    answer = queue.ask("GET", accept, _raw_="false", _auto_delete_="false")
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/json"
    (frame,) = answer.json
    assert frame["index"] == 1
    assert frame["tags"]["requestId"] == "r"
    assert base64.b64decode(frame["data"]) == b"\xff\x00"
    assert set(frame) == {"index", "tags", "data"}


def test_more_than_one_item_cannot_be_raw(queue: Stream) -> None:
    queue.put()
    queue.put()
    answer = queue.ask("GET", _length_=2)
    assert answer.header("Content-Type") == "application/json"
    assert [frame["index"] for frame in answer.json] == [1, 2]


def test_a_list_is_protobuf_if_accept_names_it(queue: Stream) -> None:
    """The bytes equal the documented example, except for the service's own tags."""
    queue.sink.put(b"data5", requestId="r-5", **{"Header:Content-Type": "t/t"})
    answer = queue.sink.ask("GET", [PROTOBUF])
    assert answer.header("Content-Type") == "application/vnd.google.protobuf"
    (item,) = answer.items
    assert (item.index, item.data, item.request_id) == (1, b"data5", "r-5")
    assert answer.body.startswith(b"\x0a")
    assert bytes.fromhex("0a097265717565737449641203722d35") in answer.body
    assert answer.body.count(b"\x1a\x05data5") == 1


@pytest.mark.parametrize("headers", [[], [PROTOBUF]], ids=["raw", "protobuf"])
@pytest.mark.parametrize("raw", ["true", "false"])
def test_nothing_there_is_204_without_a_body(queue: Stream, headers: list[tuple[str, str]], raw: str) -> None:
    answer = queue.ask("GET", headers, _raw_=raw)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("Transfer-Encoding") is None
    assert answer.header("Retry-After") is None


def test_a_get_starts_at_its_index_and_counts_matches(queue: Stream) -> None:
    """`_length_` counts the items that match the tags."""
    for number in range(6):
        queue.put(str(number).encode(), kind="even" if number % 2 == 0 else "odd")
    assert [item.index for item in queue.get(_index_=3, _length_=2)] == [3, 4]
    assert [item.index for item in queue.get(_length_=2, kind="odd")] == [2, 4]
    assert [item.index for item in queue.get(_index_=3, _length_=9, kind="even")] == [3, 5]
    assert [item.index for item in queue.get(_index_=-1)] == [6]
    assert queue.get(_index_=7) == []
    assert queue.get(kind="neither") == []
    assert queue.get(_index_=2**64 - 1) == []


def test_auto_delete_is_the_default_and_takes_for_everybody(queue: Stream) -> None:
    queue.put()
    queue.put()
    assert [frame["index"] for frame in queue.ask("GET", _raw_="false").json] == [1]
    assert [item.index for item in queue.get(_length_=9)] == [2]


def test_two_gets_never_take_the_same_item(queue: Stream) -> None:
    """Eight clients take forty items at the same time. Each item goes to one client."""
    for _ in range(40):
        queue.put()
    taken: list[int] = []

    def take_five() -> None:
        with Connection(queue.port) as connection:
            for _ in range(5):
                answer = connection.ask("GET", queue.target(_raw_="false"), [PROTOBUF])
                taken.extend(item.index for item in answer.items)

    threads = [threading.Thread(target=take_five) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 41))


def test_a_long_poll_ends_when_an_item_comes(queue: Stream) -> None:
    with Connection(queue.port) as poll:
        poll.send_request("GET", queue.target(_timeout_="30s", wanted="yes"))
        assert poll.is_quiet(0.3)
        queue.put(b"other")
        assert poll.is_quiet(0.3)
        queue.put(b"this", wanted="yes")
        began = time.monotonic()
        assert poll.read_answer().body == b"this"
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("timeout", ["1s", "1", "1000ms", "0m1s"])
def test_a_long_poll_is_answered_shortly_before_its_timeout(queue: Stream, timeout: str) -> None:
    """The Python SDK's socket gives up at the timeout. Bare numbers are seconds."""
    began = time.monotonic()
    assert queue.ask("GET", _timeout_=timeout).status == 204
    assert 0.5 < time.monotonic() - began < 5


def test_a_long_poll_for_several_answers_with_what_there_is(queue: Stream) -> None:
    queue.put()
    answer = queue.ask("GET", [PROTOBUF], _length_=3, _timeout_="1s", _raw_="false")
    assert [item.index for item in answer.items] == [1]


def test_one_item_answers_one_of_two_long_polls(queue: Stream) -> None:
    with Connection(queue.port) as first, Connection(queue.port) as second:
        for poll in (first, second):
            poll.send_request("GET", queue.target(_timeout_="20s"))
        assert first.is_quiet(0.3)
        queue.put(b"a")
        queue.put(b"b")
        assert {first.read_answer().body, second.read_answer().body} == {b"a", b"b"}


def test_a_long_poll_whose_caller_left_takes_no_item(queue: Stream) -> None:
    """It does not use up the wake-up for an item either."""
    with Connection(queue.port) as dead, Connection(queue.port) as alive:
        dead.send_request("GET", queue.target(_timeout_="30s"))
        assert dead.is_quiet(0.3)
        alive.send_request("GET", queue.target(_timeout_="30s"))
        assert alive.is_quiet(0.3)
        dead.reset()
        queue.put(b"news")
        began = time.monotonic()
        assert alive.read_answer().body == b"news"
        assert time.monotonic() - began < 10


def test_items_of_an_incomplete_answer_are_put_back(queue: Stream) -> None:
    """The client of a deleting get disconnects in the middle of the answer."""
    payload = b"x" * 6_000_000
    for _ in range(4):
        queue.put(payload)
    with Connection(queue.port) as connection:
        connection.send_request("GET", queue.target(_length_=4), [PROTOBUF])
        # the answer has begun, 24 MB of it cannot fit into the buffers between here and there
        connection.read_head()
        assert queue.length() == 0  # claimed: gone for everyone while it is being written
        assert queue.get(_length_=9) == []
        connection.reset()
    eventually(lambda: queue.length() == 4)
    assert [item.index for item in queue.get(_length_=9)] == [1, 2, 3, 4]


# -- attributes, search, count -----------------------------------------------------------------------------------------


def test_the_attributes_of_an_empty_queue(queue: Stream) -> None:
    """The answer has all keys, of both generations of EAS. Numbers are text."""
    answer = queue.ask("GET", _attrs_="true")
    assert answer.status == 200
    assert answer.header("Content-Type") == "application/json"
    assert answer.json == {
        "meta.name": "q",
        "meta.state": "Normal",
        "meta.durability": "memory",
        "meta.maxPayloadBytes": "8388608",
        "meta.header.user": "X-EAS-QueueService-Uid",
        "meta.header.group": "X-EAS-QueueService-Gid",
        "meta.header.priority": "X-EAS-QueueService-Priority",
        "meta.header.userIdentifyHeader": "X-EAS-QueueService-Uid",
        "meta.header.groupIdentifyHeader": "X-EAS-QueueService-Gid",
        "stream.maxPayloadBytes": "8388608",
        "stream.approxMaxLength": "1000000",
        "stream.maxBytes": "10737418240",
        "stream.bytes": "0",
        "stream.firstEntry": "0",
        "stream.lastEntry": "0",
        "stream.length": "0",
        "consumers.stats.total": "0",
        "consumers.status.total": "0",
    }


def test_attributes_are_protobuf_if_accept_names_it(queue: Stream) -> None:
    """The Go SDK decodes only protobuf."""
    answer = queue.ask("GET", [PROTOBUF], _attrs_="true")
    assert answer.header("Content-Type") == "application/vnd.google.protobuf"
    assert read_map(answer.body) == queue.ask("GET", _attrs_="true").json


def test_attributes_follow_every_change_at_once(queue: Stream) -> None:
    def seen() -> tuple[str, ...]:
        found = queue.attributes()
        return tuple(found[f"stream.{name}"] for name in ("length", "firstEntry", "lastEntry", "bytes"))

    for _ in range(4):
        queue.put(b"12")
    assert seen() == ("4", "1", "4", "8")
    queue.commit(1)
    assert seen() == ("3", "2", "4", "6")
    queue.delete(4)
    assert seen() == ("2", "2", "3", "4")
    queue.truncate(9)
    assert seen() == ("0", "0", "0", "0")


def test_search_tells_where_an_item_stands(queue: Stream) -> None:
    """The documented object has capitalised keys and JSON booleans. It is about the caller's group."""
    queue.put()
    queue.put()
    answer = queue.as_consumer("u", "eas").ask("GET", _search_="true", _index_=2)
    assert (answer.status, answer.body) == (200, b'{"ConsumerId":"eas.","IsPending":false,"WaitCount":1}')
    queue.put(b"urgent", _priority_=1)
    assert queue.ask("GET", _search_="true", _index_=2).json["WaitCount"] == 2


def test_search_for_what_is_gone_says_so_in_the_wires_words(queue: Stream) -> None:
    answer = queue.ask("GET", _search_="true", _index_=7)
    assert (answer.status, answer.body) == (404, b"no data in stream")
    assert answer.header("Content-Type") == "text/plain; charset=utf-8"


def test_count_counts_what_is_present(queue: Stream) -> None:
    queue.put(kind="a")
    queue.put(kind="b", _priority_=1)
    queue.put(kind="a", _priority_=1)
    assert queue.ask("GET", _count_="true").body == b"3"
    assert queue.ask("GET", _count_="true", kind="a").body == b"2"
    assert queue.ask("GET", _count_="true", _priority_=1).body == b"2"
    assert queue.ask("GET", _count_="true", _priority_=1, kind="a").body == b"1"
    assert queue.ask("GET", _count_="true", kind="c").body == b"0"


# -- commit, delete, truncate ------------------------------------------------------------------------------------------


def test_a_commit_is_200_for_any_index(queue: Stream) -> None:
    """Known, repeated, unknown and zero indexes get 200 `OK` and a header with the number of changes.

    SDKs retry every other status.
    """
    queue.put()
    queue.put()
    for indexes, counted in (((1,), "1"), ((1,), "0"), ((99,), "0"), ((0,), "0"), ((1, 2, 2, 99), "1")):
        answer = queue.commit(*indexes)
        assert (answer.status, answer.body, answer.header("X-Easq-Committed")) == (200, b"OK", counted)
    assert queue.length() == 0


def test_nothing_is_remembered_of_a_commit_ahead_of_its_item(queue: Stream) -> None:
    queue.commit(1)
    assert queue.put() == 1
    assert queue.length() == 1


@pytest.mark.parametrize("text", ["1,2", "1%2C2", "1, 2", "1%2C%202"])
def test_indexes_are_a_list_with_commas_plain_or_encoded(queue: Stream, text: str) -> None:
    queue.put()
    queue.put()
    text = text.replace(" ", "%20")
    with Connection(queue.port) as connection:
        assert (
            connection.ask("PUT", f"{queue.path}?_indexes_={text}", (), b"").header("X-Easq-Committed") == "2"
        )


def test_a_commit_without_body_and_content_length_is_accepted(queue: Stream) -> None:
    """Some proxies send such a `PUT`."""
    queue.put()
    assert queue.ask("PUT", _indexes_="1").header("X-Easq-Committed") == "1"


def test_deletes_are_for_everybody_and_idempotent(queue: Stream) -> None:
    for _ in range(4):
        queue.put()
    answers = [queue.delete(1, 3), queue.delete(1, 3, 99), queue.ask("DELETE", _index_=2)]
    assert [answer.body for answer in answers] == [b"OK"] * 3
    assert [answer.header("X-Easq-Deleted") for answer in answers] == ["2", "0", "1"]
    assert [item.index for item in queue.get(_length_=9)] == [4]


@pytest.mark.parametrize("below", [0, 1, 3, 2**63, 2**64 - 1])
def test_truncate_removes_the_items_strictly_below_its_index(queue: Stream, below: int) -> None:
    """Any unsigned 64-bit number is accepted. The numbering of new items continues."""
    for _ in range(3):
        queue.put()
    answer = queue.truncate(below)
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.header("X-Easq-Deleted") == str(max(min(below, 4) - 1, 0))
    assert [item.index for item in queue.get(_length_=9)] == [index for index in (1, 2, 3) if index >= below]
    assert queue.put() == 4


def test_truncating_an_empty_stream_is_fine(queue: Stream) -> None:
    assert queue.truncate(1).body == b"OK"


def test_an_index_is_never_used_again(start: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cases: after a delete, after a truncate of all items, after a restart."""
    storage = f"sqlite:{tmp_path_factory.mktemp('data') / 'easq.db'}"
    first = start(storage=storage)
    assert [first.queue.put(), first.queue.put()] == [1, 2]
    first.queue.delete(2)
    assert first.queue.put() == 3
    first.queue.truncate(2**64 - 1)
    first.stop()
    assert start(storage=storage).queue.put() == 4


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "query", "status", "text"),
    [
        ("GET", "_index_=x", 400, "parameter _index_ is not an unsigned 64-bit number: 'x'"),
        ("GET", "_index_=-2", 400, "parameter _index_ is not an unsigned 64-bit number: '-2'"),
        ("GET", "_index_=18446744073709551616", 400, None),
        ("GET", "_length_=0", 400, None),
        ("GET", "_timeout_=soon", 400, None),
        ("GET", "_timeout_=-1s", 400, None),
        ("GET", "_auto_delete_=maybe", 400, "parameter _auto_delete_ is not true or false: 'maybe'"),
        (
            "GET",
            "_index_=1&_index_=2",
            400,
            "parameter _index_ is given more than once, with different values",
        ),
        ("GET", "a=%ff", 400, "the query is not UTF-8 in percent encoding"),
        ("GET", "_search_=true", 400, "parameter _index_ is missing"),
        ("PUT", "", 400, "parameter _indexes_ is missing"),
        ("PUT", "_indexes_=", 400, None),
        ("PUT", "_indexes_=1,,2", 400, None),
        (
            "PUT",
            "_indexes_=" + ",".join(["1"] * 4001),
            400,
            "parameter _indexes_ holds more than 4000 indexes",
        ),
        ("DELETE", "", 400, "parameter _indexes_ is missing"),
        ("DELETE", "_trunc_=true", 400, "parameter _index_ is missing"),
        ("POST", "_priority_=high", 400, "parameter _priority_ is not a number: 'high'"),
        ("POST", "k=" + "v" * 16384, 400, "the tags are 16385 bytes together, above the limit of 16384"),
        ("POST", "k=a%0d%0ab", 400, None),
        ("PATCH", "", 405, None),
        ("OPTIONS", "", 405, None),
    ],
)
def test_an_invalid_parameter_is_named_and_changes_nothing(
    queue: Stream, method: str, query: str, status: int, text: str | None
) -> None:
    """The answer is one short sentence of plain text without reflected markup. The connection stays usable."""
    queue.put(b"still here")
    with Connection(queue.port) as connection:
        answer = connection.ask(
            method, f"{queue.path}?{query}", (), b"" if method in {"PUT", "POST"} else None
        )
        assert answer.status == status
        assert answer.header("Content-Type") == "text/plain; charset=utf-8"
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert 0 < len(answer.body) < 500
        assert b"\n" not in answer.body
        if text is not None:
            assert answer.text == text
        assert connection.ask("GET", queue.target(_auto_delete_="false")).body == b"still here"


def test_an_encoding_that_is_not_spoken_is_406(queue: Stream) -> None:
    queue.put()
    assert queue.ask("GET", [("Accept", "application/x-flatbuffers")]).status == 406
    assert queue.length() == 1


def test_a_refused_put_with_a_body_leaves_the_connection_usable(queue: Stream) -> None:
    with Connection(queue.port) as connection:
        assert connection.ask("POST", queue.target(_priority_="x"), (), b"some body").status == 400
        assert connection.ask("POST", queue.path, (), b"good").body == b"1"


def test_two_requests_at_once_on_one_connection_are_answered_in_order(queue: Stream) -> None:
    with Connection(queue.port) as connection:
        for _ in range(20):
            connection.send_request("POST", queue.path, (), b"x")
        assert [connection.read_answer().body for _ in range(20)] == [
            str(number).encode() for number in range(1, 21)
        ]


@pytest.mark.parametrize(
    "wire",
    [
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length : 3\r\n\r\nabc",
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\r\n b\r\n\r\n",
        b"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_malformed_http_is_400_and_closes_the_connection(
    queue: Stream, wire: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Two framings, two lengths, folded headers, a blank before the colon: a proxy could read them in another way.

    The input is neither repeated nor logged.
    """
    with Connection(queue.port) as connection:
        connection.send(wire.replace(b"{path}", queue.path.encode()))
        answer = connection.read_answer()
        assert answer.status == 400
        assert answer.text in {
            "this is no HTTP/1.1 request",
            "the header Content-Length is given more than once",
        }
        connection.socket.shutdown(socket.SHUT_WR)
        eventually(connection.is_over)
    assert queue.length() == 0
    assert [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"] == []


SINGLE = [
    *(
        "Host",
        "Content-Length",
        "Transfer-Encoding",
        "Content-Type",
        "User-Agent",
        "Authorization",
        "X-Auth-Token",
    ),
    *(
        "Origin",
        "Idempotency-Key",
        "X-Easq-Idempotency-Key",
        "X-EAS-QueueService-Uid",
        "X-EAS-QueueService-Redis-Gid",
    ),
    *("Sec-Fetch-Site", "Sec-WebSocket-Key"),
]


@pytest.mark.parametrize("name", SINGLE)
def test_a_single_valued_header_must_not_be_repeated(queue: Stream, name: str) -> None:
    """A proxy and a server may use different ones. The error names the header, not its value."""
    value = {"Host": "127.0.0.1", "Content-Length": "1", "Transfer-Encoding": "chunked"}.get(name, "canary")
    own = {"Host", "Content-Length"} - {name} - ({"Content-Length"} if name == "Transfer-Encoding" else set())
    lines = [f"{one}: {'127.0.0.1' if one == 'Host' else 1}" for one in sorted(own)]
    lines += [f"{name}: {value}", "X-Between: x", f"{name.lower()}: {value}"]
    with Connection(queue.port) as connection:
        connection.send(
            "".join(f"{line}\r\n" for line in [f"POST {queue.path} HTTP/1.1", *lines, ""]).encode()
        )
        connection.send(b"0\r\n\r\n" if name == "Transfer-Encoding" else b"x")
        answer = connection.read_answer()
    assert answer.status == 400
    assert answer.text.lower().startswith(f"the header {name.lower()} is ")
    assert "canary" not in answer.text
    assert queue.length() == 0


@pytest.mark.parametrize("name", ["Content-Type", "User-Agent"])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_some_headers_may_be_repeated_without_a_body(queue: Stream, name: str, method: str) -> None:
    """The first one is used. The Java SDK sends two."""
    queue.put()
    query = {"_attrs_": "true"} if method == "GET" else {"_indexes_": "1"}
    answer = queue.ask(method, [(name, "a/b"), ("X", "x"), (name.lower(), "c/d"), (name, "e")], **query)
    assert answer.status == 200


@pytest.mark.parametrize(
    "wire",
    [
        b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a\r\n|User-Agent: b\r\n\r\n",
        b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a\r\nUser-Agent: b\r\n\r\nGET",
        b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a\r\nUser-Agent: b\r\n"
        b"Content-Length: 1\r\n\r\n|x",
        b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a\r\n  folded\r\nUser-Agent: b\r\n\r\n",
        b"GET {path}?_attrs_=true HTTP/1.1\nHost: 127.0.0.1\nUser-Agent: a\r\nUser-Agent: b\r\n\r\n",
        b"GET {path}?_attrs_=true HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: a\r\nUser-Agent : b\r\n\r\n",
    ],
    ids=[
        "in two pieces",
        "more behind it",
        "with a body",
        "folded",
        "bare line feeds",
        "a blank before the colon",
    ],
)
def test_nothing_else_is_mended_before_the_parser(queue: Stream, wire: bytes) -> None:
    with Connection(queue.port) as connection:
        for piece in wire.replace(b"{path}", queue.path.encode()).split(b"|"):
            connection.send(piece)
            time.sleep(0.05)  # pieces that come one by one
        assert connection.read_answer().status == 400


def test_a_body_that_looks_like_a_head_is_left_alone(queue: Stream) -> None:
    """An unread body is not changed either: if a line were dropped from it, the next request would begin too late."""
    body = b"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: a\r\nUser-Agent: b\r\n\r\n"
    for target, method in ((queue.path, "POST"), ("/healthz", "GET")):
        with Connection(queue.port) as connection:
            head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.send(head.encode())
            time.sleep(0.05)
            connection.send(body)
            assert connection.read_answer().status == 200
            assert connection.ask("GET", "/healthz").text == "ok\n"
    assert queue.get()[0].data == body


@pytest.mark.parametrize(
    ("target", "headers"),
    [("", [("X-Long", "canary" * 6_000)]), ("?a=" + "canary" * 12_000, [])],
    ids=["header", "request line"],
)
def test_headers_above_the_limit_are_431(
    queue: Stream, target: str, headers: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    """They are not repeated, logged or stored."""
    answer = queue.ask("GET", headers, path=target)
    assert answer.status == 431
    assert answer.text == "the request line is above 65536 bytes, or a header above 32768"
    assert "canary" not in caplog.text
    assert queue.put() == 1


@pytest.mark.parametrize(
    ("count", "size", "status"),
    [(98, 1, 200), (99, 1, 431), (200, 1, 431), (3, 10_000, 200), (4, 10_000, 431)],
)
def test_headers_together_are_limited(queue: Stream, count: int, size: int, status: int) -> None:
    """At most 100 headers and 32 KiB are accepted, Host and Content-Length included.

    Above that the connection is closed.
    """
    with Connection(queue.port) as connection:
        headers = [(f"X-{number}", "v" * size) for number in range(count)]
        assert connection.ask("POST", queue.path, headers, b"").status == status
        if status == 431:
            eventually(connection.is_over)
    assert queue.length() == (status == 200)


def test_no_answer_is_guessed_into_another_type(queue: Stream) -> None:
    """Every answer with a body has the header nosniff."""
    targets = [
        "/healthz",
        "/api/v1/servicediscovery/upstreams/model",
        "/v1/p/services/model/predict/endpoints?type=host_endpoints",
        queue.target(_attrs_="true"),
        queue.target(_watch_="true"),
        queue.target(_index_="x"),
    ]
    for target in targets:
        with Connection(queue.port) as connection:
            connection.send_request("GET", target)
            _, headers = connection.read_head()
        assert ("X-Content-Type-Options", "nosniff") in headers, target


def test_health_needs_no_token_and_no_queue(start: Open) -> None:
    answer = start(token="t").stream("/healthz").ask("GET")
    assert (answer.status, answer.body) == (200, b"ok\n")
