"""A Redis Cluster of three primaries and three replicas, all of them private."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import redis

from tests.support.redis import RedisServer, text_of
from tests.support.waiting import eventually

SLOTS, SHARDS = 16_384, 3
#: how long a node is not heard from until it is taken for dead; how long anything may take with it, in seconds
NODE_TIMEOUT_S, SETTLED_S = 2.0, 120.0


class RedisCluster:
    """Six nodes; `shards` slots are spread over the first three."""

    def __init__(self, folder: Path) -> None:
        timeout = {"cluster_node_timeout": str(round(NODE_TIMEOUT_S * 1000))}
        self.nodes = [
            RedisServer(folder / f"node{number}", cluster_enabled="yes", **timeout)
            for number in range(2 * SHARDS)
        ]

    @property
    def url(self) -> str:
        """What `easq serve --storage` takes."""
        return f"redis+cluster://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        """Every slot is served, and every primary has a replica that follows it."""
        for node in self.nodes:
            node.start()
        first, *others = self.nodes
        for node in others:
            first.ask("CLUSTER", "MEET", "127.0.0.1", node.port)
        eventually(
            lambda: all(_info(node)["cluster_known_nodes"] == "6" for node in self.nodes),
            within_s=SETTLED_S,
        )
        for number in range(SHARDS):
            begin, end = SLOTS * number // SHARDS, SLOTS * (number + 1) // SHARDS - 1
            self.nodes[number].ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
        for number in range(SHARDS):
            primary, replica = self.nodes[number], self.nodes[number + SHARDS]
            eventually(partial(_replicate, replica, self.identity(primary)), within_s=SETTLED_S)
        eventually(self.is_whole, within_s=SETTLED_S)

    def is_whole(self) -> bool:
        """Whether all nodes serve all slots, with a replica for each primary that is up to date."""
        running = [node for node in self.nodes if node.is_running]
        if any(_info(node)["cluster_state"] != "ok" for node in running):
            return False
        primaries = [node for node in running if node.role() == "master"]
        replicas = [node for node in running if node not in primaries]
        return len(primaries) == SHARDS and all(
            any(replica.follows(primary) for replica in replicas) for primary in primaries
        )

    def kill(self) -> None:
        """All nodes are gone."""
        for node in self.nodes:
            node.kill()

    def identity(self, node: RedisServer) -> str:
        """The name by which nodes know it."""
        return text_of(node.ask("CLUSTER", "MYID"))

    def primary_of(self, key: str) -> RedisServer:
        """The node that serves the key's slot now."""
        for line in self._nodes_as_seen():
            if "master" in line[2] and any(_has(part, self.slot(key)) for part in line[8:]):
                port = int(line[1].partition("@")[0].rpartition(":")[2])
                return next(node for node in self.nodes if node.port == port)
        raise AssertionError(f"nobody serves {key}")

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return int(str(self._any().ask("CLUSTER", "KEYSLOT", key)))

    def move(self, key: str, target: RedisServer) -> None:
        """The slot of `key`, with all keys in it, is moved to another primary as redis-cli does it."""
        slot, source = self.slot(key), self.primary_of(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.identity(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.identity(target))
        with source.client() as client:
            while keys := client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                client.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            if node.is_running and node.role() == "master":
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.identity(target))

    def _any(self) -> RedisServer:
        return next(node for node in self.nodes if node.is_running)

    def _nodes_as_seen(self) -> list[list[str]]:
        with self._any().client() as client:
            client.set_response_callback("CLUSTER NODES", lambda found, **_: found)
            found = text_of(client.execute_command("CLUSTER NODES"))
        return [line.split() for line in found.splitlines()]


def join(one: RedisServer, other: RedisServer, *, boundary: int) -> None:
    """A Cluster of the two, without replicas: the slots below `boundary` are the first one's, the rest the other's."""
    for node, begin, end in ((one, 0, boundary - 1), (other, boundary, SLOTS - 1)):
        if begin <= end:
            node.ask("CLUSTER", "ADDSLOTSRANGE", begin, end)
    other.ask("CLUSTER", "MEET", "127.0.0.1", one.options.get("tls-port", one.port))
    eventually(lambda: all(_info(node)["cluster_state"] == "ok" for node in (one, other)), within_s=SETTLED_S)


def _info(node: RedisServer) -> dict[str, str]:
    """What the node says of the Cluster; while it loads its data, that it does."""
    try:
        with node.client() as client:
            client.set_response_callback("CLUSTER INFO", lambda found, **_: found)
            found = text_of(client.execute_command("CLUSTER INFO"))
    except redis.BusyLoadingError:
        return {"cluster_state": "loading", "cluster_known_nodes": "0"}
    return dict(line.split(":", 1) for line in found.splitlines() if ":" in line)


def _replicate(replica: RedisServer, primary_id: str) -> bool:
    try:
        replica.ask("CLUSTER", "REPLICATE", primary_id)
    except redis.ResponseError:
        return False  # it has not heard of the primary, or of what that serves
    return True


def _has(part: str, slot: int) -> bool:
    """Whether a part of a CLUSTER NODES line, `5` or `0-5460`, holds the slot."""
    if part.startswith("["):
        return False
    begin, _, end = part.partition("-")
    return int(begin) <= slot <= int(end or begin)
