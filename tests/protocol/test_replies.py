from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easq import errors
from easq.model import Ack, Frame, SearchResult
from easq.protocol.operations import Codec
from easq.protocol.replies import (
    FEATURES,
    Reply,
    attributes_reply,
    count_reply,
    error_reply,
    format_tags,
    frames_reply,
    ok_reply,
    put_reply,
    raw_reply,
    read_attributes,
    read_count,
    read_counted,
    read_error,
    read_features,
    read_frames,
    read_ok,
    read_put,
    read_search,
    search_reply,
)

HTML = Reply(200, {"content-type": "text/html"}, b"<html><body>Welcome to the cafe's wifi</body></html>")


def test_a_put_is_answered_with_bare_digits_and_the_request_id() -> None:
    reply = put_reply(Ack(6944957106013339648, "r-1"))
    assert (reply.status, reply.body) == (200, b"6944957106013339648")
    assert reply.header("x-eas-queueservice-request-id") == "r-1"
    assert reply.header("X-Easq-Duplicate") == ""
    assert read_put(reply) == Ack(6944957106013339648, "r-1")


def test_a_repeated_put_says_so() -> None:
    reply = put_reply(Ack(1, "r", duplicate=True))
    assert reply.header("X-Easq-Duplicate") == "1"
    assert read_put(reply) == Ack(1, "r", duplicate=True)


def test_a_put_answer_may_lack_the_request_id_and_end_in_a_newline() -> None:
    assert read_put(Reply(200, {}, b"18446744073709551615\n")) == Ack(2**64 - 1, "")


@pytest.mark.parametrize(
    "body",
    [b"", b"OK", b"-1", b"1.0", b"0x1", b"18446744073709551616", "１".encode(), b"1" * 5000, b'{"index":1}'],
)
def test_a_put_answer_that_is_no_index_is_not_a_queue_services(body: bytes) -> None:
    with pytest.raises(errors.NotAQueueService, match=r"^the answer to a put is not an index: ") as caught:
        read_put(Reply(200, {}, body))
    assert len(caught.value.message) < 200


def test_done_is_ok_in_plain_text() -> None:
    reply = ok_reply({"X-Easq-Committed": "2"})
    assert (reply.status, reply.body, reply.header("x-easq-committed")) == (200, b"OK", "2")
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    for done in (reply, Reply(200), Reply(204), Reply(202, {}, b"fine")):
        read_ok(done)


@pytest.mark.parametrize("header", ["X-Easq-Committed", "X-Easq-Deleted"])
def test_how_many_counted_is_known_where_the_service_says_so(header: str) -> None:
    assert read_counted(ok_reply({header: "2"})) == 2
    for unsaid in (
        Reply(200, {}, b"OK"),
        *(Reply(200, {header: text}) for text in ("", "x", "-1", "²", "9" * 30)),
    ):
        assert read_counted(unsaid) is None
    with pytest.raises(errors.NotFound):
        read_counted(Reply(404, {header: "2"}))


FRAMES = [Frame(1, {"requestId": "a"}, b"\x00\xff"), Frame(2**64 - 1, {}, b"")]


@pytest.mark.parametrize("codec", [Codec.JSON, Codec.PROTOBUF])
def test_a_get_is_answered_with_its_frames(codec: Codec) -> None:
    reply = frames_reply(FRAMES, codec)
    assert (reply.status, reply.header("Content-Type")) == (200, codec.value)
    assert read_frames(reply, codec) == FRAMES


def test_nothing_is_204_without_a_body() -> None:
    assert frames_reply([], Codec.JSON) == Reply(204)
    for empty in (Reply(204), Reply(200), Reply(200, {}, b"[]")):
        assert read_frames(empty, Codec.JSON) == []


def test_a_content_type_that_names_the_other_codec_is_believed() -> None:
    assert read_frames(frames_reply(FRAMES, Codec.JSON), Codec.PROTOBUF) == FRAMES
    assert read_frames(frames_reply(FRAMES, Codec.PROTOBUF), Codec.JSON) == FRAMES


