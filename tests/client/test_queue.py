import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl

import pytest

import easq
from easq import errors
from easq.client.queue import QueueClient, sub_path
from easq.model import NEWEST, Ack, Consumer, Frame, SearchResult
from easq.net.http import Transport
from easq.net.retry import OVERTIME_S
from easq.net.settings import NetworkSettings
from easq.protocol.frames import encode_frames
from easq.protocol.operations import Caller, Codec, Request, parse
from tests.client.servers import Peer, Server, answering, broken, reply, silent
from tests.support.waiting import eventually

PROTOBUF = "application/vnd.google.protobuf"
BIG = 2**64 - 1
HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@contextmanager
def calling(server: Server, *, token: str = "", **settings: float) -> Iterator[QueueClient]:
    with server, Transport(NetworkSettings(environ={}, **settings)) as transport:
        yield QueueClient.over(transport, server.url, Caller(Consumer("g", "u"), token))


def frames(*found: Frame):
    return reply(200, encode_frames(found, Codec.PROTOBUF), Content_Type=PROTOBUF)


def asked(server: Server, at: int = 0) -> tuple[str, str]:
    """Method and target of a request."""
    method, target, _ = server.heads()[at].split("\r\n")[0].split(" ")
    return method, target.removeprefix("/api/predict/q")


def test_a_put_gives_index_and_request_id() -> None:
    server = answering(reply(200, str(BIG).encode(), X_Eas_Queueservice_Request_Id="r-1"))
    with calling(server) as queue:
        ack = queue.put(b"x", tags={"k": "v w"}, priority=1, path="/v1/a%20b", content_type="a/b", key="k1")
    assert ack == Ack(BIG, "r-1")
    assert asked(server) == ("POST", "/v1/a%20b?k=v+w&_priority_=1")
    lines = server.heads()[0].split("\r\n")
    assert "Content-Type: a/b" in lines
    assert "Idempotency-Key: k1" in lines


def test_a_put_whose_connection_broke_is_sent_again_only_with_a_key() -> None:
    with calling(answering(broken)) as queue, pytest.raises(errors.Unreachable):
        queue.put(b"x")
    server = answering(broken, reply(503), reply(200, b"5"))
    with calling(server) as queue:
        assert queue.put(b"x", key="k").index == 5
    assert len(server.requests) == 3


@pytest.mark.parametrize("body", [b"", HTML, b'{"index":', b"OK", b"1.5"])
def test_a_put_answered_by_something_else_is_told_apart(body: bytes) -> None:
    with calling(answering(reply(200, body))) as queue:
        with pytest.raises(errors.NotAQueueService):
            queue.put(b"x")


@pytest.mark.parametrize("tags", [{"_x": "1"}, {"": "1"}, {"a\n": "1"}, {"a": "b\0"}, {"a": "\udcff"}])
def test_tags_that_are_none_never_leave(tags: dict[str, str]) -> None:
    server = answering(reply(200, b"1"))
    with calling(server) as queue:
        for call in (
            lambda: queue.put(b"x", tags=tags),
            lambda: queue.get(tags=tags),
            lambda: queue.count(tags=tags),
        ):
            with pytest.raises(errors.UsageError, match="tag"):
                call()
    assert server.connections == 0


@pytest.mark.parametrize("bad", [{"key": "a b"}, {"key": "k" * 129}, {"priority": -1}, {"path": "/../other"}])
def test_other_nonsense_never_leaves(bad: dict[str, object]) -> None:
    server = answering(reply(200, b"1"))
    with calling(server) as queue, pytest.raises(errors.UsageError):
        queue.put(b"x", **bad)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("", ""),
        ("/", ""),
        ("v1/x", "/v1/x"),
        ("/v1/x/", "/v1/x/"),
        ("//x", "/x"),
        ("/a%20b/%C3%BC", "/a b/ü"),
    ],
)
def test_a_path_is_as_behind_a_url(path: str, found: str) -> None:
    assert sub_path(path) == found


@pytest.mark.parametrize(
    "path", ["/..", "/a/../b", "/%2e%2e/x", "/./a", "/sink", "sink/", "/a?b", "/a#b", "/a%0Ab", "/a%ff"]
)
def test_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(errors.UsageError, match="path"):
        sub_path(path)


