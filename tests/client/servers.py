"""Servers that do what a real one will not do on request: one handler a connection, bytes as they are."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

#: how long one look for bytes takes, so that a server ends soon
_LOOK_S = 0.05
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Peer:
    """One connection, on the side of the server."""

    socket: socket.socket
    stop: threading.Event
    buffer: bytes = b""

    def read_request(self) -> tuple[str, bytes]:
        """Return head and body of the next request; ("", b"") if there is none."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._more():
                return "", b""
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(self.buffer) < length and self._more():
            pass
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return head.decode(), body

    def send(self, data: bytes) -> None:
        """Send all of `data`, unless the client has disconnected."""
        with suppress(OSError):
            self.socket.settimeout(30)
            self.socket.sendall(data)
            self.socket.settimeout(_LOOK_S)

    def flood(self) -> None:
        """Send until the client has disconnected."""
        with suppress(OSError):
            self.socket.settimeout(30)
            while not self.stop.is_set():
                self.socket.sendall(bytes(65536))

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Text", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def upgrade(self) -> str:
        """Answer a WebSocket handshake, and return the head of the request."""
        head, _ = self.read_request()
        lines = [line for line in head.split("\r\n") if line.lower().startswith("sec-websocket-key:")]
        key = lines[0][18:].strip() if lines else ""  # none where the client is gone
        accept = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
        self.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )
        return head

    def send_frame(self, data: bytes, opcode: int = 2) -> None:
        length = len(data)
        if length < 126:
            head = bytes([0x80 | opcode, length])
        elif length < 65536:
            head = bytes([0x80 | opcode, 126]) + length.to_bytes(2, "big")
        else:
            head = bytes([0x80 | opcode, 127]) + length.to_bytes(8, "big")
        self.send(head + data)

    def send_close(self, code: int, reason: str = "") -> None:
        self.send_frame(code.to_bytes(2, "big") + reason.encode(), 8)

    def read_frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame from the client; (-1, b"") if there is none."""
        while len(self.buffer) < 6:
            if not self._more():
                return -1, b""
        opcode, length, at = self.buffer[0] & 15, self.buffer[1] & 127, 2
        if length > 125:
            at = 4 if length == 126 else 10
            while len(self.buffer) < at:
                if not self._more():
                    return -1, b""
            length = int.from_bytes(self.buffer[2:at], "big")
        while len(self.buffer) < at + 4 + length:
            if not self._more():
                return -1, b""
        mask, data = self.buffer[at : at + 4], self.buffer[at + 4 : at + 4 + length]
        self.buffer = self.buffer[at + 4 + length :]
        return opcode, bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))

    def serve_pings(self) -> tuple[int, bytes]:
        """Answer pings, and return the first frame that is no ping."""
        while True:
            opcode, data = self.read_frame()
            if opcode != 9:
                return opcode, data
            self.send_frame(data, 10)

    def gone(self) -> bool:
        """Return whether the client has closed its side."""
        try:
            return not self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except (BlockingIOError, TimeoutError):
            return False
        except OSError:
            return True

    def _more(self) -> bool:
        while not self.stop.is_set():
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                return False
            self.buffer += data
            return bool(data)
        return False


@dataclass
class Server:
    """A server that runs `handler` in a thread for each connection, and stores the requests."""

    handler: Callable[[Server, Peer], None]
    port: int = 0
    host: str = field(default="127.0.0.1", kw_only=True)
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    connections: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def __enter__(self) -> Server:
        self.stop = threading.Event()
        self.threads: list[threading.Thread] = []
        self.listener = socket.create_server((self.host, self.port))
        self.listener.settimeout(0.05)
        self.port = self.listener.getsockname()[1]
        self.acceptor = threading.Thread(target=self._accept)
        self.acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.acceptor.join()
        for thread in self.threads:
            thread.join()
        self.listener.close()
        assert not self.errors, self.errors

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/predict/q"

    def heads(self) -> list[str]:
        return [head for head, _ in self.requests]

    def _accept(self) -> None:
        while not self.stop.is_set():
            with suppress(TimeoutError):
                connected, _ = self.listener.accept()
                connected.settimeout(_LOOK_S)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(connected,))
                thread.start()
                self.threads.append(thread)

    def _serve(self, connected: socket.socket) -> None:
        with connected:
            try:
                self.handler(self, Peer(connected, self.stop))
            except BaseException as error:
                self.errors.append(error)


def encrypting(
    certificate: Path, handle: Callable[[Server, Peer], None], *, tunnelled: bool = False
) -> Server:
    """A server that does `handle` behind TLS; a handshake that fails is the client's business.

    `tunnelled`: it is asked for a tunnel first, as a proxy is, and is itself what is behind it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def secure(server: Server, peer: Peer) -> None:
        if tunnelled:
            server.requests.append(peer.read_request())
            peer.answer(200)
        peer.socket.settimeout(5)
        try:
            encrypted = context.wrap_socket(peer.socket, server_side=True)
        except OSError:
            return
        with encrypted:
            encrypted.settimeout(_LOOK_S)
            handle(server, Peer(encrypted, peer.stop))

    return Server(secure)