def test_an_unnamed_list_is_read_as_what_was_asked_for() -> None:
    body = frames_reply(FRAMES, Codec.PROTOBUF).body
    assert (
        read_frames(Reply(200, {"Content-Type": "application/octet-stream"}, body), Codec.PROTOBUF) == FRAMES
    )


@pytest.mark.parametrize(
    ("stored", "data", "served"),
    [
        ("text/plain; charset=utf-8", b"[{}]", "text/plain; charset=utf-8"),
        ("application/json", b"<html>", "application/json"),
        ("application/x-www-form-urlencoded", b"[{}]", "text/plain; charset=utf-8"),
        ("Application/X-WWW-Form-URLEncoded; a=b", b"\x00", "application/octet-stream"),
        ("", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("", b"<script>x</script>", "application/octet-stream"),
        ("", b"<?xml?>", "application/octet-stream"),
        ("nonsense", b"x", "text/plain; charset=utf-8"),
        ("a/b\r\nSet-Cookie: x", b"x", "text/plain; charset=utf-8"),
        ("text/html", b"x", "application/octet-stream"),
        ("TEXT/HTML; charset=utf-8", b"x", "application/octet-stream"),
        ("application/xhtml+xml", b"x", "application/octet-stream"),
        ("image/svg+xml", b"x", "application/octet-stream"),
        ("text/xml", b"x", "application/octet-stream"),
        ("application/javascript", b"x", "application/octet-stream"),
        ("text/x-ecmascript", b"x", "application/octet-stream"),
        ("text/xsl", b"x", "application/octet-stream"),
        ("application/xslt+xml", b"x", "application/octet-stream"),
        ("application/pdf", b"x", "application/octet-stream"),
        ("Text/X-PDF", b"x", "application/octet-stream"),
        ("", b"%PDF-1.7", "application/octet-stream"),
        ("multipart/x-mixed-replace; boundary=b", b"x", "application/octet-stream"),
        ("multipart/mixed; boundary=b", b"x", "application/octet-stream"),
        ("multipart/byteranges; boundary=b", b"x", "application/octet-stream"),
        ("multipart/related; boundary=b", b"x", "application/octet-stream"),
        ("message/rfc822", b"x", "application/octet-stream"),
        ("application/x-mimearchive", b"x", "application/octet-stream"),
        ("application/x-shockwave-flash", b"x", "application/octet-stream"),
        ("application/java-archive", b"x", "application/octet-stream"),
        ("application/signed-exchange;v=b3", b"x", "application/octet-stream"),
        ("application/wasm", b"x", "application/octet-stream"),
        ("text/css", b"x", "application/octet-stream"),
        ("text/cache-manifest", b"x", "application/octet-stream"),
        ("text/x-component", b"x", "application/octet-stream"),
        ("application/hta", b"x", "application/octet-stream"),
        # types that no browser renders as a page are unchanged
        ("multipart/form-data; boundary=b", b"x", "multipart/form-data; boundary=b"),
        ("image/jpeg", b"x", "image/jpeg"),
        ("audio/wav", b"x", "audio/wav"),
        ("application/x-numpy", b"x", "application/x-numpy"),
        ("text/csv", b"x", "text/csv"),
        ("text/event-stream", b"x", "text/event-stream"),
        ("application/vnd.google.protobuf", b"x", "application/vnd.google.protobuf"),
    ],
)
def test_a_raw_get_serves_the_payload_under_a_harmless_type(stored: str, data: bytes, served: str) -> None:
    tags = {"requestId": "r-1"} | ({"Header:Content-Type": stored} if stored else {})
    reply = raw_reply(Frame(1, tags, data))
    assert (reply.status, reply.body) == (200, data)
    assert reply.headers == {
        "Content-Type": served,
        "X-Content-Type-Options": "nosniff",
        "X-Eas-Queueservice-Request-Id": "r-1",
    }


@pytest.mark.parametrize("codec", [Codec.JSON, Codec.PROTOBUF])
def test_attributes_come_back(codec: Codec) -> None:
    attributes = {"stream.length": "0", "meta.name": "q"}
    reply = attributes_reply(attributes, codec)
    assert read_attributes(reply, codec) == attributes
    assert read_features(reply) == FEATURES


def test_another_service_has_no_features_of_ours() -> None:
    assert read_features(Reply(200, {"Content-Type": "application/json"}, b"{}")) == frozenset()
    assert read_features(Reply(200, {"x-easq-features": " busy,, ttl"})) == {"busy", "ttl"}


@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        Reply(200),
        Reply(200, {}, b"{}"),
        Reply(200, {}, b'{"stream.length":"0"'),
        Reply(200, {}, b'{"detail":"ok"}'),
        Reply(200, {}, b"[1]"),
        Reply(200, {}, b"null"),
        Reply(200, {"Content-Type": "application/vnd.google.protobuf"}, b"\x0a\xff"),
        Reply(200, {"Content-Type": "application/vnd.google.protobuf"}, b""),
    ],
)
def test_attributes_that_are_no_queues_are_told_apart(reply: Reply) -> None:
    with pytest.raises(errors.NotAQueueService, match="attributes"):
        read_attributes(reply, Codec.JSON)


