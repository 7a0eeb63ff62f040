"""One stream at Redis as this server knows it: how its scripts are called, and what an answer asks for besides."""

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
#: a server that was not heard from so long is gone, in seconds: what its consumers had goes to others
LEASE_S = 5.0
#: what is published for a server comes in the channel of this name and its own
HINT = "easq:hint:"
#: how far indexes and connection numbers are raised when some may have been given that are not known any more
RAISE = 1_000_000
#: one call looks at so many entries at most
BUDGET = 1000

Argument: TypeAlias = str | bytes | int
Reply: TypeAlias = Any


class ScriptClient(Protocol):
    """What calls scripts: see `redis.RedisClient`."""

    durability: str

    async def connect(self, prepare: Callable[[bool], Awaitable[None]]) -> None: ...

    async def call(
        self, script: str, keys: Sequence[str], args: Sequence[Argument], *, replicated: bool = True
    ) -> Reply: ...

    async def listen(self, channel: str, heard: Callable[[bytes], None]) -> None: ...

    def is_up(self) -> bool: ...

    async def close(self) -> None: ...


def key_prefix(stream: str) -> str:
    """What every key of the stream begins with. A queue's streams are in one slot of a Cluster."""
    name = re.split("[/#]", stream, maxsplit=1)[0]
    return f"easq:{{{name}}}{stream[len(name) :]}:"


@dataclass(slots=True, eq=False)
class LocalSession:
    """A connection of this server. A fetch whose answer did not come is repeated under the same token."""

    number: int
    wakeup: asyncio.Event = field(default_factory=asyncio.Event)
    token: int = 1
    #: how often the lease may have expired until the last fetch, or until it was asked what of that is still there
    lapses: int = 0
    #: what of the last fetch is still pending at the connection; None: the lease has not expired since
    still_pending: set[int] | None = None


@dataclass(slots=True, eq=False)
class RemoteStream:
    """A stream, with what this server has seen of it and has going on in it."""

    name: str
    settings: str
    dead_letters: DeadLetterPolicy | None
    sessions: dict[int, LocalSession] = field(default_factory=dict)
    #: the highest index, and connection number, that this server ever saw
    last: int = 0
    number: int = 0
    epoch: int = 0
    #: so many items had come at the last answer
    arrivals: int = 0
    #: so many items have come, by put or release, of which the readers here were told
    announced: int = 0
    #: and so many had come when the last read was made, until a wait follows it
    read_at: int | None = None
    #: until when other servers tell this one of items
    listed_until: float = 0.0
    #: when this server was last known to be alive at Redis
    renewed_at: float = 0.0
    #: how often it was renewed so late that others may have taken this server for gone
    lapses: int = 0
    #: connections being made; and those still to be given up (and whether lost)
    attaching: int = 0
    leaving: dict[int, bool] = field(default_factory=dict)
    #: the claims of this server, each under a name of its own: those being made, and of the others index -> name
    taking: set[str] = field(default_factory=set)
    claims: dict[int, str] = field(default_factory=dict)
    #: what is still to become of claims: scripts and their arguments, a claim's name first; in order, without values
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
        """What each call declares. The second is never there: while the slot moves to another node of a Cluster, a
        script would fail at the first key that it misses, with half of its work done; so Redis does not begin it.
        """
        return f"{self.prefix}meta", f"{self.prefix}none"

    def saw(self, index: int) -> None:
        """This index was given."""
        self.last = max(self.last, index)

    def wake_all(self) -> None:
        """Every connection looks."""
        for session in self.sessions.values():
            session.wakeup.set()


def settings_of(timing: Timing, dead_letters: DeadLetterPolicy | None, lease_s: float) -> str:
    """What the scripts are told in each call, in milliseconds where it is time."""
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