def test_a_get_asks_for_protobuf_and_keeps_the_items() -> None:
    found = Frame(BIG, {"requestId": "r"}, b"\x00\xff")
    server = answering(frames(found))
    with calling(server) as queue:
        assert queue.get(5, tags={"a": "b"}) == [found]
    assert asked(server) == ("GET", "?_index_=5&_length_=1&_timeout_=0s&_auto_delete_=false&_raw_=false&a=b")
    assert f"Accept: {PROTOBUF}" in server.heads()[0].split("\r\n")


@pytest.mark.parametrize("answer", [reply(204), reply(200), frames()], ids=["204", "empty", "no frames"])
def test_nothing_is_an_empty_list(answer) -> None:
    with calling(answering(answer)) as queue:
        assert queue.get() == []


@pytest.mark.parametrize("body", [HTML, b'[{"index":1', b"\x0a\xff"])
def test_a_get_answered_by_something_else_is_told_apart(body: bytes) -> None:
    with calling(answering(reply(200, body))) as queue:
        with pytest.raises(errors.NotAQueueService):
            queue.get()


def test_more_items_than_asked_for_are_refused() -> None:
    server = answering(frames(Frame(1), Frame(2)))
    with calling(server) as queue:
        assert queue.get(length=2) == [Frame(1), Frame(2)]
        with pytest.raises(errors.NotAQueueService, match="more than 1 frames"):
            queue.get()
        with pytest.raises(errors.NotAQueueService, match="more than 1 frames"):
            queue.find("r")


def test_a_long_wait_is_cut_into_several() -> None:
    server = answering(reply(204), reply(204), frames(Frame(1)))
    with calling(server, request_timeout_s=1.0) as queue:
        assert queue.get(timeout_s=60) == [Frame(1)]
    waits = [target for _, target in (asked(server, at) for at in range(3))]
    assert all("_timeout_=500ms" in wait for wait in waits)


def test_a_wait_ends_when_its_time_is_up() -> None:
    with calling(answering(reply(204)), request_timeout_s=1.0) as queue:
        assert queue.get(timeout_s=0.5) == []


def test_a_wait_that_a_gateway_cuts_off_is_asked_in_shorter_parts() -> None:
    """nginx answers 504 if the service waits longer than nginx allows; this says nothing about the items."""
    server = answering(reply(504, b"<html>"), reply(504), reply(204), frames(Frame(1)), reply(204))
    with calling(server) as queue:
        assert queue.get(timeout_s=60) == [Frame(1)]
        assert queue.called_by(Consumer("h", "v")).find("r", timeout_s=60) is None
    waits = [asked(server, at)[1].partition("_timeout_=")[2].partition("&")[0] for at in range(5)]
    assert waits == ["20s", "1s", "1s", "1s", "1s"]


def test_a_gateway_that_cuts_off_every_wait_is_an_error_in_the_end() -> None:
    """As soon as it cuts off the shortest wait, not when all of the time is over."""
    server = answering(*[reply(504)] * 20, frames(Frame(1)))
    with calling(server, request_timeout_s=1.0) as queue, pytest.raises(errors.ServerError):
        queue.get(timeout_s=60)


@pytest.mark.parametrize(
    ("answers", "kind"), [([silent], errors.Unreachable), ([reply(500), silent], errors.ServerError)]
)
def test_with_a_bound_a_service_that_never_answers_is_given_up(
    answers: list[Callable[[Peer], None]], kind: type[errors.EasqError]
) -> None:
    """An earlier failure tells more than the timeout at the end."""
    with calling(answering(*answers), request_timeout_s=3600.0) as queue, pytest.raises(kind):
        queue.bounded(time.monotonic() + 0.3 + OVERTIME_S).get(timeout_s=0.3)


def test_with_a_bound_a_service_that_answered_and_falls_silent_has_no_more_items() -> None:
    with calling(answering(reply(204), silent), request_timeout_s=3600.0) as queue:
        assert queue.bounded(time.monotonic() + 0.5 + OVERTIME_S).get(timeout_s=0.5) == []


