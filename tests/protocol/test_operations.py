import re
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easq.errors import BadRequest, MethodNotAllowed, NotAcceptable
from easq.model import NEWEST, Consumer
from easq.protocol.operations import (
    Caller,
    Codec,
    Commit,
    Count,
    Delete,
    Describe,
    End,
    Get,
    Negative,
    Operation,
    Put,
    Request,
    Search,
    Truncate,
    Watch,
    caller_headers,
    parse,
    parse_caller,
    to_request,
    valid_code,
    valid_key,
)

PROTOBUF = "application/vnd.google.protobuf"


def received(method: str, query: str, body: bytes = b"", **headers: str) -> Request:
    """Return a request as a server sees it: the query decoded, and `-` for `_` in the names of headers."""
    pairs = tuple(parse_qsl(query, keep_blank_values=True))
    return Request(method, pairs, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def over_the_wire(request: Request) -> Request:
    """Return `request` after encoding and decoding its query, with `+` for a blank."""
    text = urlencode(request.query)
    return Request(
        request.method,
        tuple(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))),
        {name.upper(): value for name, value in request.headers.items()},
        request.body,
        request.path,
    )


indexes = st.integers(0, 2**64 - 1)
reads = indexes | st.just(NEWEST)
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), max_size=20)
tags = st.dictionaries(
    words.filter(lambda key: not key.startswith("_") and key != "requestId"), words, max_size=4
)
lists = st.lists(indexes, min_size=1, max_size=8).map(tuple)
printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)
media_types = st.sampled_from(["", "text/plain; charset=utf-8", "application/json"])
priorities = st.integers(0, 2**31 - 1)
puts = st.builds(
    Put,
    st.binary(max_size=40),
    tags,
    priorities,
    st.sampled_from(["", "/v1/x", "/a b/ü"]),
    media_types,
    st.sampled_from(["", "gzip"]),
    printable | st.just(""),
)
timeouts = st.integers(0, 24 * 3600 * 1000).map(lambda ms: ms / 1000)
gets = st.builds(
    Get,
    reads,
    st.integers(1, 10_000),
    timeouts,
    st.booleans(),
    tags,
    st.sampled_from([Codec.JSON, Codec.PROTOBUF]),
) | st.builds(Get, reads, st.just(1), timeouts, st.booleans(), tags, st.just(Codec.RAW))
watches = st.builds(
    Watch,
    reads,
    indexes,
    st.booleans(),
    st.booleans(),
    tags,
    st.sampled_from([Codec.JSON, Codec.PROTOBUF]),
    st.booleans(),
)
codes = st.sampled_from(["", "Shutdown", "Engine.Error", "400"])
operations = st.one_of(
    puts,
    gets,
    watches,
    st.builds(Describe, st.sampled_from([Codec.JSON, Codec.PROTOBUF])),
    st.builds(Search, indexes),
    st.builds(Count, tags, priorities | st.none()),
    st.builds(Commit, lists),
    st.builds(Negative, lists, codes, words),
    st.builds(Delete, lists),
    st.builds(Truncate, indexes),
    st.builds(End, st.booleans(), st.booleans()),
)


@given(operations)
def test_every_operation_comes_back_from_its_request(operation: Operation) -> None:
    assert parse(over_the_wire(to_request(operation))) == operation