def test_a_search_is_answered_in_the_vendors_words() -> None:
    result = SearchResult("eas.u", False, 2)
    reply = search_reply(result)
    assert reply.body == b'{"ConsumerId":"eas.u","IsPending":false,"WaitCount":2}'
    assert read_search(reply) == result
    assert read_search(Reply(200, {}, b'{"IsPending":true,"WaitCount":0}')) == SearchResult("", True, 0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"IsPending":"yes","WaitCount":0}',
        b'{"IsPending":true,"WaitCount":true}',
        b'{"ConsumerId":1,"IsPending":true,"WaitCount":0}',
    ],
)
def test_a_search_answer_that_is_none_is_told_apart(body: bytes) -> None:
    with pytest.raises(errors.NotAQueueService, match="search"):
        read_search(Reply(200, {}, body))


def test_a_count_is_bare_digits() -> None:
    assert count_reply(12).body == b"12"
    assert read_count(Reply(200, {}, b" 12\n")) == 12
    with pytest.raises(errors.NotAQueueService, match=r"^the answer to a count is not a number: 'many'$"):
        read_count(Reply(200, {}, b"many"))


def test_a_page_is_no_answer_to_anything() -> None:
    bare = Reply(200, {}, b"\n <!DOCTYPE html><p>")
    for page in (HTML, bare):
        for read in (read_put, read_ok, read_counted, read_count, read_search):
            with pytest.raises(errors.NotAQueueService, match="is an HTML page"):
                read(page)
        with pytest.raises(errors.NotAQueueService, match="is an HTML page"):
            read_frames(page, Codec.PROTOBUF)


RAISED = [
    errors.BadRequest,
    errors.AuthFailed,
    errors.Forbidden,
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.NotAcceptable,
    errors.AnotherWatcher,
    errors.StreamEnded,
    errors.PayloadTooLarge,
    errors.KeyReused,
    errors.QueueFull,
    errors.Unavailable,
]


@pytest.mark.parametrize("kind", RAISED)
def test_an_error_comes_back_as_what_was_raised(kind: type[errors.EasqError]) -> None:
    reply = error_reply(kind("what was wrong: 'x'"))
    found = read_error(reply)
    assert type(found) is kind
    assert (found.message, found.status) == ("what was wrong: 'x'", kind.status)
    assert reply.header("X-Easq-Stored") == ("no" if kind is errors.Unavailable else "")
    for read in (read_put, read_ok, read_count, read_search):
        with pytest.raises(kind):
            read(reply)


def test_an_error_is_one_short_line_of_plain_text() -> None:
    reply = error_reply(errors.BadRequest("a\r\nb\x1b[31m\x00c\ud800" + "x" * 1000))
    assert reply.body.startswith(b"a b [31m c xxx")
    assert len(reply.body) == 500
    assert reply.header("Content-Type") == "text/plain; charset=utf-8"