def test_waiting_for_several_gives_what_is_there_in_the_end() -> None:
    server = answering(frames(Frame(1)), frames(Frame(1), Frame(2)))
    with calling(server, request_timeout_s=1.0) as queue:
        assert queue.get(length=2, timeout_s=30) == [Frame(1), Frame(2)]


def test_waiting_for_several_collects_what_it_removed() -> None:
    server = answering(frames(Frame(1)), reply(204), frames(Frame(2)))
    with calling(server, request_timeout_s=1.0) as queue:
        assert queue.get(length=2, timeout_s=30, auto_delete=True) == [Frame(1), Frame(2)]
    assert "_length_=1" in asked(server, 2)[1]


def test_what_was_removed_is_given_even_when_a_later_part_fails() -> None:
    server = answering(frames(Frame(1)), reply(500))
    with calling(server, request_timeout_s=1.0) as queue:
        assert queue.get(length=2, timeout_s=30, auto_delete=True) == [Frame(1)]


def test_a_removing_get_is_not_sent_again_after_the_connection_broke() -> None:
    server = answering(broken, frames(Frame(2)))
    with calling(server) as queue, pytest.raises(errors.Unreachable):
        queue.get(auto_delete=True)
    assert len(server.requests) == 1


def test_a_long_wait_for_the_newest_misses_nothing_between_its_parts() -> None:
    server = answering(reply(200, b'{"stream.lastEntry":"41"}'), reply(204), frames(Frame(42)))
    with calling(server, request_timeout_s=1.0) as queue:
        assert queue.get(NEWEST, timeout_s=60) == [Frame(42)]
    assert "_index_=42" in asked(server, 1)[1]
    assert "_index_=42" in asked(server, 2)[1]


def test_commits_go_at_most_256_indexes_at_a_time() -> None:
    server = answering(reply(200, b"OK"))
    indexes = range(BIG - 600, BIG)
    with calling(server) as queue:
        queue.commit(indexes)
        queue.negative([1, 2], code="Engine.Error", reason="why & how\n" * 1000)
        queue.delete([3])
        queue.truncate(BIG)
        queue.commit([])
    seen = []
    for head, body in server.requests[:3]:
        method, target, _ = head.split("\r\n")[0].split(" ")
        query = tuple(parse_qsl(target.partition("?")[2], keep_blank_values=True))
        commit = parse(Request(method, query, {}, body))
        seen.append(commit.indexes)
    assert [len(chunk) for chunk in seen] == [256, 256, 88]
    assert [index for chunk in seen for index in chunk] == list(indexes)
    assert asked(server, 3) == ("PUT", "?_indexes_=1%2C2&_negative_=true")
    assert server.requests[3][1].startswith(b"_code_=Engine.Error&_reason_=why+%26+how")
    assert asked(server, 4) == ("DELETE", "?_indexes_=3")
    assert asked(server, 5) == ("DELETE", f"?_index_={BIG}&_trunc_=true")
    assert len(server.requests) == 6


def test_commits_are_sent_again_whatever_failed() -> None:
    server = answering(broken, reply(500), reply(200, b""))
    with calling(server) as queue:
        queue.commit([1])
    assert len(server.requests) == 3


def test_a_code_that_is_none_never_leaves() -> None:
    server = answering(reply())
    with calling(server) as queue, pytest.raises(errors.UsageError, match="'lower case'"):
        queue.negative([1], code="lower case")
    assert server.connections == 0


def test_search_count_end_and_attributes() -> None:
    server = answering(
        reply(200, b'{"ConsumerId":"g.u","IsPending":true,"WaitCount":0}'),
        reply(200, b"12\n"),
        reply(200, b"OK"),
        reply(200, b"OK"),
        reply(200, b'{"stream.length":"6944957106013339648"}'),
    )
    with calling(server) as queue:
        assert queue.search(BIG) == SearchResult("g.u", True, 0)
        assert queue.count(tags={"a": "b"}, priority=1) == 12
        queue.end(force=True)
        queue.end(undo=True)
        assert queue.attributes() == {"stream.length": "6944957106013339648"}
    assert [asked(server, at) for at in range(5)] == [
        ("GET", f"?_search_=true&_index_={BIG}"),
        ("GET", "?_count_=true&_priority_=1&a=b"),
        ("POST", "?_eos_=true&_force_=true"),
        ("POST", "?_eos_=false"),
        ("GET", "?_attrs_=true"),
    ]