@pytest.mark.parametrize(
    ("operation", "method", "query"),
    [
        (Put(b"x", {"foo": "b ar/ü"}, 1), "POST", "foo=b+ar%2F%C3%BC&_priority_=1"),
        (Put(b"x"), "POST", ""),
        (
            Get(1, 2, 5.0, False, codec=Codec.PROTOBUF),
            "GET",
            "_index_=1&_length_=2&_timeout_=5s&_auto_delete_=false&_raw_=false",
        ),
        (Get(), "GET", "_index_=0&_length_=1&_timeout_=0s&_auto_delete_=true"),
        (Commit((2, 3)), "PUT", "_indexes_=2%2C3"),
        (Negative((3, 4), "Shutdown", "a b&c"), "PUT", "_indexes_=3%2C4&_negative_=true"),
        (Delete((1,)), "DELETE", "_indexes_=1"),
        (Truncate(9), "DELETE", "_index_=9&_trunc_=true"),
        (Search(5), "GET", "_search_=true&_index_=5"),
        (Count({"a": "b"}, 1), "GET", "_count_=true&_priority_=1&a=b"),
        (Describe(), "GET", "_attrs_=true"),
        (
            Watch(0, 5, tags={"a": "b"}),
            "GET",
            "_watch_=true&_index_=0&_window_=5&_index_only_=false&_auto_commit_=false&a=b",
        ),
        (End(force=True), "POST", "_eos_=true&_force_=true"),
        (End(), "POST", "_eos_=true"),
        (End(undo=True), "POST", "_eos_=false"),
    ],
)
def test_an_operation_has_this_query(operation: Operation, method: str, query: str) -> None:
    request = to_request(operation)
    assert (request.method, urlencode(request.query)) == (method, query)


def test_a_negative_has_its_code_and_reason_in_a_form() -> None:
    request = to_request(Negative((3, 4), "Shutdown", "a b&c"))
    assert request.body == b"_code_=Shutdown&_reason_=a+b%26c"
    assert request.headers == {"Content-Type": "application/x-www-form-urlencoded"}


def test_a_put_has_its_type_key_and_path_outside_the_query() -> None:
    request = to_request(Put(b"x", path="/v1/x", content_type="a/b", content_encoding="gzip", key="k1"))
    assert request == Request(
        "POST",
        (),
        {"Content-Type": "a/b", "Content-Encoding": "gzip", "Idempotency-Key": "k1"},
        b"x",
        "/v1/x",
    )


@pytest.mark.parametrize(
    ("request_", "operation"),
    [
        # the official Python SDK
        (
            received("POST", "foo=b+ar%2F%C3%BC&_priority_=1", b"xy"),
            Put(b"xy", {"foo": "b ar/ü"}, 1),
        ),
        (
            received(
                "GET", "_index_=1&_length_=2&_timeout_=5s&_raw_=false&_auto_delete_=false", Accept=PROTOBUF
            ),
            Get(1, 2, 5.0, False, {}, Codec.PROTOBUF),
        ),
        (received("PUT", "_indexes_=2%2C3", Content_Length="0"), Commit((2, 3))),
        (received("DELETE", "_indexes_=1"), Delete((1,))),
        (received("DELETE", "_index_=9&_trunc_=true"), Truncate(9)),
        (received("GET", "_search_=true&_index_=5"), Search(5)),
        (
            received(
                "GET",
                "_watch_=true&_index_=0&_window_=5&_index_only_=false&_auto_commit_=false&a=b",
                Upgrade="websocket",
                Accept=PROTOBUF,
            ),
            Watch(0, 5, False, False, {"a": "b"}),
        ),
        # the official Go SDK
        (received("GET", "_attrs_=true", Accept=PROTOBUF), Describe(Codec.PROTOBUF)),
        (
            received("POST", "a=b+c", b"x", X_Eas_Queueservice_Priority="1"),
            Put(b"x", {"a": "b c"}, 1),
        ),
        (
            received("GET", "_auto_delete_=false&_index_=0&_length_=10&_raw_=false&_timeout_=1m30s"),
            Get(0, 10, 90.0, False, {}, Codec.JSON),
        ),
        (
            received(
                "PUT",
                "_indexes_=3%2C4&_negative_=true",
                b"_code_=Shutdown&_reason_=a+b%26c",
                Content_Type="application/x-www-form-urlencoded",
            ),
            Negative((3, 4), "Shutdown", "a b&c"),
        ),
        (received("POST", "_eos_=true&_force_=true"), End(force=True)),
        (
            received("GET", "_auto_commit_=false&_index_=0&_index_only_=false&_watch_=true&_window_=3&k=v"),
            Watch(0, 3, tags={"k": "v"}, upgrade=False),
        ),
        # the official Java SDK, and curl
        (received("GET", "_attrs_=true"), Describe()),
        (received("GET", "_count_=true&_priority_=1"), Count({}, 1)),
        (received("GET", "", Accept="*/*"), Get()),
        (received("DELETE", "_index_=3"), Delete((3,))),
        (received("DELETE", "_index_=3&_trunc_=false"), Delete((3,))),
        (received("PUT", "_indexes_=1&_negative_=true"), Negative((1,))),
        # easq itself
        (
            received("PUT", "_indexes_=3&_negative_=true", b"_code_=Busy&_reason_=&_delay_=1.5s"),
            Negative((3,), "Busy", "", 1.5),
        ),
        (
            received("GET", "_index_=0&_watch_=true", X_Easq_Session="a.b-1"),
            Watch(upgrade=False, process="a.b-1"),
        ),
    ],
)
def test_what_the_sdks_send_is_understood(request_: Request, operation: Operation) -> None:
    assert parse(request_) == operation


