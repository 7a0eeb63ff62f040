"""Dead letters as frames: the copy in the rear store, and the answer in the sink."""

from __future__ import annotations

from easq.model import NO_INDEX, Frame
from easq.server.dead_letters import answer, rear_copy
from easq.storage.base import Failure

ITEM = Frame(7, {"requestId": "r", "a": "b", "ts@source": "1", "deliveryCount": "3"}, b"payload")


def failed(code: str, reason: str) -> Failure:
    return Failure(group="g", deliveries=5, failures=3, code=code, reason=reason)


def test_the_copy_has_the_item_and_why_it_failed() -> None:
    copy = rear_copy(ITEM, failed("422", "x" * 300))
    assert (copy.index, copy.data) == (NO_INDEX, b"payload")
    assert copy.tags == {
        **ITEM.tags,
        "rear@index": "7",
        "rear@group": "g",
        "rear@deliveries": "5",
        "rear@failures": "3",
        "lastCode": "422",
        "lastReason": "x" * 200,
    }
    assert rear_copy(ITEM, failed("", "")).tags.keys() & {"lastCode", "lastReason"} == set()


def test_the_answer_has_a_numeric_code_and_the_whole_reason() -> None:
    """A code that is not a number becomes the reason in the tag, and the code is then 500."""
    given = answer(ITEM, failed("422", "x" * 300), 99)
    assert given.data == b"x" * 300
    assert given.tags == {
        "requestId": "r",
        "a": "b",
        "ts@source": "1",
        "ts@sink": "99",
        "lastCode": "422",
        "lastReason": "x" * 200,
        "Header:Content-Type": "text/plain; charset=utf-8",
    }
    named = answer(ITEM, failed("Engine.Error", "why"), 99)
    assert (named.tags["lastCode"], named.tags["lastReason"], named.data) == ("500", "Engine.Error", b"why")
