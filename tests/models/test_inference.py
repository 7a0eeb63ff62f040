"""An item as a call, an answer as a result: what goes in, what is inherited, what is said of a failure."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest

from easq.model import Frame
from easq.models.base import Answer, ModelFailed
from easq.models.inference import (
    answer_tags,
    answer_type,
    attempt_of,
    call_of,
    inherited,
    reason_of,
    result_key,
)

TAGS = {
    "requestId": "r-1",
    "ts@source": "1",
    "ts@sink": "2",
    "Header:Content-Type": "image/png",
    "Header:X-Trace": "t",
    "Header:content-encoding": "gzip",
    "Path": "/v1/ä b",
    "task": "7",
    "deliveryCount": "3",
    "lastCode": "500",
    "lastReason": "why",
}


def test_a_call_is_what_the_put_was() -> None:
    """Sub-path, query and headers as the client gave them; the queue's own tags are not the model's business."""
    call = call_of(Frame(5, TAGS, b"data"))
    assert (call.method, call.path, call.data) == ("POST", "/v1/%C3%A4%20b", b"data")
    assert list(call.query) == [("task", "7")]
    assert call.headers == {"Content-Type": "image/png", "X-Trace": "t", "content-encoding": "gzip"}
    assert json.loads(call.environ["EASQ_TAGS_JSON"]) == TAGS
    told = {name: value for name, value in call.environ.items() if name != "EASQ_TAGS_JSON"}
    assert told == {"EASQ_INDEX": "5", "EASQ_REQUEST_ID": "r-1", "EASQ_ATTEMPT": "3"}


@pytest.mark.parametrize(
    ("stored", "called"),
    [
        ("/a%20b", "/a%20b"),
        ("/a%2Fb%C3%A9", "/a%2Fb%C3%A9"),
        ("/a b/é", "/a%20b/%C3%A9"),
        ("/100%/%zz", "/100%25/%25zz"),
        ("", ""),
    ],
)
def test_a_path_is_encoded_once(stored: str, called: str) -> None:
    """Whether the service keeps it as it stood in the URL, or decoded."""
    assert call_of(Frame(1, {"Path": stored} if stored else {})).path == called


def test_a_result_inherits_what_is_not_of_the_delivery_or_the_data() -> None:
    assert inherited(TAGS) == {
        "requestId": "r-1",
        "ts@source": "1",
        "Header:X-Trace": "t",
        "Path": "/v1/ä b",
        "task": "7",
    }


def test_the_key_of_a_result_is_made_of_the_item_alone() -> None:
    """SHA-256 hex of queue, group, request id, index and number: a redelivery has the same."""
    frame = Frame(5, {"requestId": "r-1"}, b"data")
    key = result_key("q", "g", frame)
    assert key == sha256(b"q\ng\nr-1\n5\n0").hexdigest()
    assert key == result_key("q", "g", Frame(5, {"requestId": "r-1", "deliveryCount": "2"}, b""))
    others = [
        result_key("p", "g", frame),
        result_key("q", "h", frame),
        result_key("q", "g", frame, 1),
        result_key("q", "g", Frame(6, {"requestId": "r-1"})),
    ]
    assert len({key, *others}) == 5


def test_an_answer_says_what_it_is_itself() -> None:
    """Its type and encoding, where a put may carry them; else the sink looks at the data."""
    answer = Answer(b"x", headers=(("content-type", "text/x"), ("Content-Encoding", "br")))
    assert answer_type(answer) == "text/x"
    assert answer_tags(Frame(1, TAGS), answer)["Header:Content-Encoding"] == "br"
    for wrong in ("", "\u00e4", "a" * 257):
        assert answer_type(Answer(b"x", headers=(("Content-Type", wrong),))) == ""
    assert "Header:Content-Encoding" not in answer_tags(Frame(1, TAGS), Answer(b"x"))


@pytest.mark.parametrize(("tag", "attempt"), [(None, 1), ("", 1), ("3", 3), ("many", 1), ("-2", 1)])
def test_the_attempt_is_the_delivery_count(tag: str | None, attempt: int) -> None:
    assert attempt_of(Frame(1, {} if tag is None else {"deliveryCount": tag})) == attempt


@pytest.mark.parametrize(
    ("status", "data", "reason"),
    [
        (422, b"no such class", "no such class"),
        (500, b"", "the message"),
        (500, b"\xff\xfe", "the message"),
        (500, "\u00e4".encode() * 5000, "\u00e4" * 2048),
        (500, b"x" + "\u00e4".encode() * 5000, "x" + "\u00e4" * 2047),
        (200, b"half an answer of a command", "the message"),
    ],
)
def test_a_reason_is_what_the_model_said_when_it_refused(status: int, data: bytes, reason: str) -> None:
    """As much as a negative may carry, in whole characters; where it said nothing readable, our own words."""
    assert reason_of(ModelFailed("the message", status=500, answer=Answer(data, status))) == reason