@pytest.mark.parametrize(
    ("query", "accept", "codec"),
    [
        ("", "", Codec.RAW),
        ("_raw_=true", "*/*", Codec.RAW),
        ("_raw_=false", PROTOBUF, Codec.PROTOBUF),
        ("", PROTOBUF, Codec.PROTOBUF),
        ("_length_=3", PROTOBUF, Codec.PROTOBUF),
        ("_raw_=false", "*/*", Codec.JSON),
        ("_raw_=false", "application/json", Codec.JSON),
        ("", "application/json", Codec.JSON),
        ("", "Application/JSON", Codec.JSON),
        ("", "application/json, */*", Codec.RAW),
        ("_raw_=true", "application/json", Codec.RAW),
        ("_length_=2", "", Codec.JSON),
        ("_length_=2&_raw_=true", "", Codec.JSON),
        ("_raw_=false", "application/x-flatbuffers, */*", Codec.JSON),
    ],
)
def test_the_codec_of_a_get_follows_accept_and_raw(query: str, accept: str, codec: Codec) -> None:
    operation = parse(received("GET", query, Accept=accept))
    assert isinstance(operation, Get)
    assert operation.codec is codec


@pytest.mark.parametrize("query", ["", "_attrs_=true", "_watch_=true"])
def test_flatbuffers_alone_are_not_acceptable(query: str) -> None:
    with pytest.raises(NotAcceptable):
        parse(received("GET", query, Accept="application/x-flatbuffers"))


@pytest.mark.parametrize(
    ("accept", "codec"),
    [
        ("", Codec.PROTOBUF),
        ("*/*", Codec.PROTOBUF),
        ("application/json", Codec.JSON),
        (PROTOBUF, Codec.PROTOBUF),
    ],
)
def test_a_watch_is_protobuf_unless_json_is_asked_for(accept: str, codec: Codec) -> None:
    assert parse(received("GET", "_watch_=true", Accept=accept)) == Watch(codec=codec, upgrade=False)


def test_a_watch_that_is_switched_off_is_a_get() -> None:
    assert parse(received("GET", "_watch_=false&_attrs_=0&_index_=3")) == Get(3)


BAD_NUMBERS = [
    *("", " ", " 1", "1 ", "+1", "1.0", "1e3", "0x10", "１", "-2", "--1", "1_0"),
    *("18446744073709551616", "1" * 400, "a"),
]


@pytest.mark.parametrize("text", [*BAD_NUMBERS, "-1"])
@pytest.mark.parametrize(
    ("method", "name", "rest"),
    [
        ("GET", "_index_", "_search_=true"),
        ("GET", "_length_", ""),
        ("GET", "_window_", "_watch_=true"),
        ("DELETE", "_index_", ""),
        ("DELETE", "_index_", "_trunc_=true"),
    ],
)
def test_a_number_is_plain_digits(method: str, name: str, rest: str, text: str) -> None:
    query = (*parse_qsl(rest), (name, text))
    with pytest.raises(BadRequest) as caught:
        parse(Request(method, query))
    shown = ascii(text[:80])
    assert caught.value.message == f"parameter {name} is not an unsigned 64-bit number: {shown}"


