"""The state that a Redis server reports, and a check whether the server can store a queue. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from easq.errors import StorageError

#: the oldest Redis that has all commands that are used
OLDEST = (7, 0)

#: seconds without a report after which a replica does not follow; a live one reports each second
_MOST_LAG_S = 2
_REPLICA = re.compile(r"slave[0-9]+")
#: the only maxmemory-policy with which Redis never deletes acknowledged items, and how to set it
SAFE_POLICY = "noeviction"
MEND_POLICY = f"set it: redis-cli CONFIG SET maxmemory-policy {SAFE_POLICY}, and in redis.conf"
#: the words for the durability of an acknowledged put, the weakest first
_WORDS = ("redis-memory", "redis-everysec", "redis-fsync")


def evicts(policy: str) -> str:
    """Return the error message for a `policy` other than SAFE_POLICY."""
    return f"maxmemory-policy {policy} lets Redis delete items when memory is full"


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The state of a server. Two with the same `identity` are one server that was not restarted."""

    version: tuple[int, ...]
    identity: str
    is_primary: bool
    is_loading: bool
    policy: str
    durability: str
    is_clustered: bool
    #: number of replicas that follow
    replicas: int
    #: keys evicted since it was started
    evicted: int = 0

    def check(self, name: str) -> None:
        """Raise StorageError, with `name` in its message, when this server cannot store a queue."""
        if self.version < OLDEST:
            raise StorageError(
                f"{name}: Redis {'.'.join(map(str, self.version))} is too old",
                hint=f"use {'.'.join(map(str, OLDEST))} or later",
            )
        if self.policy != SAFE_POLICY:
            raise StorageError(f"{name}: {evicts(self.policy)}", hint=MEND_POLICY)


def parse_info(info: bytes, config: Sequence[bytes] | None) -> ServerInfo:
    """Return the state. `info` is the reply to INFO, `config` the one to CONFIG GET, None if it is forbidden."""
    lines = (line.partition(":") for line in info.decode("utf-8", "replace").splitlines())
    said = {name: value for name, colon, value in lines if colon}
    words = [word.decode("utf-8", "replace") for word in config or ()]
    settings = dict(zip(words[::2], words[1::2], strict=True))
    return ServerInfo(
        tuple(int(part) for part in said.get("redis_version", "0").split(".")[:2] if part.isdigit()),
        f"{said.get('run_id', '')} {said.get('master_replid', '')}",
        said.get("role") == "master",
        said.get("loading", "0") != "0",
        said.get("maxmemory_policy", SAFE_POLICY),
        _durability(said, settings),
        said.get("cluster_enabled") == "1",
        sum(map(_follows, (said[name] for name in said if _REPLICA.fullmatch(name)))),
        int(said.get("evicted_keys", "0")),
    )


def _follows(line: str) -> bool:
    """Return whether the described replica has all earlier writes, and gets new ones."""
    about = dict(part.partition("=")[::2] for part in line.split(","))
    lag = about.get("lag", "")
    return about.get("state") == "online" and lag.isdecimal() and int(lag) <= _MOST_LAG_S


def _durability(said: Mapping[str, str], settings: Mapping[str, str]) -> str:
    appends = settings.get("appendonly", "yes" if said.get("aof_enabled") == "1" else "no")
    if appends != "yes":
        return "redis-memory"
    if settings.get("no-appendfsync-on-rewrite") == "yes":
        return "redis-memory"  # nothing is synced during a rewrite, whatever appendfsync is
    # where CONFIG is forbidden nobody knows how often Redis syncs: the weaker word
    return {"always": "redis-fsync", "no": "redis-memory"}.get(
        settings.get("appendfsync", ""), "redis-everysec"
    )


def weakest(servers: Iterable[ServerInfo]) -> str:
    """Return the word for the durability that all of the servers have."""
    return min((one.durability for one in servers), key=_WORDS.index)
