"""One connection to a server: direct or through a proxy, plain or with TLS, for HTTP and WebSocket alike.

The libraries above limit neither the time nor the size of a server's data. Here every read and write can have a
deadline and a budget of bytes.
"""

from __future__ import annotations

import base64
import socket
import ssl
import time
from collections.abc import Callable
from functools import cached_property, partial
from math import inf
from typing import TypeAlias, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from easq.errors import NotAQueueService
from easq.net.failures import refused_by_proxy, unconnected, unusable
from easq.net.settings import NetworkSettings
from easq.net.tls import tls_context
from easq.net.url import is_encrypted, proxy_for, shown

T = TypeVar("T")

#: most bytes of one read
_PIECE = 256 * 1024
#: longest answer of a proxy to CONNECT, in bytes
_MAX_PROXY_ANSWER = 16 * 1024
#: a connection on which nothing arrives is probed by TCP: after 10 s of silence, every 5 s, three times
_KEEP_ALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Connection:
    """A connected socket. It has the methods of a socket that websocket-client uses."""

    def __init__(self, connected: _Socket, url: str) -> None:
        """Wrap `connected`; `url` is named in errors."""
        self._socket = connected
        self._url = url
        #: on the monotonic clock, when reading and writing end; None: each call's own timeout counts
        self.until: float | None = None
        #: number of bytes that may still be received
        self.budget = inf
        #: time of the last received byte
        self.heard_at = time.monotonic()
        #: time of the first byte that was received after this was set to None
        self.first_byte_at: float | None = None
        self._timeout: float | None = None

    def recv(self, size: int) -> bytes:
        """Return the bytes that came, empty at the end. Raises TimeoutError, and NotAQueueService above the budget."""
        self._bound()
        # websocket-client before 1.9 asks for a whole body at once, with any length that the peer declares
        data = self._socket.recv(min(size, _PIECE))
        self.heard_at = time.monotonic()
        self.first_byte_at = self.first_byte_at or self.heard_at
        self.budget -= len(data)
        if self.budget < 0:
            raise NotAQueueService(f"{shown(self._url)} sends more than is taken in one message")
        return data

    def send(self, data: bytes | memoryview) -> int:
        """Send some of `data`, and return how many bytes. Raises TimeoutError."""
        self._bound()
        return self._socket.send(data)

    def secure(self, context: ssl.SSLContext, host: str, until: float) -> None:
        """Begin TLS with the server, whose certificate is for `host`, by `until` on the monotonic clock."""
        self._socket = _secured(self._socket, context, host, until)

    @property
    def ssl_object(self) -> ssl.SSLSocket | ssl.SSLObject | None:
        """The TLS layer nearest to the server; None without TLS."""
        if isinstance(self._socket, _NestedTls):
            return self._socket.tls
        return self._socket if isinstance(self._socket, ssl.SSLSocket) else None

    def settimeout(self, timeout: float | None) -> None:
        """Bound each read and write, in seconds."""
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return the value of `settimeout`."""
        return self._timeout

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def shutdown(self, how: int) -> None:
        """Shut down the socket, below TLS; ends a read that waits in another thread."""
        lowest = self._socket.outer if isinstance(self._socket, _NestedTls) else self._socket
        socket.socket.shutdown(lowest, how)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _bound(self) -> None:
        timeout = self._timeout
        if self.until is not None:
            left = _left_s(self.until)
            timeout = left if timeout is None else min(left, timeout)
        self._socket.settimeout(timeout)


class Connector:
    """Opens connections. The TLS context (94 ms) is made when it is first needed."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._settings = settings

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The TLS settings of all connections."""
        return tls_context(cacert=self._settings.cacert, insecure=self._settings.insecure)

    def connect(self, url: str, proxy: str | None, *, tunnel: bool, secure: bool, until: float) -> Connection:
        """Return a connection to the host of `url`, or to `proxy`, by `until` on the monotonic clock.

        Raises Unconnected, and ConfigError for a host that is no name.

        Args:
            tunnel: have the proxy connect to the host of `url`.
            secure: begin TLS with the host of `url`.
        """
        target = urlsplit(url)
        first = urlsplit(proxy) if proxy else target
        connected: _Socket | None = None
        try:
            connected = try_addresses(
                first.hostname or "",
                _port(first),
                _left_s(until),
                lambda address, part_s: _connected(address, _port(first), part_s),
            )
            set_options(connected)
            if proxy:
                if first.scheme == "https":
                    connected = _secured(connected, self.tls, first.hostname or "", until)
                if tunnel:
                    _open_tunnel(connected, proxy, url, until)
            if secure:
                connected = _secured(connected, self.tls, target.hostname or "", until)
        except BaseException as error:
            if connected is not None:
                connected.close()
            if isinstance(error, UnicodeError):
                raise unusable(url, error) from error
            if isinstance(error, OSError):
                raise unconnected(error, url, proxy) from error
            raise
        return Connection(connected, url)


def open_connection(url: str, settings: NetworkSettings) -> Connection:
    """Return a connection to the host of `url`, proxy and TLS included, within the connect timeout.

    Raises Unconnected.
    """
    until = time.monotonic() + settings.connect_timeout_s
    proxy, secure = proxy_for(url, settings.environ), is_encrypted(urlsplit(url).scheme)
    return Connector(settings).connect(url, proxy, tunnel=True, secure=secure, until=until)


def try_addresses(host: str, port: int, timeout_s: float, connect: Callable[[str, float], T]) -> T:
    """Return the connection to the first address of `host` for which `connect` succeeds.

    Each address gets an equal part of the time that is left, so that one that does not answer (an IPv6 address
    without a route) leaves time for the next. Raises socket.gaierror, or the error of the last address.
    """
    end = time.monotonic() + timeout_s
    # bytes: for text Python would load its IDNA tables, which takes 2 ms
    found = socket.getaddrinfo(host.encode() if host.isascii() else host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        part_s = max((end - time.monotonic()) / left, 0.001)
        try:
            return connect(address, part_s)
        except Exception:
            if left == 1:
                raise
    raise OSError(f"{host} has no address")


class _NestedTls:
    """TLS inside a TLS connection, for an https host behind an https proxy. `ssl` has no socket for this.

    It has the methods of a socket that are used here. A timeout bounds a whole call, not each of its reads.
    """

    def __init__(self, outer: ssl.SSLSocket, context: ssl.SSLContext, host: str) -> None:
        self.outer = outer
        self._received, self._unsent = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._received, self._unsent, server_hostname=host)
        self._timeout: float | None = outer.gettimeout()
        self._run(self.tls.do_handshake)

    def recv(self, size: int) -> bytes:
        try:
            return self._run(partial(self.tls.read, size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def send(self, data: bytes | memoryview) -> int:
        return self._run(partial(self.tls.write, data))

    def settimeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def fileno(self) -> int:
        return self.outer.fileno()

    def close(self) -> None:
        self.outer.close()

    def _run(self, step: Callable[[], T]) -> T:
        """Return the result of `step`. Exchange bytes with the server until `step` needs no more."""
        until = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            done, result = True, None
            try:
                result = step()
            except ssl.SSLWantReadError:
                done = False
            if data := self._unsent.read():
                self.outer.settimeout(None if until is None else _left_s(until))
                self.outer.sendall(data)
            if done:
                return result  # type: ignore[return-value]  # what `step` returned
            self.outer.settimeout(None if until is None else _left_s(until))
            if data := self.outer.recv(_PIECE):
                self._received.write(data)
            else:
                self._received.write_eof()


_Socket: TypeAlias = socket.socket | _NestedTls


def _secured(
    connected: _Socket, context: ssl.SSLContext, host: str, until: float
) -> ssl.SSLSocket | _NestedTls:
    connected.settimeout(_left_s(until))  # for the whole handshake, not for each read
    if isinstance(connected, ssl.SSLSocket):
        return _NestedTls(connected, context, host)
    assert isinstance(connected, socket.socket), "at most two layers of TLS"
    return context.wrap_socket(connected, server_hostname=host)


def _connected(address: str, port: int, timeout_s: float) -> socket.socket:
    connected = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect((address, port))
    except BaseException:
        connected.close()
        raise
    return connected


def set_options(connected: socket.socket) -> None:
    """Disable Nagle's algorithm on a socket, and enable TCP's probes, which detect a lost connection."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE:
        if hasattr(socket, name):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def proxy_authorization(proxy: SplitResult) -> str:
    """Return the Proxy-Authorization header for the user in the address `proxy`; empty without one."""
    if not (proxy.username or proxy.password):
        return ""
    pair = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _open_tunnel(connected: _Socket, proxy: str, url: str, until: float) -> None:
    """Ask the proxy to connect to the host of `url`. Raises Unconnected if the proxy refuses."""
    target = urlsplit(url)
    name = target.hostname or ""
    host = f"[{name}]" if ":" in name else name.encode("idna").decode("ascii")
    request = f"CONNECT {host}:{_port(target)} HTTP/1.1\r\nHost: {host}:{_port(target)}\r\n"
    if credentials := proxy_authorization(urlsplit(proxy)):
        request += f"Proxy-Authorization: {credentials}\r\n"
    connected.settimeout(_left_s(until))
    unsent = memoryview(f"{request}\r\n".encode("ascii"))
    while unsent:
        unsent = unsent[connected.send(unsent) :]
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _MAX_PROXY_ANSWER:
        # byte by byte: the bytes after the empty line are the target's
        connected.settimeout(_left_s(until))
        piece = connected.recv(1)
        if not piece:
            break
        answer += piece
    version, _, said = answer.split(b"\r\n", 1)[0].partition(b" ")
    if not version.startswith(b"HTTP/"):
        raise refused_by_proxy(url, proxy, "it does not answer in HTTP" if answer else "it does not answer")
    if said[:1] != b"2":
        raise refused_by_proxy(url, proxy, said[:80].decode("ascii", "replace"))


def _left_s(until: float) -> float:
    """Return the seconds until `until`. Raises TimeoutError if it has passed."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left


def _port(address: SplitResult) -> int:
    return address.port or (443 if is_encrypted(address.scheme) else 80)
