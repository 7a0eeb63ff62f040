"""The local state of one stream at Redis, and the settings for its scripts."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from easq.protocol.operations import BUSY, SHUTDOWN
from easq.storage.base import DeadLetterPolicy, Timing
from easq.storage.rules.failures import BUSY_FIRST_MS, BUSY_MOST_MS, BUSY_STATUS, FREE_LOSSES
from easq.storage.rules.idempotency import REMEMBER_KEYS, REMEMBER_S

log = logging.getLogger(__name__)

#: schema version of the keys that the scripts read and write. Version 1, without the filters of groups, is accepted and
#: converted; others are refused
SCHEMA = "2"
#: seconds without a heartbeat after which a server is gone: others get the items of its consumers
LEASE_S = 5.0
#: prefix of the channel of a server, which ends in the name of the server
HINT = "easq:hint:"
#: how far indexes and connection numbers are raised when Redis may have lost some that were used
RAISE = 1_000_000
#: most entries that one call of a script examines
BUDGET = 1000

Argument: TypeAlias = str | bytes | int
Reply: TypeAlias = Any


class ScriptClient(Protocol):
    """The interface of `RedisClient`: it calls scripts."""

    durability: str

    async def connect(self, prepare: Callable[[bool], Awaitable[None]]) -> None: ...

    async def call(
        self, script: str, keys: Sequence[str], args: Sequence[Argument], *, replicated: bool = True
    ) -> Reply: ...

    async def listen(self, channel: str, heard: Callable[[bytes], None]) -> None: ...

    def is_up(self) -> bool: ...

    async def close(self) -> None: ...


def key_prefix(stream: str) -> str:
    """Return the beginning of every key of the stream. The streams of a queue are in one slot of a Cluster."""
    name = re.split("[/#]", stream, maxsplit=1)[0]
    return f"easq:{{{name}}}{stream[len(name) :]}:"


@dataclass(slots=True, eq=False)
class LocalSession:
    """A connection at this server. A fetch without an answer is repeated under the same token."""

    number: int
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    token: int = 1
    #: `RemoteStream.lapses` at the last fetch, or when it was checked which items of that are still pending
    lapses: int = 0
    #: items of the last fetch that are still pending at the connection; None: the lease has not expired since
    still_pending: set[int] | None = None


@dataclass(slots=True, eq=False)
class RemoteStream:
    """The local state of a stream at Redis: the highest numbers that this server has seen, its connections and its
    claims.
    """

    name: str
    settings: str
    dead_letters: DeadLetterPolicy | None
    sessions: dict[int, LocalSession] = field(default_factory=dict)
    #: highest index and connection number that this server has seen
    last: int = 0
    number: int = 0
    epoch: int = 0
    #: number of puts and releases ever, at the last answer
    arrivals: int = 0
    #: number of puts and releases already announced to the long polls here
    announced: int = 0
    #: the same number at the time of the last read, until a wait follows the read
    read_at: int | None = None
    #: until when other servers announce new items to this one
    listed_until: float = 0.0
    #: when this server last renewed its lease here
    renewed_at: float = 0.0
    #: number of renewals that were so late that the lease may have expired
    lapses: int = 0
    #: connections being added; and those still to be removed (and whether lost)
    attaching: int = 0
    leaving: dict[int, bool] = field(default_factory=dict)
    #: the claims of this server, each under a name of its own: those being made, and index -> name of the others
    taking: set[str] = field(default_factory=set)
    claims: dict[int, str] = field(default_factory=dict)
    #: calls that still have to end claims: script and arguments, the name of the claim first; in order, without values
    unfinished: dict[tuple[str, tuple[str, ...]], None] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    #: whether this server ever had a connection or a claim on this stream
    is_used: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether this server has connections, claims or calls here, so that its lease has to be renewed."""
        return bool(
            self.sessions or self.attaching or self.leaving or self.taking or self.claims or self.unfinished
        )

    @property
    def prefix(self) -> str:
        return key_prefix(self.name)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys that each call declares.

        The second one never exists. While the slot moves to another node of a Cluster, a script would fail at the first
        key that is missing there, with a part of its work done; with a missing declared key Redis does not begin it.
        """
        return f"{self.prefix}meta", f"{self.prefix}none"

    def saw(self, index: int) -> None:
        """Record an index of the stream."""
        self.last = max(self.last, index)

    def wake_all(self) -> None:
        """Wake every connection, so that it fetches."""
        for session in self.sessions.values():
            session.wakeup.set()


def settings_of(timing: Timing, dead_letters: DeadLetterPolicy | None, lease_s: float) -> str:
    """Return the settings for the scripts as JSON; times are in milliseconds."""
    return json.dumps(
        {
            "schema": SCHEMA,
            "budget": BUDGET,
            "hint": HINT,
            "raise": RAISE,
            "lease": round(lease_s * 1000),
            "grace": round(timing.leave_grace_s * 1000),
            "retention": round(timing.group_retention_s * 1000),
            "forget": round(timing.forget_s * 1000),
            "backoff": [round(delay * 1000) for delay in timing.backoff_s],
            "failures": dead_letters.max_failures if dead_letters is not None else 0,
            "shutdown": SHUTDOWN,
            "busy": BUSY,
            "busy_status": BUSY_STATUS,
            "busy_first": BUSY_FIRST_MS,
            "busy_most": BUSY_MOST_MS,
            "busy_limit": round(timing.busy_limit_s * 1000),
            "free_losses": FREE_LOSSES,
            "remember": round(REMEMBER_S * 1000),
            "remember_keys": REMEMBER_KEYS,
        },
        separators=(",", ":"),
    )