@pytest.mark.parametrize("text", BAD_NUMBERS)
@pytest.mark.parametrize("rest", ["", "_watch_=true"])
def test_a_read_takes_minus_one_and_no_other_sign(rest: str, text: str) -> None:
    with pytest.raises(BadRequest, match=r"^parameter _index_ is not an unsigned 64-bit number: "):
        parse(Request("GET", (*parse_qsl(rest), ("_index_", text))))
    newest = parse(Request("GET", (*parse_qsl(rest), ("_index_", "-1"))))
    assert isinstance(newest, Get | Watch)
    assert newest.index == NEWEST


@pytest.mark.parametrize("text", ["1", "18446744073709551615", "6944957106013339648", "007"])
def test_the_whole_range_of_an_index_is_exact(text: str) -> None:
    assert parse(received("DELETE", f"_index_={text}&_trunc_=true")) == Truncate(int(text))


@pytest.mark.parametrize("text", ["", ",", "1,", ",1", "1,,2", "1;2", "1 2", "-1", "1,-1", "1,0x2", "１"])
@pytest.mark.parametrize(("method", "rest"), [("PUT", ""), ("PUT", "_negative_=true"), ("DELETE", "")])
def test_a_list_of_indexes_has_no_empty_or_odd_item(method: str, rest: str, text: str) -> None:
    with pytest.raises(BadRequest, match=r"^parameter _indexes_ is not an unsigned 64-bit number: "):
        parse(Request(method, (*parse_qsl(rest), ("_indexes_", text))))


def test_blanks_around_indexes_and_index_zero_are_taken() -> None:
    assert parse(received("PUT", "_indexes_=1,+2+,+0")) == Commit((1, 2, 0))


def test_a_list_holds_at_most_four_thousand_indexes() -> None:
    most = ",".join(["18446744073709551615"] * 4000)
    commit = parse(Request("PUT", (("_indexes_", most),)))
    assert isinstance(commit, Commit)
    assert len(commit.indexes) == 4000
    for text in (most + ",1", "1" * 10**6):
        with pytest.raises(BadRequest, match=r"^parameter _indexes_ holds more than 4000 indexes$"):
            parse(Request("PUT", (("_indexes_", text),)))


@pytest.mark.parametrize(
    ("method", "query", "missing"),
    [
        ("PUT", "", "_indexes_"),
        ("DELETE", "", "_indexes_"),
        ("DELETE", "_trunc_=true", "_index_"),
        ("DELETE", "_trunc_=true&_indexes_=1", "_index_"),
        ("GET", "_search_=true", "_index_"),
    ],
)
def test_a_missing_parameter_is_named(method: str, query: str, missing: str) -> None:
    with pytest.raises(BadRequest, match=f"^parameter {missing} is missing$"):
        parse(received(method, query))


@pytest.mark.parametrize("text", ["true", "TRUE", "True", "1"])
def test_booleans_are_words_in_any_case_or_digits(text: str) -> None:
    assert parse(received("GET", f"_attrs_={text}")) == Describe()
    assert parse(received("GET", f"_auto_delete_={text}")) == Get(auto_delete=True)
    assert parse(received("GET", "_auto_delete_=False")) == Get(auto_delete=False)


@pytest.mark.parametrize("text", ["", "yes", "t", "junk", " true", "2", "true" * 10**5])
def test_other_booleans_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^parameter _auto_delete_ is not true or false: ") as caught:
        parse(Request("GET", (("_auto_delete_", text),)))
    assert len(caught.value.message) < 200


def test_a_timeout_is_go_or_seconds_and_at_most_a_day() -> None:
    assert parse(received("GET", "_timeout_=5")) == Get(timeout_s=5.0)
    assert parse(received("GET", "_timeout_=1m30s")) == Get(timeout_s=90.0)
    assert parse(received("GET", "_timeout_=99999h")) == Get(timeout_s=86400.0)


