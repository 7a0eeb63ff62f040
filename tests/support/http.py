"""HTTP/1.1 over a bare socket: every byte that goes out is the test's, and every byte that comes back is seen."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.support.protobuf import Item, read_items, read_map
from tests.support.waiting import PATIENCE_S

Headers = Iterable[tuple[str, str]]
PROTOBUF = ("Accept", "application/vnd.google.protobuf")


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, headers in order and as they were spelled."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        """The values of all headers `name`."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of the header `name`, which must not be there twice; None when it is not there at all."""
        found = self.all(name)
        assert len(found) < 2, f"{name} twice: {found}"
        return found[0] if found else None

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def items(self) -> list[Item]:
        """The items of a protobuf list."""
        return read_items(self.body)


class Connection:
    """One TCP connection to a service on 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The connection is closed with a FIN."""
        self.socket.close()

    def reset(self) -> None:
        """The connection is closed with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data: bytes) -> None:
        """These bytes, and no others."""
        self.socket.sendall(data)

    def ask(self, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> Answer:
        """One request and its answer; the connection stays open if the service keeps it."""
        self.send_request(method, target, headers, body)
        return self.read_answer(has_body=method != "HEAD")

    def send_request(
        self, method: str, target: str, headers: Headers = (), body: bytes | None = None
    ) -> None:
        """One request, with Host and Content-Length unless they are given."""
        all_headers = list(headers)
        names = {name.lower() for name, _ in all_headers}
        if "host" not in names:
            all_headers.insert(0, ("Host", f"127.0.0.1:{self.port}"))
        if body is not None and not names & {"content-length", "transfer-encoding"}:
            all_headers.append(("Content-Length", str(len(body))))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers), "", ""]
        self.send("\r\n".join(lines).encode("utf-8", "surrogateescape") + (body or b""))

    def read_answer(self, *, has_body: bool = True) -> Answer:
        """The next answer, whole."""
        status, headers = self.read_head()
        answer = Answer(status, headers, b"")
        if not has_body or status in {101, 204, 304}:
            return answer
        length = answer.header("Content-Length")
        if length is not None:
            return Answer(status, headers, self.read(int(length)))
        assert answer.header("Transfer-Encoding") == "chunked", headers
        return Answer(status, headers, self._read_chunks())

    def read_head(self) -> tuple[int, list[tuple[str, str]]]:
        """Status and headers of the next answer."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        version, status, _ = lines[0].split(" ", 2)
        assert version in {"HTTP/1.1", "HTTP/1.0"}, lines[0]  # 1.0 where the request could not be read
        return int(status), [
            (name, value) for name, _, value in (line.partition(": ") for line in lines[1:-2])
        ]

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            body += self.read(size)
            self.read(2)
        self.read(2)
        return body

    def read_until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        while mark not in self._held:
            self._receive()
        head, _, self._held = self._held.partition(mark)
        return head + mark

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        data = self.peek(size)
        self._held = self._held[size:]
        return data

    def peek(self, size: int) -> bytes:
        """Exactly `size` bytes, which the next `read` gives again; after a timeout nothing is lost."""
        while len(self._held) < size:
            self._receive()
        return self._held[:size]

    def _receive(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise EOFError(f"the connection ended after {self._held!r}")
        self._held += data

    def ended(self) -> bool:
        """Whether the service closes the connection, without another byte, while we wait."""
        if self._held:
            return False
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def is_over(self) -> bool:
        """Whether the service has closed the connection; what still came is dropped."""
        try:
            return self.socket.recv(1 << 16) == b""
        except ConnectionResetError:
            return True

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing comes, and nothing ends, for so long."""
        self.socket.settimeout(seconds)
        try:
            self._receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(PATIENCE_S)
        return False


def ask(port: int, method: str, target: str, headers: Headers = (), body: bytes | None = None) -> Answer:
    """One request on a connection of its own."""
    with Connection(port) as connection:
        return connection.ask(method, target, headers, body)


class Stream:
    """The operations of one queue, or sink, in the raw: each returns the answer, unjudged."""

    def __init__(self, port: int, path: str, headers: Headers = ()) -> None:
        self.port = port
        self.path = path
        self.headers = tuple(headers)

    @property
    def sink(self) -> Stream:
        return Stream(self.port, self.path + "/sink", self.headers)

    def as_consumer(self, user: str, group: str = "g") -> Stream:
        """Return the same stream for this caller in place of any other."""
        identity = {"X-EAS-QueueService-Uid": user, "X-EAS-QueueService-Gid": group}
        others = [(name, value) for name, value in self.headers if name not in identity]
        return Stream(self.port, self.path, (*others, *identity.items()))

    def ask(
        self,
        method: str,
        headers: Headers = (),
        body: bytes | None = None,
        *,
        path: str = "",
        **query: object,
    ) -> Answer:
        """One request; `query` as keyword arguments."""
        return ask(self.port, method, self.target(path, **query), (*self.headers, *headers), body)

    def target(self, path: str = "", **query: object) -> str:
        """The request target."""
        text = urlencode({key: str(value) for key, value in query.items()})
        return f"{self.path}{path}{'?' if text else ''}{text}"

    def put(self, data: bytes = b"data", headers: Headers = (), **query: object) -> int:
        """The index of a new item."""
        answer = self.ask("POST", headers, data, **query)
        assert answer.status == 200, answer
        return int(answer.body)

    def get(self, **query: object) -> list[Item]:
        """The items that a get answers; they stay unless `_auto_delete_` is given."""
        answer = self.ask("GET", [PROTOBUF], **{"_raw_": "false", "_auto_delete_": "false", **query})
        assert answer.status in {200, 204}, answer
        return answer.items

    def commit(self, *indexes: int) -> Answer:
        return self.ask("PUT", (), b"", _indexes_=",".join(map(str, indexes)))

    def negative(self, *indexes: int, code: str = "", reason: str = "") -> Answer:
        form = urlencode({"_code_": code, "_reason_": reason}).encode()
        kind = ("Content-Type", "application/x-www-form-urlencoded")
        return self.ask("PUT", [kind], form, _indexes_=",".join(map(str, indexes)), _negative_="true")

    def delete(self, *indexes: int) -> Answer:
        return self.ask("DELETE", _indexes_=",".join(map(str, indexes)))

    def truncate(self, below: int) -> Answer:
        return self.ask("DELETE", _index_=below, _trunc_="true")

    def attributes(self) -> dict[str, str]:
        answer = self.ask("GET", [PROTOBUF], _attrs_="true")
        assert answer.status == 200, answer
        return read_map(answer.body)

    def length(self) -> int:
        return int(self.attributes()["stream.length"])
