"""RFC 6455 by hand, so that frames a good client would never send can be sent, and what comes back is seen whole."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from dataclasses import dataclass

from tests.support.http import PROTOBUF, Answer, Connection, Headers, Stream
from tests.support.protobuf import Item, read_item
from tests.support.waiting import PATIENCE_S

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass(frozen=True)
class RawFrame:
    """One frame as it came."""

    final: bool
    reserved: int
    opcode: int
    masked: bool
    payload: bytes


def encode(
    opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """One frame as a client sends it, or as none should."""
    head = bytes([final << 7 | reserved << 4 | opcode])
    length = len(payload)
    flag = masked << 7
    if length < 126:
        head += bytes([flag | length])
    elif length < 1 << 16:
        head += bytes([flag | 126]) + struct.pack(">H", length)
    else:
        head += bytes([flag | 127]) + struct.pack(">Q", length)
    if not masked:
        return head + payload
    mask = b"\x37\xfa\x21\x3d"  # always the same, as the Go SDK's
    return head + mask + _masked(payload, mask)


def _masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def early_frames(target: str, frames: bytes) -> bytes:
    """A handshake with frames right behind it."""
    head = (
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    return head.encode() + frames


class Refused(Exception):
    """The service answered the handshake with something other than 101."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"{answer.status} {answer.body!r}")
        self.answer = answer


class Watch:
    """One watch over a WebSocket. `answer` is the 101; pings are collected, and answered only on demand."""

    def __init__(self, port: int, target: str, headers: Headers = ()) -> None:
        self.connection = Connection(port)
        self.pings: list[bytes] = []
        key = base64.b64encode(os.urandom(16))
        upgrade = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", key.decode()),
            ("Sec-WebSocket-Version", "13"),
        ]
        try:
            self.answer = self.connection.ask("GET", target, [*upgrade, *headers])
            if self.answer.status != 101:
                raise Refused(self.answer)
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
            assert self.answer.header("Sec-WebSocket-Accept") == accept
        except BaseException:
            self.connection.close()
            raise

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, opcode: int, payload: bytes = b"", **options: bool | int) -> None:
        """One frame, right or wrong."""
        self.connection.send(encode(opcode, payload, **options))

    def read(self) -> RawFrame:
        """The next frame, whatever it is. A timeout on the way takes nothing away."""
        first, second = self.connection.peek(2)
        masked = bool(second & 0x80)
        length, start = second & 0x7F, 2
        if length == 126:
            (length,), start = struct.unpack(">H", self.connection.peek(4)[2:]), 4
        elif length == 127:
            (length,), start = struct.unpack(">Q", self.connection.peek(10)[2:]), 10
        start += 4 * masked
        frame = self.connection.read(start + length)
        payload = frame[start:]
        if masked:
            payload = _masked(payload, frame[start - 4 : start])
        return RawFrame(bool(first & 0x80), first >> 4 & 7, first & 15, masked, payload)

    def read_other_than_ping(self) -> RawFrame:
        """The next frame that is not a ping."""
        while (frame := self.read()).opcode == PING:
            self.pings.append(frame.payload)
        return frame

    def next(self) -> Item:
        """The next item."""
        frame = self.read_other_than_ping()
        assert (frame.opcode, frame.final, frame.reserved, frame.masked) == (BINARY, True, 0, False), frame
        return read_item(frame.payload)

    def take(self, count: int) -> list[Item]:
        """The next `count` items."""
        return [self.next() for _ in range(count)]

    def indexes(self, count: int) -> list[int]:
        """The indexes of the next `count` items."""
        return [item.index for item in self.take(count)]

    def has_no_more(self, seconds: float = 0.5) -> bool:
        """Whether no item comes for so long. What came before it must have been read."""
        self.connection.socket.settimeout(seconds)
        try:
            frame = self.read_other_than_ping()
        except TimeoutError:
            return True
        finally:
            self.connection.socket.settimeout(PATIENCE_S)
        return frame.opcode == CLOSE

    def read_close(self) -> int:
        """The code of the close frame that comes next, before or after items; 1006 when there is none."""
        try:
            while (frame := self.read_other_than_ping()).opcode != CLOSE:
                pass
        except (EOFError, ConnectionResetError):
            return 1006
        return int.from_bytes(frame.payload[:2], "big") if frame.payload else 1005

    def leave(self, code: int = 1000) -> int:
        """Says goodbye as the Go and Java SDKs do; the code of the answer."""
        self.send(CLOSE, struct.pack(">H", code))
        return self.read_close()

    def reset(self) -> None:
        """The connection breaks."""
        self.connection.reset()


def watch(stream: Stream, headers: Headers = (), **query: object) -> Watch:
    """A watch of the stream as its caller."""
    target = stream.target(_watch_="true", **query)
    return Watch(stream.port, target, [*stream.headers, PROTOBUF, *headers])