@pytest.mark.parametrize("text", ["-1s", "-5", "soon", "9e99h", "", "9" * 400])
def test_other_timeouts_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^parameter _timeout_: "):
        parse(Request("GET", (("_timeout_", text),)))


@pytest.mark.parametrize(
    ("query", "header", "priority"),
    [
        ("", "", 0),
        ("", "3", 3),
        ("_priority_=2", "3", 2),
        ("_priority_=0", "3", 0),
        ("_priority_=-7", "", 0),
        ("_priority_=9223372036854775807", "", 2**31 - 1),
    ],
)
def test_the_query_wins_over_the_priority_header(query: str, header: str, priority: int) -> None:
    put = parse(received("POST", query, X_EAS_QueueService_Priority=header))
    assert isinstance(put, Put)
    assert put.priority == priority


@pytest.mark.parametrize("text", ["", "high", "1.5", "+1", "9" * 50])
def test_other_priorities_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^parameter _priority_ is not a number: "):
        parse(Request("POST", (("_priority_", text),)))


def test_unknown_underscore_parameters_are_no_tags() -> None:
    assert parse(received("POST", "_x_=1&_y_=true&a=b", b"d")) == Put(b"d", {"a": "b"})


GET_WORDS = ("_attrs_", "_count_", "_search_", "_watch_", "_auto_delete_", "_length_", "_raw_", "_timeout_")
WATCH_WORDS = ("_auto_commit_", "_index_only_", "_window_")
#: each reserved parameter, and the methods that it is valid with
RESERVED = {
    **dict.fromkeys((*GET_WORDS, *WATCH_WORDS), ("GET",)),
    **dict.fromkeys(("_code_", "_delay_", "_negative_", "_reason_"), ("PUT",)),
    **dict.fromkeys(("_eos_", "_force_"), ("POST",)),
    "_trunc_": ("DELETE",),
    "_delete_": ("DELETE", "PUT"),
    "_indexes_": ("PUT", "DELETE"),
    "_index_": ("GET", "DELETE"),
    "_priority_": ("POST", "GET"),
}
#: a request of each method that is complete without the parameter
COMPLETE = {"POST": "a=b", "GET": "a=b", "PUT": "_indexes_=1", "DELETE": "_indexes_=1"}
#: parameters that other parameters require
BESIDE = {**dict.fromkeys(WATCH_WORDS, "_watch_=true"), "_force_": "_eos_=true", "_search_": "_index_=1"}


@pytest.mark.parametrize("method", COMPLETE)
@pytest.mark.parametrize("word", RESERVED)
def test_a_reserved_parameter_is_accepted_only_with_its_methods(word: str, method: str) -> None:
    """Otherwise the method's default operation would run: a get deletes the head, a commit commits."""
    value = {"_timeout_": "0s", "_delay_": "0s"}.get(word, "1")
    if method in RESERVED[word]:
        rest = "a=b" if word in {"_index_", "_indexes_"} else BESIDE.get(word, COMPLETE[method])
        if word == "_trunc_":
            rest = "_index_=1"
        parse(received(method, f"{rest}&{word}={value}"))
        return
    for query in (f"{word}={value}", f"{COMPLETE[method]}&{word}={value}", f"{word}=false"):
        with pytest.raises(BadRequest, match=f"^parameter {word} needs .*, this is a {method}$") as caught:
            parse(received(method, query))
        assert set(re.findall("[A-Z]{3,}", caught.value.message)) == {*RESERVED[word], method}


@pytest.mark.parametrize(
    ("method", "word", "needed"),
    [("POST", "_force_", "_eos_"), *(("GET", word, "_watch_") for word in WATCH_WORDS)],
)
def test_a_parameter_that_needs_another_one_is_refused_alone(method: str, word: str, needed: str) -> None:
    """An earlier version stored an empty item, or deleted the head."""
    with pytest.raises(BadRequest, match=f"^parameter {word} needs {needed}=true$"):
        parse(received(method, f"{word}=1"))


