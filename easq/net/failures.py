"""Errors of connections, each with a message of one line."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import urlsplit

from easq.errors import (
    ConfigError,
    EasqError,
    NotAQueueService,
    ServerError,
    Unavailable,
    Unreachable,
    UpgradeRequired,
    UsageError,
)
from easq.net.url import shown
from easq.protocol.replies import Reply, read_error

_PROXY_HINT = "see HTTP_PROXY and NO_PROXY"


class Unconnected(Unreachable):
    """No connection could be made: nothing of the request was sent."""

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int | None = None,
        lasting: bool = False,
        timed_out: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, status=status)
        #: another attempt cannot succeed: the name does not exist, the certificate is not trusted
        self.lasting = lasting
        #: the time limit was reached; no other reason is known
        self.timed_out = timed_out


class Unanswered(Unreachable):
    """A request was sent, and its answer was not complete in time."""


def had_no_effect(error: EasqError) -> bool:
    """Return whether the request that failed with `error` certainly had no effect."""
    return not isinstance(error, ServerError | Unreachable) or isinstance(error, Unavailable | Unconnected)


def last_known(error: EasqError, before: EasqError | None) -> EasqError:
    """Return the error to report when the last attempt failed with `error`, and the one before with `before`.

    A timeout of the last attempt says less than an earlier refused connection.
    """
    if isinstance(error, Unconnected) and isinstance(before, Unconnected):
        return before if error.timed_out and not before.timed_out else error
    return error


class Closed(Unreachable):
    """The other side ended a WebSocket connection with a close frame."""

    def __init__(self, address: str, code: int, reason: str) -> None:
        said = f"{code} {reason!a}" if reason else str(code)
        super().__init__(f"{address} closed the connection ({said})")
        self.code, self.reason = code, reason


def not_upgraded(reply: Reply, address: str, otherwise: str) -> EasqError:
    """Return the error for a reply to the handshake of a WebSocket other than 101.

    Args:
        otherwise: added to the hint if a proxy seems not to support WebSocket.
    """
    hint = f"configure the proxy to pass on Upgrade and Connection{otherwise}"
    if 200 <= reply.status < 300:
        return NotAQueueService(
            f"{address} answered {reply.status} where a WebSocket begins with 101",
            hint=f"check the url, or {hint}",
        )
    error = read_error(reply)
    if isinstance(error, UpgradeRequired):
        error.hint = hint
    return error


class Incomplete(Unreachable):
    """The connection ended in the middle of an answer."""


def unanswered(url: str, limit_s: float) -> Unanswered:
    """Return the error for an answer that was not complete within `limit_s` seconds."""
    message = f"no complete answer from {shown(url)} within {round(limit_s, 1):g} s"
    return Unanswered(message, hint="raise --request-timeout if it is slow")


def lost(
    url: str, before: str = "the answer was complete", kind: type[Unreachable] = Unreachable
) -> Unreachable:
    """Return the error for a connection that ended too early."""
    return kind(f"connection to {shown(url)} lost before {before}")


def not_http(url: str, said: object) -> NotAQueueService:
    """Return the error for an answer that is not HTTP; `said` is the reason."""
    message = f"{shown(url)} does not answer in HTTP: {said}"
    return NotAQueueService(message, hint="check host and port of the url")


def unusable(url: str, said: object) -> ConfigError:
    """Return the error for an invalid url; `said` is the reason."""
    return ConfigError(f"the url {shown(url)} cannot be used: {said}")


def unsendable(url: str, said: object) -> UsageError:
    """Return the error for a request that cannot be sent; `said` is the reason."""
    return UsageError(f"the request to {shown(url)} cannot be sent: {said}")


def refused_by_proxy(url: str, proxy: str, said: str) -> Unconnected:
    """Return the error for a `proxy` that did not connect to `url`; `said` is status and reason of its answer."""
    asks = said.startswith("407")
    return Unconnected(
        f"the proxy {shown(proxy)} on the way to {shown(url)} refused: {said}",
        hint="HTTP_PROXY=http://USER:PASSWORD@HOST:PORT names a user" if asks else _PROXY_HINT,
        lasting=asks,
    )


def unconnected(error: BaseException, url: str, proxy: str | None = None) -> Unconnected:
    """Return the error for a failed connection to `url`, through `proxy`. It reports the innermost known cause."""
    address = first = shown(url)
    if proxy is not None:
        address, first = (
            f"{address} through {shown(proxy)}",
            f"the proxy {shown(proxy)} on the way to {address}",
        )
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message or cause.reason
            hint = "give the CA with --cacert, or check the host name in the url"
            return Unconnected(f"TLS with {address} failed: {reason}", hint=hint, lasting=True)
        if isinstance(cause, ssl.SSLError):
            reason = (cause.reason or str(cause)).replace("_", " ").lower()
            hint = "is it https that this port speaks?"
            if url.startswith("wss:"):
                hint = "check ws/wss and the port"
            return Unconnected(f"TLS with {address} failed: {reason}", hint=hint, lasting=True)
        if isinstance(cause, socket.gaierror):
            lasting = cause.errno != socket.EAI_AGAIN
            host = urlsplit(shown(proxy or url)).hostname
            text = f"the name {host} of {first} does not resolve"
            hint = _PROXY_HINT if proxy else "check the host in the url"
            return Unconnected(text, hint=hint, lasting=lasting)
        if isinstance(cause, ConnectionRefusedError):
            hint = _PROXY_HINT if proxy else "is the service running there, and is the port right?"
            return Unconnected(f"connection to {first} refused", hint=hint)
        if isinstance(cause, TimeoutError):
            break
        if isinstance(cause, OSError) and cause.strerror:
            return Unconnected(f"cannot connect to {first}: {cause.strerror.lower()}")
    hint = _PROXY_HINT if proxy else "check host, port and firewall, or raise --connect-timeout"
    return Unconnected(f"cannot connect to {first}: no answer in time", hint=hint, timed_out=True)


def connect_reason(error: BaseException) -> tuple[str, bool]:
    """Return why a connection failed, in a few words, and whether it failed in TLS."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return cause.strerror or str(cause), True
        if isinstance(cause, OSError) and not isinstance(cause, TimeoutError):
            number = cause.errno or 0
            if not isinstance(cause, socket.gaierror) and number in errno.errorcode:
                return os.strerror(number).lower(), False
            return cause.strerror or str(cause), False
    return "no answer in time", False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Return `error` and its causes, the innermost first."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return reversed(chain)
