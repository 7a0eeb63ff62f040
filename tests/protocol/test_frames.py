import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easq.model import Frame
from easq.protocol.frames import (
    Undelimiter,
    decode_attributes,
    decode_frame,
    decode_frames,
    delimit,
    encode_attributes,
    encode_frame,
    encode_frames,
)
from easq.protocol.operations import Codec

FRAME = Frame(5, {"requestId": "r-5"}, b"data5")
FRAME_BYTES = bytes.fromhex("080512100a097265717565737449641203722d351a056461746135")
LIST_BYTES = bytes.fromhex("0a1b") + FRAME_BYTES
ATTRIBUTES_BYTES = bytes.fromhex("0a120a0d73747265616d2e6c656e677468120130")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
frames = st.builds(
    Frame, st.integers(0, 2**64 - 1), st.dictionaries(texts, texts, max_size=4), st.binary(max_size=50), texts
)
codecs = st.sampled_from([Codec.PROTOBUF, Codec.JSON])


def test_the_bytes_of_a_frame() -> None:
    assert encode_frame(FRAME, Codec.PROTOBUF) == FRAME_BYTES
    assert decode_frame(FRAME_BYTES, Codec.PROTOBUF) == FRAME


def test_an_index_only_frame_is_the_same_without_its_data() -> None:
    assert encode_frame(FRAME, Codec.PROTOBUF, with_data=False) == FRAME_BYTES[:20]
    assert decode_frame(FRAME_BYTES[:20], Codec.PROTOBUF) == Frame(5, {"requestId": "r-5"})


def test_the_bytes_of_a_list() -> None:
    assert encode_frames([FRAME], Codec.PROTOBUF) == LIST_BYTES
    assert decode_frames(LIST_BYTES, Codec.PROTOBUF) == [FRAME]


def test_the_bytes_of_attributes() -> None:
    assert encode_attributes({"stream.length": "0"}, Codec.PROTOBUF) == ATTRIBUTES_BYTES
    assert decode_attributes(ATTRIBUTES_BYTES, Codec.PROTOBUF) == {"stream.length": "0"}


def test_the_delimited_form_is_these_bytes_and_back() -> None:
    assert delimit(FRAME_BYTES) == bytes.fromhex("0000001b") + FRAME_BYTES
    assert Undelimiter().feed(delimit(FRAME_BYTES)) == [FRAME_BYTES]


def test_a_json_frame_is_this_text_and_back() -> None:
    frame = Frame(2**64 - 1, {"b": "ü", "a": "1"}, b"\xff\x00", "why")
    text = '{"index":18446744073709551615,"message":"why","tags":{"a":"1","b":"ü"},"data":"/wA="}'
    assert encode_frame(frame, Codec.JSON).decode() == text
    assert decode_frame(text.encode(), Codec.JSON) == frame


def test_json_tags_are_an_object_even_when_there_are_none() -> None:
    assert json.loads(encode_frame(Frame(1), Codec.JSON)) == {"index": 1, "tags": {}, "data": ""}
    assert encode_frames([], Codec.JSON) == b"[]"


@pytest.mark.parametrize("index", [2**53 + 1, 6944957106013339648, 2**64 - 1])
def test_a_json_index_is_exact_as_number_and_as_text(index: int) -> None:
    for written in (str(index), f'"{index}"'):
        found = decode_frame(f'{{"index":{written},"tags":null}}'.encode(), Codec.JSON)
        assert found == Frame(index)


def test_recorded_first_generation_attributes_stay_exact() -> None:
    """The vendor's page of 2022 shows this answer of the service on Redis."""
    recorded = (
        b'{"meta.backend":"redis","meta.header.groupIdentifyHeader":"X-EAS-QueueService-Redis-Gid",'
        b'"meta.header.userIdentifyHeader":"X-EAS-QueueService-Redis-Uid","meta.maxPayloadBytes":"57600",'
        b'"stream.approxMaxLength":"8192","stream.firstEntry":"6946744471463657472",'
        b'"stream.lastEntry":"6946744570403094528","stream.length":"2"}'
    )
    attributes = decode_attributes(recorded, Codec.JSON)
    assert int(attributes["stream.lastEntry"]) == 6946744570403094528
    assert encode_attributes(attributes, Codec.JSON) == recorded


def test_attributes_that_are_not_quoted_are_taken_as_text() -> None:
    found = decode_attributes(b'{"stream.length":6944957106013339648,"x":true}', Codec.JSON)
    assert found == {"stream.length": "6944957106013339648", "x": "true"}


@given(frames, codecs)
def test_a_frame_is_decoded_as_it_was_encoded(frame: Frame, codec: Codec) -> None:
    data = encode_frame(frame, codec)
    assert decode_frame(data, codec) == frame
    assert encode_frame(decode_frame(data, codec), codec) == data
    assert decode_frame(encode_frame(frame, codec, with_data=False), codec) == Frame(
        frame.index, frame.tags, b"", frame.message
    )


@given(st.lists(frames, max_size=4), codecs)
def test_a_list_is_decoded_as_it_was_encoded(listing: list[Frame], codec: Codec) -> None:
    assert decode_frames(encode_frames(listing, codec), codec) == listing


@given(st.dictionaries(texts, texts, max_size=5), codecs)
def test_attributes_are_decoded_as_they_were_encoded(attributes: dict[str, str], codec: Codec) -> None:
    assert decode_attributes(encode_attributes(attributes, codec), codec) == attributes