def test_an_item_is_found_by_its_request_and_stays() -> None:
    server = answering(frames(Frame(BIG, {"requestId": "r"})), reply(204))
    with calling(server) as queue:
        found = queue.find("r")
        assert found is not None
        assert found.index == BIG
        assert queue.find("r", timeout_s=3600.0) is None
    query = "?_index_=0&_length_=1&_timeout_={}&_auto_delete_=false&_raw_=false&requestId=r"
    assert [asked(server, at) for at in (0, 1)] == [
        ("GET", query.format("0s")),
        ("GET", query.format("20s")),
    ]


def test_with_a_deadline_a_question_is_asked_once() -> None:
    server = answering(reply(503), reply(503))
    with calling(server) as queue:
        with pytest.raises(errors.Unavailable):
            queue.attributes(deadline_s=30.0)
        with pytest.raises(errors.Unavailable):
            queue.find("r", deadline_s=30.0)
    assert len(server.requests) == 2


def test_a_member_of_another_group_asks_under_its_name() -> None:
    server = answering(reply(200, b"1"))
    with calling(server, token="t") as queue:
        assert queue.in_group("other").count() == 1
    head = server.heads()[0]
    assert "X-EAS-QueueService-Gid: other" in head
    assert "X-EAS-QueueService-Uid: u" in head
    assert "Authorization: t" in head


def test_pages_begin_behind_the_last_item_and_follow_the_size_of_the_items() -> None:
    def some(first: int, count: int, size: int = 0):
        return frames(*(Frame(n, {}, bytes(size)) for n in range(first, first + count)))

    large = 60_000
    answers = (some(5, 100), some(105, 40, large), some(145, 200), some(345, 3))
    server = answering(*answers)
    with calling(server) as queue:
        pages = [[frame.index for frame in page] for page in queue.pages(2, length=20_000, tags={"k": "v"})]
    assert [index for page in pages for index in page] == list(range(5, 348))
    queries = [dict(parse_qsl(asked(server, at)[1].partition("?")[2])) for at in range(4)]
    starts = [(query["_index_"], query["_length_"], query["k"]) for query in queries]
    # the second is short, but ended by its size; the third asks for 16 MiB of items of that size
    assert starts == [("2", "100", "v"), ("105", "1000", "v"), ("145", "279", "v"), ("345", "2790", "v")]


def test_pages_of_a_service_that_takes_no_index_end() -> None:
    with calling(answering(frames(*map(Frame, range(1, 101))))) as queue:
        assert [len(page) for page in queue.pages(length=1000)] == [100]


def test_pages_ask_for_fewer_items_where_an_answer_is_too_large() -> None:
    large = reply(200, bytes(200_000), Content_Type=PROTOBUF)
    server = answering(large, frames(*map(Frame, range(1, 4))))
    with calling(server, max_answer_bytes=100_000) as queue:
        assert [len(page) for page in queue.pages(length=50)] == [3]
    assert ["_length_=50&" in asked(server)[1] + "&", "_length_=12&" in asked(server, 1)[1] + "&"] == [
        True,
        True,
    ]
    with calling(answering(large), max_answer_bytes=100_000) as queue:
        with pytest.raises(errors.AnswerTooLarge, match=r"is above the limit of 100000 bytes$"):
            list(queue.pages(length=50))


def test_pages_say_when_the_time_is_over_before_the_items() -> None:
    with calling(answering(frames(*map(Frame, range(1, 101))))) as queue:
        pages = queue.pages(length=1000, timeout_s=1e-6)
        assert len(next(pages)) == 100
        with pytest.raises(errors.DeadlineExceeded, match="there may be more items"):
            next(pages)


def test_an_item_that_is_gone_is_not_found() -> None:
    with calling(answering(reply(404, b"no data in stream"))) as queue:
        with pytest.raises(errors.NotFound, match=r"^no data in stream$"):
            queue.search(1)