@pytest.mark.parametrize("rest", ["", "&_trunc_=true"])
def test_a_delete_names_items_in_one_way(rest: str) -> None:
    with pytest.raises(BadRequest, match=r"^_index_ and _indexes_ exclude each other$"):
        parse(received("DELETE", f"_index_=1&_indexes_=2{rest}"))


def test_of_duplicate_tags_the_last_is_kept() -> None:
    assert parse(received("POST", "a=1&a=2&b=")) == Put(b"", {"a": "2", "b": ""})


def test_a_wire_parameter_given_twice_must_agree() -> None:
    assert parse(received("DELETE", "_index_=3&_index_=3")) == Delete((3,))
    with pytest.raises(
        BadRequest, match=r"^parameter _index_ is given more than once, with different values$"
    ):
        parse(received("DELETE", "_index_=3&_index_=4"))


@pytest.mark.parametrize("letter", ["\0", "\r", "\n", "\ud800"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_tags_hold_no_line_break_and_no_broken_unicode(method: str, letter: str) -> None:
    for query in (((f"a{letter}", "b"),), (("a", f"b{letter}c"),)):
        with pytest.raises(BadRequest, match=r"^a tag or path "):
            parse(Request(method, query))


def test_tags_are_at_most_sixteen_kib_together() -> None:
    value = "ü" * 8191
    assert parse(Request("POST", (("ab", value),))) == Put(b"", {"ab": value})
    with pytest.raises(BadRequest, match=r"^the tags are 16385 bytes together, above the limit of 16384$"):
        parse(Request("POST", (("abc", value),)))


@pytest.mark.parametrize("request_id", ["a\x01", "a\x7f", " a", "a\u2028", "x" * 513])
def test_a_request_id_can_stand_in_a_header(request_id: str) -> None:
    with pytest.raises(BadRequest, match=r"^tag requestId cannot stand in a header: "):
        parse(Request("POST", (("requestId", request_id),)))


def test_an_idempotency_key_is_read_from_either_header() -> None:
    for name in ("Idempotency-Key", "x-easq-idempotency-key"):
        assert parse(Request("POST", (), {name: "run-1/5"})) == Put(b"", key="run-1/5")


@pytest.mark.parametrize("key", ["", "a b", "k" * 129, "ü", "\x7f"])
def test_other_idempotency_keys_are_refused(key: str) -> None:
    assert not valid_key(key)
    with pytest.raises(BadRequest, match=r"^an idempotency key is 1 to 128 visible ASCII characters"):
        parse(Request("POST", (), {"Idempotency-Key": key}))


@pytest.mark.parametrize("value", ["a/b\x00", "a/b\x01", "ü/b", "a" * 1025])
def test_a_stored_media_type_is_printable(value: str) -> None:
    with pytest.raises(BadRequest, match=r"^header Content-Type "):
        parse(Request("POST", (), {"Content-Type": value}))


@pytest.mark.parametrize("path", ["/a\n", "/a\0", "/" + "x" * 5000])
def test_a_path_behind_the_queue_is_checked(path: str) -> None:
    with pytest.raises(BadRequest, match="path"):
        parse(Request("POST", path=path))


@pytest.mark.parametrize("code", ["Shutdown", "EngineError", "Engine.Error", "ABC", "400", "A", "A.B.C"])
def test_a_code_is_words_or_a_number(code: str) -> None:
    assert valid_code(code)
    assert parse(received("PUT", "_indexes_=1&_negative_=true", f"_code_={code}".encode())) == Negative(
        (1,), code
    )


@pytest.mark.parametrize(
    "code", ["shutdown", "4xx", "Err500", "Abc-Def", "A..B", "A.", "A" * 21, "A" * 10**6, "１"]
)
def test_other_codes_are_refused(code: str) -> None:
    assert not valid_code(code)
    form = urlencode({"_code_": code}).encode()
    with pytest.raises(BadRequest):
        parse(received("PUT", "_indexes_=1&_negative_=true", form))


def test_a_delay_and_a_session_are_sent_and_read_back() -> None:
    negative = Negative((3,), "Busy", "loading", 1.5)
    assert b"_delay_=1.5s" in to_request(negative).body
    watch = Watch(process="abc")
    assert to_request(watch).headers["X-Easq-Session"] == "abc"
    for operation in (negative, watch):
        assert parse(to_request(operation)) == operation


@pytest.mark.parametrize("delay", ["-1s", "soon", "1" * 100])
def test_another_delay_is_refused(delay: str) -> None:
    form = urlencode({"_code_": "Busy", "_delay_": delay}).encode()
    with pytest.raises(BadRequest, match=r"^parameter _delay_: "):
        parse(received("PUT", "_indexes_=1&_negative_=true", form))


def test_a_session_is_a_name() -> None:
    with pytest.raises(BadRequest, match="session"):
        parse(received("GET", "_watch_=true", X_Easq_Session="a b"))


def test_a_reason_is_at_most_4096_characters_on_one_line() -> None:
    query = "_indexes_=1&_negative_=true"
    assert parse(received("PUT", query, b"_reason_=a%0D%0Ab%00")) == Negative((1,), "", "a  b ")
    full = urlencode({"_reason_": "😀" * 4096}).encode()
    assert parse(received("PUT", query, full)) == Negative((1,), "", "😀" * 4096)
    with pytest.raises(BadRequest, match=r"^_reason_ is longer than 4096 characters$"):
        parse(received("PUT", query, b"_reason_=" + b"x" * 4097))
    for body in (b"x" * 10**6, b"\xff", b"_reason_=%ff"):
        with pytest.raises(BadRequest, match=r"^the form of a negative is "):
            parse(received("PUT", query, body))


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PATCH", "get", "X" * 10**5])
def test_other_methods_are_not_allowed(method: str) -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        parse(Request(method))
    assert len(caught.value.message) < 200


def test_identity_goes_out_in_both_spellings() -> None:
    assert caller_headers(Caller(Consumer("g", "u"), "TOK==", rear=True)) == {
        "Authorization": "TOK==",
        "X-EAS-QueueService-Uid": "u",
        "X-EAS-QueueService-Redis-Uid": "u",
        "X-EAS-QueueService-Gid": "g",
        "X-EAS-QueueService-Redis-Gid": "g",
        "X-EAS-QueueService-Access-Rear": "true",
    }
    assert "Authorization" not in caller_headers(Caller())


@pytest.mark.parametrize(
    "caller", [Caller(), Caller(Consumer("g", "u"), "TOK=="), Caller(Consumer("a.b", "c_d-1"), rear=True)]
)
def test_a_caller_comes_back_from_the_headers(caller: Caller) -> None:
    headers = caller_headers(caller)
    assert parse_caller({name.swapcase(): value for name, value in headers.items()}) == caller


def test_either_spelling_and_none_at_all_are_understood() -> None:
    assert parse_caller({}) == Caller(Consumer("default_group", "default_user"))
    assert parse_caller({"Authorization": ""}) == Caller()
    old = {"x-eas-queueservice-redis-uid": "u1", "x-eas-queueservice-redis-gid": "eas"}
    assert parse_caller(old) == Caller(Consumer("eas", "u1"))
    canonical = {"X-Eas-Queueservice-Uid": "u9", "X-Eas-Queueservice-Gid": ""}
    assert parse_caller(canonical) == Caller(Consumer("default_group", "u9"))


@pytest.mark.parametrize("text", ["TOK==", "Bearer TOK==", "bearer  TOK==", " TOK== "])
def test_a_token_comes_raw_or_as_bearer(text: str) -> None:
    assert parse_caller({"authorization": text}).token == "TOK=="


@pytest.mark.parametrize("name", ["a b", "ü", "a/b", "x" * 129, "a\r\nb", "x" * 10**6])
def test_other_names_are_refused(name: str) -> None:
    for header, what in (("X-EAS-QueueService-Uid", "user"), ("X-EAS-QueueService-Redis-Gid", "group")):
        with pytest.raises(BadRequest, match=f"^a {what} is 1 to 128 of letters"):
            parse_caller({header: name})
