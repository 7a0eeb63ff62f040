"""Encodes frames, lists of frames and attributes: protobuf, JSON, and the length-delimited form of the HTTP watch.

The message classes are made at run time in a descriptor pool of their own, so that the official SDK's generated
`queueservice_pb2`, which registers the same names in the default pool, can be imported at the same time. The output is
deterministic: map entries are sorted. Malformed input raises ValueError.

    DataFrameProto      1 index uint64   2 tags map<string,string>   3 data bytes   4 message string
    DataFrameListProto  1 index repeated DataFrameProto (`index` is no mistake: the SDKs name the field like this)
    AttributesProto     1 attributes map<string,string>

Source: queueservice.proto of the official SDKs; the JSON form is the Go SDK's and pai-python-sdk's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from easq.model import MAX_WIRE_INDEX, Frame
from easq.protocol.bounds import MAX_FRAMES, MAX_VALUES, check_fields, fields, load_json
from easq.protocol.operations import Codec

#: bytes before each frame of an HTTP watch: its length, big endian
_LENGTH_BYTES = 4
#: longest delimited frame that is read, in bytes: twice the limit of the Go client. It bounds the memory that a peer
#: can make us reserve
MAX_FRAME_BYTES = 64 * 1024 * 1024
#: most tags of one frame. easq's services accept 16 KiB of tags, so their frames have fewer
MAX_TAGS = 8192


def encode_frame(frame: Frame, codec: Codec, *, with_data: bool = True) -> bytes:
    """Return a frame as bytes. An index-only watch sends it without its data."""
    if codec is Codec.PROTOBUF:
        return _serialize(_fill(_FrameProto(), frame, with_data=with_data))
    return _to_json(_frame_object(frame, with_data=with_data), codec)


def decode_frame(data: bytes, codec: Codec) -> Frame:
    """Return the frame in `data`."""
    if codec is Codec.PROTOBUF:
        return _read(_parse(_FrameProto(), data, MAX_TAGS))
    return _object_frame(_from_json(data, codec))


def encode_frames(frames: Iterable[Frame], codec: Codec) -> bytes:
    """Return a list of frames as bytes."""
    if codec is Codec.PROTOBUF:
        listing = _FrameListProto()
        for frame in frames:
            _fill(listing.index.add(), frame, with_data=True)
        return _serialize(listing)
    return _to_json([_frame_object(frame, with_data=True) for frame in frames], codec)


def decode_frames(data: bytes, codec: Codec, *, most: int = MAX_FRAMES) -> list[Frame]:
    """Return the frames of a list; empty bytes and JSON `null` are the empty list, as in the SDKs.

    Raises ValueError for more than `most` frames, before all are decoded.
    """
    most = min(most, MAX_FRAMES)
    if codec is Codec.PROTOBUF:
        return _protobuf_frames(data, most)
    listing = _from_json(data, codec) if data.strip() else None
    if listing is None:
        return []
    if not isinstance(listing, list):
        raise ValueError("not a list of frames")
    if len(listing) > most:
        raise ValueError(f"more than {most} frames")
    return [_object_frame(item) for item in listing]


def _protobuf_frames(data: bytes, most: int) -> list[Frame]:
    """Return the frames of a list. Each is parsed on its own, since protobuf creates all frames before returning."""
    found: list[Frame] = []
    tags = 0
    for number, begin, end in fields(data):
        if number != 1:
            continue
        if len(found) == most:
            raise ValueError(f"more than {most} frames")
        found.append(decode_frame(data[begin:end], Codec.PROTOBUF))
        tags += len(found[-1].tags)
        if tags > MAX_VALUES:
            raise ValueError(f"more than {MAX_VALUES} tags")
    return found


def encode_attributes(attributes: Mapping[str, str], codec: Codec) -> bytes:
    """Return the attributes of a queue as bytes, keys sorted."""
    if codec is Codec.PROTOBUF:
        proto = _AttributesProto()
        for key, value in attributes.items():
            proto.attributes[key] = value
        return _serialize(proto)
    return _to_json(dict(sorted(attributes.items())), codec)


def decode_attributes(data: bytes, codec: Codec) -> dict[str, str]:
    """Return the attributes of a queue, a flat map of text. Numbers become text."""
    if codec is Codec.PROTOBUF:
        return dict(_parse(_AttributesProto(), data, MAX_VALUES).attributes)
    found = _from_json(data, codec)
    if not isinstance(found, dict):
        raise ValueError("attributes are not an object")
    return {key: _attribute_text(key, value) for key, value in found.items()}


def delimit(frame_bytes: bytes) -> bytes:
    """Return `frame_bytes` after its length, as an HTTP watch sends it. Raises ValueError for an empty frame."""
    if not frame_bytes:
        raise ValueError("an empty frame cannot be sent")
    return len(frame_bytes).to_bytes(_LENGTH_BYTES, "big") + frame_bytes


class Undelimiter:
    """Splits the byte stream of an HTTP watch into frames.

    An empty frame, `b""`, has the length zero. It means that the sender ended the stream.
    """

    def __init__(self, *, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._held = bytearray()

    @property
    def unfinished(self) -> bool:
        """Whether the last frame is incomplete. At the end of a stream this means that the connection broke."""
        return bool(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes. Raises ValueError for a length above the limit."""
        self._held += data
        frames: list[bytes] = []
        at = 0
        while len(self._held) - at >= _LENGTH_BYTES:
            start = at + _LENGTH_BYTES
            length = int.from_bytes(self._held[at:start], "big")
            if length > self._max_frame_bytes:
                raise ValueError(f"a frame of {length} bytes is above the limit of {self._max_frame_bytes}")
            if len(self._held) - start < length:
                break
            frames.append(bytes(self._held[start : start + length]))
            at = start + length
        del self._held[:at]
        return frames