def test_the_order_of_tags_does_not_change_the_bytes() -> None:
    keys = [f"k{number}" for number in range(50)]
    one = Frame(1, dict.fromkeys(keys, "v"))
    two = Frame(1, dict.fromkeys(reversed(keys), "v"))
    for codec in (Codec.PROTOBUF, Codec.JSON):
        assert encode_frame(one, codec) == encode_frame(two, codec)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 9))
def test_a_delimited_stream_is_cut_right_in_any_pieces(sent: list[bytes], size: int) -> None:
    stream = b"".join(map(delimit, sent))
    cutter = Undelimiter()
    got = [frame for at in range(0, len(stream), size) for frame in cutter.feed(stream[at : at + size])]
    assert got == sent
    assert not cutter.unfinished


def test_an_incomplete_frame_is_noticed_and_a_length_of_zero_is_the_end() -> None:
    cutter = Undelimiter()
    assert cutter.feed(delimit(b"abc") + b"\0\0\0\0" + b"\0\0\0\x05ab") == [b"abc", b""]
    assert cutter.unfinished


def test_a_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(ValueError, match=r"^a frame of 4294967295 bytes is above the limit of 67108864$"):
        Undelimiter().feed(b"\xff\xff\xff\xff")


def test_an_empty_frame_is_never_sent() -> None:
    with pytest.raises(ValueError, match="empty"):
        delimit(b"")


@pytest.mark.parametrize(
    "data",
    [
        FRAME_BYTES[:-1],
        b"\x08",
        b"\x08" + b"\xff" * 11,
        b"<html></html>",
        b"\x12\x04\x0a\x02\xff\xfe",
    ],
)
def test_malformed_protobuf_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_frame(data, Codec.PROTOBUF)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nope",
        "[]",
        '{"index":-1}',
        '{"index":1.0}',
        '{"index":1e3}',
        '{"index":true}',
        '{"index":"1.0"}',
        '{"index":"\uff11"}',
        '{"index":18446744073709551616}',
        '{"tags":{}}',
        '{"index":1,"tags":[1]}',
        '{"index":1,"tags":{"a":1}}',
        '{"index":1,"data":"*"}',
        '{"index":1,"data":5}',
        '{"index":1,"message":5}',
        '{"index":' + "9" * 5000 + "}",
        "[" * 100_000,
    ],
)
def test_malformed_json_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        decode_frame(text.encode(), Codec.JSON)


@pytest.mark.parametrize("text", ["5", '"x"', "{}"])
def test_what_is_no_list_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a list of frames$"):
        decode_frames(text.encode(), Codec.JSON)


@pytest.mark.parametrize("data", [b"", b" ", b"null", b"[]"])
def test_nothing_is_the_empty_list(data: bytes) -> None:
    assert decode_frames(data, Codec.JSON) == []
    assert decode_frames(b"", Codec.PROTOBUF) == []


@pytest.mark.parametrize("text", ["", "[]", '{"a":{}}', '{"a":1.5}', '{"a":null}', '{"a":"b"'])
def test_malformed_attributes_are_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        decode_attributes(text.encode(), Codec.JSON)


@pytest.mark.parametrize("index", [-1, 2**64])
def test_an_index_outside_the_wire_is_refused(index: int) -> None:
    for codec in (Codec.PROTOBUF, Codec.JSON):
        with pytest.raises(ValueError):
            encode_frame(Frame(index), codec)


def test_a_payload_has_no_frame_encoding() -> None:
    with pytest.raises(ValueError, match="RAW"):
        encode_frame(FRAME, Codec.RAW)


@settings(deadline=None)  # the first example imports the SDK
@given(frames)
def test_the_official_sdk_reads_and_writes_the_same_frames(frame: Frame) -> None:
    pb2 = pytest.importorskip("eas_prediction.queue_types.queueservice_pb2", exc_type=ImportError)
    theirs = pb2.DataFrameProto()
    theirs.ParseFromString(encode_frame(frame, Codec.PROTOBUF))
    assert Frame(theirs.index, dict(theirs.tags), theirs.data, theirs.message) == frame
    assert decode_frame(theirs.SerializeToString(), Codec.PROTOBUF) == frame

    listing = pb2.DataFrameListProto()
    listing.ParseFromString(encode_frames([frame, FRAME], Codec.PROTOBUF))
    assert decode_frames(listing.SerializeToString(), Codec.PROTOBUF) == [frame, FRAME]


def test_the_official_sdk_reads_and_writes_the_same_attributes() -> None:
    pb2 = pytest.importorskip("eas_prediction.queue_types.queueservice_pb2", exc_type=ImportError)
    theirs = pb2.AttributesProto()
    theirs.ParseFromString(encode_attributes({"a": "1", "b": "ü"}, Codec.PROTOBUF))
    assert dict(theirs.attributes) == {"a": "1", "b": "ü"}
    assert decode_attributes(theirs.SerializeToString(), Codec.PROTOBUF) == {"a": "1", "b": "ü"}


def test_json_data_is_standard_base64() -> None:
    data = bytes(range(256))
    assert json.loads(encode_frame(Frame(1, {}, data), Codec.JSON))["data"] == base64.b64encode(data).decode()
