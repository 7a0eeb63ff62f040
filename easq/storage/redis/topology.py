"""Finds the primaries: the server of the URL, the one that Sentinels name, or each primary of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from easq.storage.redis.connection import DEADLINE_S, NotReady, PipelinedConnection, show
from easq.storage.redis.driver import Command, ConnectionLost, ErrorReply, RedisConnection, Reply
from easq.storage.redis.url import RedisUrl


@dataclass(frozen=True, slots=True)
class Primary:
    """A server, and its slots of a Cluster as pairs of first and last; none elsewhere."""

    host: str
    port: int
    slots: tuple[tuple[int, int], ...] = ()


class Topology:
    """Finds the primaries, each time anew."""

    def __init__(self, url: RedisUrl) -> None:
        self._url = url
        #: nodes to ask; the one that answered last is the first
        self._asked = list(url.nodes)

    async def find(self) -> tuple[Primary, ...]:
        """Return the present primaries. Raises StorageError; NotReady if that may change soon."""
        if self._url.kind == "sentinel":
            return await self._from_sentinels()
        if self._url.kind == "cluster":
            return await self._from_cluster()
        return tuple(Primary(host, port) for host, port in self._url.nodes) or (Primary("", 0),)

    async def _from_sentinels(self) -> tuple[Primary, ...]:
        service = self._url.service
        problems: list[str] = []
        for node in list(self._asked):
            reply = await self._ask(node, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service), problems)
            if isinstance(reply, list):
                self._asked.remove(node)
                self._asked.insert(0, node)
                return (Primary(reply[0].decode(), int(reply[1])),)
        why = "; ".join(problems) or f"they know no service {service!r}"
        raise NotReady(f"no Sentinel names the primary: {why}")

    async def _from_cluster(self) -> tuple[Primary, ...]:
        problems: list[str] = []
        for node in dict.fromkeys((*self._asked, *self._url.nodes)):
            reply = await self._ask(node, ("CLUSTER", "SLOTS"), problems)
            if reply and (primaries := _parse_slots(reply, node[0])):
                self._asked = [(one.host, one.port) for one in primaries]
                return primaries
        raise NotReady(f"no node knows the Cluster's slots: {'; '.join(problems)}")

    async def _ask(self, node: tuple[str, int], command: Command, problems: list[str]) -> Reply:
        """Return the reply of one node, over a connection for this alone; None with a new line in `problems` if there
        is none.

        Raises StorageError when asking again would not help.
        """
        is_sentinel = self._url.kind == "sentinel"
        driver = RedisConnection(self._url, *node, connect_timeout_s=DEADLINE_S, sentinel=is_sentinel)
        connection = PipelinedConnection(driver, show(*node))
        try:
            await connection.open()
            (reply,) = await connection.ask([command])
            if isinstance(reply, ErrorReply):
                raise connection.refused(reply)
        except ConnectionLost as error:
            problems.append(f"{connection.name}: {error}")
            return None
        except NotReady as error:
            problems.append(error.message)
            return None
        finally:
            await connection.close()
        return reply


def _parse_slots(reply: Reply, asked: str) -> tuple[Primary, ...]:
    """Return the primaries of an answer to CLUSTER SLOTS. A node without a name is the one that was asked."""
    found: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for first, last, (host, port, *_), *_ in reply:
        name = host.decode() if host else asked
        if name != "?":
            found.setdefault((name, port), []).append((first, last))
    return tuple(Primary(host, port, tuple(sorted(slots))) for (host, port), slots in sorted(found.items()))


def slot_table(primaries: Sequence[Primary]) -> list[int]:
    """Return for each slot the number of its primary, -1 for none."""
    table = [-1] * 16_384
    for number, primary in enumerate(primaries):
        for first, last in primary.slots:
            table[first : last + 1] = [number] * (last + 1 - first)
    return table
