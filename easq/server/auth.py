"""Who may call, and from where: token, Host, Origin."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from easq.errors import AuthFailed, Forbidden
from easq.protocol.signatures import is_signed

#: an IPv6 address in brackets, or a name or IPv4 address, then an optional port (RFC 9110, section 7.2)
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?)\]|([A-Za-z0-9._-]+))(?::([0-9]{0,5}))?")
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Guard:
    """Access rules of one service. An empty token lets everyone in; `*` among the hosts allows any Host."""

    token: str
    hosts: frozenset[str]
    any_address: bool

    @classmethod
    def make(cls, *, bound: str, token: str, allowed_hosts: Sequence[str]) -> Guard:
        """Return rules that accept loopback names, the bound address and `allowed_hosts`.

        A service that is bound to all addresses accepts any literal IP address too.
        """
        named = {_canonical_host(host) for host in allowed_hosts}
        own = set() if is_unspecified(bound) else {_canonical_host(bound)}
        return cls(token, frozenset(_LOOPBACK_NAMES | own | named), is_unspecified(bound))

    def check_token(self, given: str) -> None:
        """Raise AuthFailed unless `given` is the token. The comparison takes constant time."""
        if self.token and not hmac.compare_digest(given.encode(errors="replace"), self.token.encode()):
            raise AuthFailed("the token is wrong" if given else "a token is needed")

    def is_signature(self, given: str) -> bool:
        """Return whether `given`, the value of Authorization, is a signature and not the token itself."""
        return bool(self.token) and given.startswith("EAS ")

    def check_call(self, headers: Mapping[str, str], target: str, method: str = "POST") -> None:
        """Raise AuthFailed unless a call of a model has the token or a signature made with it.

        The token stands in Authorization, alone or after `Bearer`, or in X-Auth-Token, as with ModelArts. Only a POST
        and a WebSocket handshake can be signed.
        """
        given = (headers.get("Authorization") or headers.get("X-Auth-Token") or "").strip()
        scheme, _, rest = given.partition(" ")
        if self.token and scheme == "EAS" and rest:
            if method != "POST" and "Upgrade" not in headers:
                raise AuthFailed("only a POST can be signed: send the token instead")
            if not is_signed(self.token, headers, target):
                raise AuthFailed("the signature is wrong")
            return
        self.check_token(rest.strip() if scheme.lower() == "bearer" else given)

    def check_source(self, headers: Mapping[str, str], authority: str | None = None) -> None:
        """Raise Forbidden for a Host that is not served here (421), and for a web page of another origin.

        A page whose name was rebound to this address (DNS rebinding) sends its own Host. A page of another site sends
        its Origin, or `Sec-Fetch-Site: cross-site` for a picture or a link. A page at another port of this machine
        sends `same-site`. A get removes items, so it is refused like a put. The Origin of the Python SDK is scheme and
        host; the Origin of the Go SDK is the whole address in lower case.

        Args:
            authority: the authority of a request target in absolute form; it is checked like Host.
        """
        host = _parse_host(headers.get("Host", ""))
        if not self._serves(host) or not (authority is None or self._serves(_parse_host(authority))):
            raise Forbidden(
                "this Host is not served here", hint="start easq serve with --allowed-host", status=421
            )
        if headers.get("Sec-Fetch-Site", "").lower() in {"cross-site", "same-site"}:
            raise Forbidden("requests from other sites are not served")
        origin = headers.get("Origin")
        if origin is not None and not self._is_own(origin, host):
            raise Forbidden("this Origin is not served here")

    def _serves(self, host: _Host | None) -> bool:
        if "*" in self.hosts:
            return True
        return host is not None and (host.name in self.hosts or (self.any_address and _is_address(host.name)))

    def _is_own(self, origin: str, host: _Host | None) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        sender = _parse_host(parts.netloc)
        if parts.scheme not in {"http", "https", "ws", "wss"} or sender is None:
            return False
        default = 443 if parts.scheme in {"https", "wss"} else 80
        same = host is not None and (sender.name, sender.port or default) == (host.name, host.port or default)
        return same or "*" in self.hosts


def is_loopback(host: str) -> bool:
    """Return whether `host` is a loopback address or name: no other machine can reach it."""
    name = _canonical_host(host)
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def is_unspecified(host: str) -> bool:
    """Return whether `host` means all addresses of the machine, such as 0.0.0.0."""
    name = _canonical_host(host)
    return not name or (_is_address(name) and ipaddress.ip_address(name).is_unspecified)


@dataclass(frozen=True, slots=True)
class _Host:
    """A name or address as `_canonical_host` returns it, and the port; None if there was none."""

    name: str
    port: int | None


@lru_cache(maxsize=256)
def _parse_host(text: str) -> _Host | None:
    """Return the host of a Host header or of an Origin's authority; None when the text is malformed."""
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    inside, name, port = found.groups()
    if inside is not None and not (_is_address(inside) and ":" in inside):
        return None
    return _Host(_canonical_host(inside or name), int(port) if port else None)


@lru_cache(maxsize=256)
def _canonical_host(host: str) -> str:
    name = host.strip("[]").removesuffix(".").lower()
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