def secured(certificate: Path, *, tunnelled: bool = False) -> Server:
    """A server that speaks TLS and answers 200; `tunnelled` as for `encrypting`."""

    def handle(server: Server, peer: Peer) -> None:
        server.requests.append(peer.read_request())
        peer.answer(200, b"safe")

    return encrypting(certificate, handle, tunnelled=tunnelled)


def without_tls() -> Server:
    """A server that answers what is no HTTP as it answers HTTP, in plain text."""

    def handle(_: Server, peer: Peer) -> None:
        peer.socket.settimeout(30)
        if peer.socket.recv(100):
            peer.answer(400)

    return Server(handle)


def answering(*answers: Callable[[Peer], None]) -> Server:
    """A server that gives its answers one after the other, the last again and again, over any connections."""

    def handle(server: Server, peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if not request[0]:
                return
            server.requests.append(request)
            answers[min(len(server.requests), len(answers)) - 1](peer)

    return Server(handle)


def reply(status: int = 200, body: bytes = b"", **headers: str) -> Callable[[Peer], None]:
    return lambda peer: peer.answer(status, body, **headers)


@dataclass
class Behaviour:
    """What a server of `behaving` does with each request from now on."""

    now: Callable[[Peer], None]


def behaving(behaviour: Behaviour, port: int = 0) -> Server:
    """A server that does with a request what `behaviour` says at that moment, over any connections."""

    def handle(server: Server, peer: Peer) -> None:
        while True:
            request = peer.read_request()
            if not request[0]:
                return
            server.requests.append(request)
            behaviour.now(peer)

    return Server(handle, port)


def listing(*servers: Server, weights: Sequence[int] = ()) -> Callable[[Peer], None]:
    """The answer of discovery that names `servers`."""
    items = [
        {"app": "svc", "ip": "127.0.0.1", "port": server.port, "weight": weight}
        for server, weight in zip(servers, weights or [100] * len(servers), strict=True)
    ]
    return reply(200, json.dumps({"correlative": ["svc"], "endpoints": {"items": items}}).encode())


def host_endpoints(*servers: Server) -> Callable[[Peer], None]:
    """The answer of ModelArts' management that names `servers`, in one of the shapes that it may have."""
    found = [{"schema": "http", "ip": "127.0.0.1", "port": str(server.port)} for server in servers]
    return reply(200, json.dumps({"service_id": "s", "predict": {"host_endpoints": found}}).encode())


class Speaking(Server):
    """A WebSocket service: each connection is upgraded, and each of its messages given to `answer`.

    `messages` holds what came, as opcode and bytes.
    """

    def __init__(self, answer: Callable[[Peer, int, bytes], None]) -> None:
        super().__init__(Speaking.speak)
        self.answer = answer
        self.messages: list[tuple[int, bytes]] = []

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/x"

    def speak(self, peer: Peer) -> None:
        self.requests.append((peer.upgrade(), b""))
        while (message := peer.serve_pings())[0] in (1, 2):
            self.messages.append(message)
            self.answer(peer, *message)
        if message[0] == 8:
            peer.send_frame(message[1], 8)


def echo(peer: Peer, opcode: int, data: bytes) -> None:
    """The message itself, its bytes in reverse."""
    peer.send_frame(data[::-1], opcode)


def half(peer: Peer) -> None:
    """The connection breaks inside the answer."""
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    peer.socket.shutdown(socket.SHUT_RDWR)


def silent(peer: Peer) -> None:
    """No answer comes."""
    while not peer.stop.is_set() and not peer.gone():
        peer.stop.wait(0.02)


def dripping(peer: Peer) -> None:
    """The answer comes one byte at a time."""
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while not peer.stop.is_set() and not peer.gone():
        peer.send(b" ")
        peer.stop.wait(0.05)


def broken(peer: Peer) -> None:
    """The connection breaks after the request was read."""
    peer.socket.shutdown(socket.SHUT_RDWR)


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Whether `holds` comes true in time."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.01)
    return holds()


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
