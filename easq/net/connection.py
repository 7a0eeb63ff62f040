"""One connection to a server: direct or through a proxy, with TLS where the address asks for it.

For the WebSocket, whose library bounds neither the time nor the size of what a server sends: here every read
and write can be given a deadline and a budget of bytes, and when something was last heard is known.
"""

from __future__ import annotations

import base64
import socket
import ssl
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from easq.errors import ConfigError, NotAQueueService
from easq.net.failures import Unconnected, unconnected
from easq.net.settings import NetworkSettings
from easq.net.tls import tls_context
from easq.net.url import is_encrypted, proxy_for, shown

T = TypeVar("T")

#: bytes of one read at most
_PIECE = 256 * 1024
#: longest answer of a proxy to CONNECT
_MAX_PROXY_ANSWER = 16 * 1024


class Connection:
    """A connected socket, as websocket-client wants one."""

    def __init__(self, connected: socket.socket, url: str) -> None:
        self._socket = connected
        self._url = url
        #: on the monotonic clock, when reading and writing end; None: each call's own timeout counts
        self.until: float | None = None
        #: bytes that may still come
        self.budget = 0
        #: when a byte last came
        self.heard_at = time.monotonic()
        #: when one first came since this was set to None
        self.first_byte_at: float | None = None
        self._timeout: float | None = None

    def recv(self, size: int) -> bytes:
        """What came, empty at the end. Raises TimeoutError, and NotAQueueService above the budget."""
        self._bound()
        # websocket-client before 1.9 asks for all of a body at once, however long the peer says that it is
        data = self._socket.recv(min(size, _PIECE))
        self.heard_at = time.monotonic()
        self.first_byte_at = self.first_byte_at or self.heard_at
        self.budget -= len(data)
        if self.budget < 0:
            raise NotAQueueService(f"{shown(self._url)} sends more than is taken in one message")
        return data

    def send(self, data: bytes) -> int:
        """How many bytes of `data` went out."""
        self._bound()
        return self._socket.send(data)

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        return self._timeout

    def fileno(self) -> int:
        return self._socket.fileno()

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()

    def _bound(self) -> None:
        timeout = self._timeout
        if self.until is not None:
            left = _left_s(self.until)
            timeout = left if timeout is None else min(left, timeout)
        self._socket.settimeout(timeout)


def open_connection(url: str, settings: NetworkSettings) -> Connection:
    """A connection to the host of `url`, proxy and TLS included, within the connect timeout. Raises Unconnected."""
    until = time.monotonic() + settings.connect_timeout_s
    target = urlsplit(url)
    proxy = proxy_for(url, settings.environ)
    first = urlsplit(proxy) if proxy else target
    connected: socket.socket | None = None
    try:
        connected = try_addresses(
            first.hostname or "",
            _port(first),
            settings.connect_timeout_s,
            lambda address, part_s: socket.create_connection((address, _port(first)), part_s),
        )
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy:
            if first.scheme == "https":
                connected = _secured(connected, first, settings, until)
            _tunnel(connected, first, target, url, until)
        if is_encrypted(target.scheme):
            if isinstance(connected, ssl.SSLSocket):
                raise ConfigError(
                    "a WebSocket over TLS does not go through an https proxy", hint="use an http proxy"
                )
            connected = _secured(connected, target, settings, until)
    except BaseException as error:
        if connected is not None:
            connected.close()
        if isinstance(error, OSError | UnicodeError):
            raise unconnected(error, url, proxy) from error
        raise
    return Connection(connected, url)


def try_addresses(host: str, port: int, timeout_s: float, connect: Callable[[str, float], T]) -> T:
    """Return the connection to the first address of `host` for which `connect` succeeds.

    Each address gets an equal part of the time that is left, so that one that does not answer (an IPv6 address
    without a route) leaves time for the next. Raises socket.gaierror, or the error of the last address.
    """
    end = time.monotonic() + timeout_s
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        part_s = max((end - time.monotonic()) / left, 0.001)
        try:
            return connect(address, part_s)
        except Exception:
            if left == 1:
                raise
    raise OSError(f"{host} has no address")


def _secured(
    connected: socket.socket, address: SplitResult, settings: NetworkSettings, until: float
) -> ssl.SSLSocket:
    connected.settimeout(_left_s(until))  # for the whole handshake, not for each read
    context = tls_context(cacert=settings.cacert, insecure=settings.insecure)
    return context.wrap_socket(connected, server_hostname=address.hostname)


def _tunnel(
    connected: socket.socket, proxy: SplitResult, target: SplitResult, url: str, until: float
) -> None:
    """Has the proxy connect on to `target`."""
    name = target.hostname or ""
    host = f"[{name}]" if ":" in name else name.encode("idna").decode("ascii")
    request = f"CONNECT {host}:{_port(target)} HTTP/1.1\r\nHost: {host}:{_port(target)}\r\n"
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
    connected.settimeout(_left_s(until))
    connected.sendall(f"{request}\r\n".encode("ascii"))
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MAX_PROXY_ANSWER:
        # byte by byte at the end: what follows the empty line belongs to the target
        connected.settimeout(_left_s(until))
        piece = connected.recv(1)
        if not piece:
            break
        answer += piece
    words = answer.split(b"\r\n", 1)[0].split(b" ", 2)
    if len(words) < 2 or words[1] != b"200":
        said = ascii(b" ".join(words[1:])[:80].decode("ascii", "replace"))
        text = f"the proxy {shown(proxy.geturl())} does not connect to {shown(url)}: {said}"
        raise Unconnected(text, hint="see HTTP_PROXY and NO_PROXY")


def _left_s(until: float) -> float:
    """Return the seconds until `until`. Raises TimeoutError if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left


def _port(address: SplitResult) -> int:
    return address.port or (443 if is_encrypted(address.scheme) else 80)
