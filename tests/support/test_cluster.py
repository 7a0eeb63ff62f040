"""The Cluster that tests start: keys stay when their slot moves, and when their primary is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cluster import SETTLED_S, SHARDS, RedisCluster
from tests.support.waiting import eventually


@pytest.mark.long
def test_a_slot_moves_and_a_replica_takes_over(tmp_path: Path) -> None:
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        first = cluster.primary_of("{q}:a")
        first.ask("SET", "{q}:a", "1")
        target = next(node for node in cluster.nodes[:SHARDS] if node is not first)
        cluster.move("{q}:a", target)
        assert cluster.primary_of("{q}:b") is target
        assert target.ask("GET", "{q}:a") == b"1"
        eventually(cluster.is_whole, within_s=SETTLED_S)
        target.kill()
        eventually(lambda: cluster.primary_of("{q}:a") not in {first, target}, within_s=SETTLED_S)
        assert cluster.primary_of("{q}:a").ask("GET", "{q}:a") == b"1"
    finally:
        cluster.kill()