def test_the_search_error_is_the_vendors_text() -> None:
    reply = error_reply(errors.NotFound("no data in stream"))
    assert reply.body == b"no data in stream"
    assert read_error(reply).hint == ""
    assert read_error(Reply(404)).hint == "check the url and the name of the queue or service"


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (Reply(418, {}, b"teapot"), errors.Refused, "the server answered 418: teapot"),
        (Reply(503, {}, b"busy\n"), errors.Unavailable, "the server answered 503: busy"),
        (Reply(421, {}, b"not here"), errors.Forbidden, "not here"),
        (Reply(450, {}, b"queue length exceeded"), errors.QueueFull, "queue length exceeded"),
        (Reply(500), errors.ServerError, "the server answered 500 without a reason"),
        (
            Reply(502, {"Content-Type": "text/html"}, b"<p>"),
            errors.ServerError,
            "the server answered 502 with an HTML page",
        ),
        (Reply(599, {}, b"a\x1b]52;c;x\x07b\r\nc\xff"), errors.ServerError, "a ]52;c;x b c\ufffd"),
    ],
)
def test_an_error_of_any_server_is_read(reply: Reply, kind: type, message: str) -> None:
    found = read_error(reply)
    assert (type(found), found.message, found.status) == (kind, message, reply.status)


def test_a_long_error_is_cut() -> None:
    assert len(read_error(Reply(400, {}, b"x" * 10**6)).message) == 500


def test_a_redirect_names_where_it_leads_without_secrets() -> None:
    reply = Reply(307, {"location": "https://user:secret@evil.test/path?token=secret#x"})
    found = read_error(reply)
    assert isinstance(found, errors.NotAQueueService)
    expected = "the server answered 307, a redirect to https://evil.test/path, which is not followed"
    assert (found.message, found.status) == (expected, 307)
    assert read_error(Reply(302)).message == "the server answered 302, a redirect, which is not followed"


def test_tags_are_shown_in_byte_order() -> None:
    tags = {
        "ts@source": "1",
        "requestId": "r",
        "Header:Content-Type": "a/b; c",
        "ts@sink": "2",
        "ü": "",
        "z": "3",
    }
    shown = "tags[Header:Content-Type=a/b; c requestId=r ts@sink=2 ts@source=1 z=3 ü=]"
    assert format_tags(tags) == shown
    assert format_tags({}) == "tags[]"


@given(
    st.binary(max_size=200), st.sampled_from([200, 204, 302, 404, 503]), st.sampled_from(["", "text/html"])
)
def test_whatever_a_server_sends_is_a_value_or_an_error_of_ours(
    body: bytes, status: int, media_type: str
) -> None:
    reply = Reply(status, {"Content-Type": media_type}, body)
    readers: list[Callable[[Reply], object]] = [
        read_put,
        read_ok,
        read_counted,
        read_count,
        read_search,
        lambda reply: read_frames(reply, Codec.PROTOBUF),
        lambda reply: read_frames(reply, Codec.JSON),
        lambda reply: read_attributes(reply, Codec.JSON),
        lambda reply: read_attributes(reply, Codec.PROTOBUF),
    ]
    for read in readers:
        message = ""
        try:
            read(reply)
        except errors.EasqError as error:
            message = error.message
        assert message.isprintable()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after": " 120 "}, 120.0),
        ({"Retry-After": "0"}, 0.0),
        (
            {
                "Date": "Wed, 21 Oct 2015 07:28:00 GMT",
                "Retry-After": "Wed, 21 Oct 2015 07:28:07 GMT",
            },
            7.0,
        ),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "\N{DEVANAGARI DIGIT THREE}"}, None),
        ({"Date": "never", "Retry-After": "Wed, 21 Oct 2015 07:28:07 GMT"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:07"}, None),
    ],
)
def test_when_to_try_again_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert read_error(Reply(429, headers, b"full")).retry_after_s == seconds


@pytest.mark.parametrize("asked", ["86401", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_retry_after_is_at_most_a_day(asked: str) -> None:
    """A longer sleep is an error on some systems."""
    assert read_error(Reply(503, {"Retry-After": asked}, b"")).retry_after_s == 86_400.0