@pytest.mark.parametrize("body", [HTML, b"", b'{"stream.length":', b"{}", b"[]", b'{"detail":"hello"}'])
def test_attributes_of_something_else_are_told_apart(body: bytes) -> None:
    with calling(answering(reply(200, body))) as queue:
        with pytest.raises(errors.NotAQueueService):
            queue.attributes()


def test_ten_megabytes_of_attributes_are_read_or_refused_by_the_bound() -> None:
    body = b'{"stream.length":"' + b"9" * 10_000_000 + b'"}'
    with calling(answering(reply(200, body))) as queue:
        assert len(queue.attributes()["stream.length"]) == 10_000_000
    with calling(answering(reply(200, body)), max_answer_bytes=1_000_000) as queue:
        with pytest.raises(errors.ServerError, match="above the limit"):
            queue.attributes()


def test_an_answer_that_echoes_the_token_does_not_show_it() -> None:
    with calling(
        answering(reply(200, b"you sent canary-token-canary")), token="canary-token-canary"
    ) as queue:
        with pytest.raises(errors.NotAQueueService) as caught:
            queue.count()
    assert "canary-token" not in str(caught.value)


def test_one_client_serves_several_threads() -> None:
    server = answering(reply(200, b"1"))
    with calling(server) as queue:
        threads = [threading.Thread(target=lambda: [queue.put(b"x") for _ in range(20)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.requests) == 160


# as a program uses it


def easq_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("easq")]


def sockets() -> list[str]:
    links = (os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd))
    return sorted(link for link in links if link.startswith("socket:"))


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.fixture(scope="module")
def service() -> Iterator[easq.Service]:
    with easq.serve(token="t", retry_delay_s=[0.0]) as running:
        yield running


def test_items_go_through_all_of_it(service: easq.Service) -> None:
    with easq.QueueClient(service.url, "t", group="g", user="u") as queue:
        acks = [queue.put(data, tags={"n": str(n)}) for n, data in enumerate((b"a", "é", b"c", b"d"))]
        assert queue.count() == 4
        assert [frame.data for frame in queue.get(length=4)] == [b"a", "é".encode(), b"c", b"d"]
        assert not queue.search(acks[0].index).is_pending
        seen = []
        for frame in queue.watch(window=4):
            seen.append(frame)
            if len(seen) == 4:
                assert queue.commit(seen[0]) == 1
                assert queue.commit(seen[1].index) == 1
                assert queue.commit([seen[2], seen[3].index]) == 2
                break
        assert queue.commit(seen) == 0
        assert queue.count() == 0
        assert queue.sink.put("result").index == 1
        assert queue.sink.delete(queue.sink.get()) == 1
        assert queue.attributes()["stream.length"] == "0"


def test_a_negative_item_comes_again(service: easq.Service) -> None:
    with easq.QueueClient(service.url, "t", group="g") as queue:
        queue.put(b"x")
        for frame in queue.watch():
            if "deliveryCount" not in frame.tags:
                assert queue.negative(frame, code="Engine.Error", reason="again") == 1
                continue
            queue.commit(frame)
            break
        assert queue.count() == 0


def test_a_watch_ends_with_its_stream_and_with_its_client() -> None:
    with easq.serve() as service, easq.QueueClient(service.url) as queue:
        queue.put(b"x")
        with queue.watch() as watch:
            ended = threading.Thread(target=lambda: list(watch))
            ended.start()
            queue.commit(queue.get())
            queue.end()
            ended.join(30)
            assert not ended.is_alive()
        with pytest.raises(easq.StreamEnded):
            queue.put(b"y")
        queue.end(undo=True)
        assert queue.truncate(queue.put(b"y").index + 1) == 1
        watch = queue.watch()
        open_one = threading.Thread(target=lambda: list(watch))
        open_one.start()
        eventually(lambda: watch.epoch == 1)
        queue.close()
        open_one.join(30)
        assert not open_one.is_alive()
        assert list(watch) == []


def test_a_closed_client_leaves_no_thread_and_no_socket(service: easq.Service) -> None:
    threads, before = easq_threads(), sockets()
    for upgrade in (True, False):
        with easq.QueueClient(service.url, "t") as queue:
            queue.put(b"x")
            for frame in queue.watch(upgrade=upgrade):
                queue.commit(frame)
                break
            unused = queue.watch()
            held = queue.watch()
            held.__enter__()
        assert list(unused) == []
        eventually(lambda: easq_threads() == threads)
    # the service closes its side of them a moment later
    eventually(lambda: len(sockets()) <= len(before))