def _describe() -> descriptor_pb2.FileDescriptorProto:
    """Return the description of the three messages, as in the SDKs' queueservice.proto."""
    string, uint64, data, nested = (
        descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
        descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
        descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
        descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
    )
    single, repeated = (
        descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
    )
    file = descriptor_pb2.FileDescriptorProto(name="queueservice.proto", package="streaming", syntax="proto3")

    frame = file.message_type.add(name="DataFrameProto")
    frame.field.add(name="index", number=1, type=uint64, label=single)
    tags_entry = ".streaming.DataFrameProto.TagsEntry"
    frame.field.add(name="tags", number=2, type=nested, label=repeated, type_name=tags_entry)
    frame.field.add(name="data", number=3, type=data, label=single)
    frame.field.add(name="message", number=4, type=string, label=single)

    listing = file.message_type.add(name="DataFrameListProto")
    listing.field.add(
        name="index", number=1, type=nested, label=repeated, type_name=".streaming.DataFrameProto"
    )

    attributes = file.message_type.add(name="AttributesProto")
    attributes_entry = ".streaming.AttributesProto.AttributesEntry"
    attributes.field.add(name="attributes", number=1, type=nested, label=repeated, type_name=attributes_entry)

    for owner, name in ((frame, "TagsEntry"), (attributes, "AttributesEntry")):
        entry = owner.nested_type.add(name=name)
        entry.field.add(name="key", number=1, type=string, label=single)
        entry.field.add(name="value", number=2, type=string, label=single)
        entry.options.map_entry = True
    return file


def _classes() -> tuple[Any, Any, Any]:
    """Return the three message classes, from a descriptor pool of our own."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_describe().SerializeToString())
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        make: Any = message_factory.GetMessageClass
    else:
        make = getattr(message_factory.MessageFactory(pool), "GetPrototype")  # noqa: B009
    frame_class, list_class, attributes_class = (
        make(pool.FindMessageTypeByName(f"streaming.{name}"))
        for name in ("DataFrameProto", "DataFrameListProto", "AttributesProto")
    )
    return frame_class, list_class, attributes_class


_FrameProto, _FrameListProto, _AttributesProto = _classes()


def _serialize(proto: Any) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _parse(proto: Any, data: bytes, most: int) -> Any:
    check_fields(data, most)
    try:
        proto.ParseFromString(bytes(data))
    except (message.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a protobuf message of the queue service: {error}") from error
    return proto


def _fill(proto: Any, frame: Frame, *, with_data: bool) -> Any:
    proto.index = frame.index
    for key, value in frame.tags.items():
        proto.tags[key] = value
    if with_data:
        proto.data = frame.data
    proto.message = frame.message
    return proto


def _read(proto: Any) -> Frame:
    return Frame(proto.index, dict(proto.tags), proto.data, proto.message)


def _to_json(value: object, codec: Codec) -> bytes:
    _require_json(codec)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _from_json(data: bytes, codec: Codec) -> Any:
    _require_json(codec)
    return load_json(data)


def _require_json(codec: Codec) -> None:
    if codec is not Codec.JSON:
        raise ValueError(f"frames have no {codec.name} encoding")


def _frame_object(frame: Frame, *, with_data: bool) -> dict[str, object]:
    if not 0 <= frame.index <= MAX_WIRE_INDEX:
        raise ValueError(f"index out of range: {frame.index}")
    found: dict[str, object] = {"index": frame.index}
    if frame.message:
        found["message"] = frame.message
    found["tags"] = dict(sorted(frame.tags.items()))
    found["data"] = base64.b64encode(frame.data).decode("ascii") if with_data else ""
    return found


def _object_frame(found: Any) -> Frame:
    if not isinstance(found, dict):
        raise ValueError("a frame is not an object")
    tags = found.get("tags") or {}
    data = found.get("data") or ""
    text = found.get("message") or ""
    if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
        raise ValueError("the tags of a frame are not an object of text")
    if len(tags) > MAX_TAGS:
        raise ValueError(f"more than {MAX_TAGS} tags in one frame")
    if not isinstance(data, str) or not isinstance(text, str):
        raise ValueError("the data or message of a frame is not text")
    return Frame(_object_index(found.get("index")), tags, base64.b64decode(data, validate=True), text)


def _object_index(value: object) -> int:
    """Return an index from a JSON integer or a string of digits. A float is refused: it is exact only up to 2^53."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 20:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_WIRE_INDEX:
        raise ValueError("the index of a frame is not an unsigned 64-bit number")
    return value


def _attribute_text(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise ValueError(f"attribute {key[:80]!r} is not text")
