"""Storage URLs that name a Redis: one server, what Sentinels watch over, or a Cluster. No I/O.

redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]                          rediss:// with TLS
unix://[[USER]:PASSWORD@]/PATH[?db=DB]
redis+sentinel://[[USER]:PASSWORD@]HOST:PORT,HOST:PORT/SERVICE[/DB]   rediss+sentinel:// with TLS
redis+cluster://[[USER]:PASSWORD@]HOST:PORT,HOST:PORT                 rediss+cluster:// with TLS
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qsl, unquote

from easq.errors import UsageError

#: scheme -> how the primary is found, and whether over TLS
_SCHEMES: Mapping[str, tuple[Literal["server", "sentinel", "cluster"], bool]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("server", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
#: a host with an optional port; empty before the path of a socket
_NODE = re.compile(r"(\[[^]]*\]|[^:\[\]]*)(:\d{0,5})?")
#: ports where the URL names none
_PORT, _SENTINEL_PORT = 6379, 26379


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """The address of a Redis. `shown` is the URL without secrets."""

    shown: str
    kind: Literal["server", "sentinel", "cluster"]
    nodes: tuple[tuple[str, int], ...] = ()
    path: str = ""
    tls: bool = False
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    db: int = 0
    service: str = ""
    #: the options of the query, named as in redis-py: ssl_ca_certs ...
    options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach it without a secret."""
        if self.password or self.path or "ssl_certfile" in self.options:
            return False
        return not all(_is_loopback(host) for host, _ in self.nodes)


def is_redis_url(url: str) -> bool:
    """Return whether the URL names a Redis."""
    scheme, slashes, _ = url.partition("://")
    return bool(slashes) and scheme in _SCHEMES


def shown_url(url: str) -> str:
    """Return any storage URL with its password masked and its query removed."""
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, colon, rest = url.partition(":")
        known = scheme in ("sqlite", "memory") or "@" not in rest
        return url if known else f"{scheme}:****@{rest.rpartition('@')[2]}"
    before, _, query = rest.partition("?")
    if "@" not in before and "@" in query and not _are_nodes(before.partition("/")[0]):
        # a password with a `?` in it
        before = f":@{query.rpartition('@')[2]}"
    credentials, at, place = before.rpartition("@")
    if not at:
        return f"{scheme}://{_shown_place(place)}"
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{':****' if colon else ''}@{place}"


def parse_redis_url(url: str) -> RedisUrl:
    """Return the parts of `url`. Raises UsageError, whose message never contains a password."""
    scheme, _, rest = url.partition("://")
    shown = shown_url(url)
    if not is_redis_url(url) or not rest:
        raise UsageError(f"{shown!r} names no Redis", hint="write it as redis://HOST:PORT")
    kind, tls = _SCHEMES[scheme]
    rest, _, query = rest.partition("?")
    credentials, _, place = rest.rpartition("@")
    username, _, password = credentials.partition(":")
    hosts, _, path = place.partition("/")
    options = _options(query, kind, tls=tls, shown=shown)
    service = ""
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise UsageError(
                f"{shown}: no name of a service", hint="write it as redis+sentinel://HOST:PORT/SERVICE"
            )
    db = options.pop("db", "") if scheme == "unix" else path
    if scheme == "unix":
        if hosts or not path:
            raise UsageError(f"{shown}: no path of a socket", hint="write it as unix:///run/redis.sock")
    elif kind == "cluster" and db not in {"", "0"}:
        raise UsageError(f"{shown}: a Cluster has one database", hint=f"leave /{db} out")
    if not (db == "" or (db.isascii() and db.isdigit() and len(db) <= 9)):
        raise UsageError(f"{shown}: the database is a number, got {db!r}")
    many = kind != "server"
    return RedisUrl(
        shown,
        kind,
        ()
        if scheme == "unix"
        else _nodes(hosts, shown, port=_SENTINEL_PORT if kind == "sentinel" else _PORT, many=many),
        "/" + unquote(path) if scheme == "unix" else "",
        tls,
        unquote(username),
        unquote(password),
        int(db or 0),
        unquote(service),
        options,
    )


def _shown_place(place: str) -> str:
    """Return `place` (hosts and a path) for messages. An invalid port is masked: it may be a password."""
    hosts, slash, path = place.partition("/")
    if _are_nodes(hosts):
        return place
    return f"{hosts.partition(':')[0]}:****{slash}{path}"


def _are_nodes(hosts: str) -> bool:
    return all(_NODE.fullmatch(part) and not part.startswith(":") for part in hosts.split(","))


def _nodes(hosts: str, shown: str, *, port: int, many: bool) -> tuple[tuple[str, int], ...]:
    parts = hosts.split(",")
    if len(parts) > 1 and not many:
        raise UsageError(
            f"{shown}: one server, got {len(parts)}",
            hint="use redis+sentinel:// or redis+cluster:// for several",
        )
    return tuple(_node(part, shown, port) for part in parts)


def _node(text: str, shown: str, port: int) -> tuple[str, int]:
    host, colon, number = text.rpartition(":")
    if text.startswith("[") and "]" in text:
        host, colon, number = text.partition("]")[0][1:], *text.partition("]")[2].partition(":")[1:]
    elif not colon:
        host, number = text, ""
    if not host or (colon and not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535)):
        shown_text = text if "@" in shown else _shown_place(text)
        raise UsageError(f"{shown}: {shown_text!r} is no HOST:PORT")
    return unquote(host), int(number or port)


def _options(query: str, kind: str, *, tls: bool, shown: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = (_TLS_OPTIONS if tls else set()) | (_SENTINEL_OPTIONS if kind == "sentinel" else set())
    if shown.startswith("unix:"):
        known = {"db"}
    for name in options:
        if name not in known:
            hint = f"what it takes: {', '.join(sorted(known))}" if known else "it takes none"
            if "@" in query:  # probably a password with a `?` in it: `name` would show a part of it
                raise UsageError(
                    f"{shown}: unknown option in the query", hint="write a ? in a password as %3F"
                )
            raise UsageError(f"{shown}: unknown option {name!r} in the query", hint=hint)
    return options


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