def test_what_is_wrong_is_an_error_of_ours_without_the_token(service: easq.Service) -> None:
    with pytest.raises(easq.ConfigError):
        easq.QueueClient("ftp://host/q")
    with easq.QueueClient(service.url, "wrong-token") as queue, pytest.raises(easq.AuthFailed) as refused:
        for _ in queue.watch():
            pass
    assert "wrong-token" not in f"{refused.value} {refused.value.hint}"
    with easq.QueueClient(service.url, "t") as queue:
        with pytest.raises(easq.UsageError):
            queue.put("\ud800")
        with pytest.raises(easq.NotFound):
            queue.search(10_000)
    with (
        easq.QueueClient(service.queue_url("nothing"), "t") as queue,
        pytest.raises(easq.NotFound),
    ):
        queue.count()


@pytest.mark.parametrize("items", ["12", b"12", ["1", "2"], [1, "2"], 1.0, True, None, {"index": 1}])
def test_only_frames_and_whole_numbers_name_items(service: easq.Service, items: object) -> None:
    """Text is never taken apart into digits: `commit("12")` would end the items 1 and 2."""
    with easq.QueueClient(service.url, "t") as queue:
        queue.truncate(queue.put(b"x").index)
        before = queue.count()
        for operation in (queue.commit, queue.negative, queue.delete):
            with pytest.raises(easq.UsageError, match="a Frame or an index as int"):
                operation(items)
        assert queue.count() == before
        for operation in (queue.truncate, queue.search):
            with pytest.raises(easq.UsageError):
                operation("1")


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": 5},
        {"data": None},
        {"tags": {"a": 1}},
        {"tags": {1: "a"}},
        {"priority": "high"},
        {"priority": 0.5},
    ],
)
def test_a_put_of_a_wrong_type_is_an_error_of_ours(wrong: dict[str, object]) -> None:
    server = answering(reply(200, b"1"))
    with calling(server) as queue, pytest.raises(errors.UsageError):
        queue.put(**({"data": b"x"} | wrong))
    assert server.connections == 0


@pytest.mark.parametrize("data", [bytearray(b"ab"), memoryview(b"ab"), "ab", b"ab"])
def test_every_type_of_bytes_is_a_payload(service: easq.Service, data: bytes) -> None:
    with easq.QueueClient(service.url, "t") as queue:
        assert queue.get(queue.put(data).index)[0].data == b"ab"


def test_a_closed_client_is_used_no_more(service: easq.Service) -> None:
    with easq.QueueClient(service.url, "t") as queue:
        sink = queue.sink
    for call in (lambda: queue.put(b"x"), sink.count, queue.get, queue.watch, lambda: queue.commit(1)):
        with pytest.raises(easq.UsageError, match="is closed"):
            call()


def test_a_client_of_wrong_arguments_is_refused(service: easq.Service) -> None:
    for wrong in ((5,), (b"http://127.0.0.1/q",), (service.url, None)):
        with pytest.raises(easq.UsageError):
            easq.QueueClient(*wrong)
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(easq.UsageError):
            easq.QueueClient(service.url, connect_timeout_s=seconds)
    with easq.QueueClient(service.url, "t") as queue:
        for seconds in (-1.0, float("nan")):
            with pytest.raises(easq.UsageError, match="timeout_s"):
                queue.get(timeout_s=seconds)
        for options in ({"window": 0}, {"jobs": 0}, {"jobs": -1}):
            with pytest.raises(easq.UsageError, match="window and jobs"):
                easq.Worker(queue, "echo", **options)
        for model in (None, 5, [], [1]):
            with pytest.raises(easq.UsageError):
                easq.Worker(queue, model)


def test_a_service_of_wrong_arguments_is_refused() -> None:
    for wrong in ({"queues": "abc"}, {"retry_delay_s": ["x"]}, {"retry_delay_s": [-1.0]}):
        with pytest.raises(easq.UsageError):
            easq.serve(**wrong)
