"""Arguments and answers of scripts, there and back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from easq.model import Frame
from easq.storage.redis.codec import TOP, index_text, index_texts, pack_tags, read_frame, unpack_tags

TEXT = st.text(st.characters())  # lone surrogates too: undecodable bytes of a command line


@given(st.dictionaries(TEXT, TEXT))
def test_tags_come_back_and_their_order_does_not_matter(tags: dict[str, str]) -> None:
    packed = pack_tags(tags)
    assert unpack_tags(packed) == tags
    assert pack_tags(dict(reversed(tags.items()))) == packed


@given(st.integers(1, TOP - 1), st.integers(1, TOP - 1))
def test_indexes_sort_as_text(one: int, other: int) -> None:
    assert (index_text(one) < index_text(other)) == (one < other)


def test_indexes_that_no_item_can_have_are_left_out() -> None:
    assert index_texts([0, 1, TOP - 1, TOP, 2**64 - 1]) == [index_text(1), index_text(TOP - 1)]


def test_a_frame_is_read_from_bytes() -> None:
    assert read_frame([b"0000000000000007", pack_tags({"a": "é"}), b"x"]) == Frame(7, {"a": "é"}, b"x")
