"""The other ways to reach a Redis: over TLS, as a user who may do little, and as a Cluster that changes under load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from easq.errors import Exit
from tests.conftest import MakeRedis, Serve
from tests.reliability.fleet import SEED, Fleet, Nemesis, Record, run
from tests.support.cluster import SETTLED_S, SHARDS, SLOTS, RedisCluster, join
from tests.support.process import run_to_the_end
from tests.support.redis import RedisServer, free_port
from tests.support.waiting import eventually
from tests.support.websocket import watch

pytestmark = pytest.mark.long

REDIS_PAGE = (Path(__file__).resolve().parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")


def test_as_the_user_of_the_readme(serve: Serve, make_redis: MakeRedis) -> None:
    """The permissions in docs/redis.md are enough for every operation: Redis denies no command."""
    (rules,) = re.findall(r"^user easq (.*)$", REDIS_PAGE, re.MULTILINE)
    redis = make_redis()
    redis.ask("ACL", "SETUSER", "easq", "reset", *rules.replace("PASSWORD", "secret").split())
    service = serve(storage=f"redis://easq:secret@127.0.0.1:{redis.port}")
    stream = service.stream().as_consumer("u")
    for _ in range(5):
        stream.put(requestId="r")
    assert stream.attributes()["meta.durability"] == "redis-fsync"
    assert [item.index for item in stream.get(requestId="r", _auto_delete_="true")] == [1]
    with watch(stream, _window_=3) as watching:
        assert watching.indexes(3) == [2, 3, 4]
        assert stream.commit(2).header("X-Easq-Committed") == "1"
        assert stream.negative(3).status == 200
        assert stream.delete(4).status == 200
        assert stream.ask("GET", (), None, _search_="true", _index_=3).status == 200
    assert stream.truncate(99).status == 200
    assert stream.length() == 0
    assert service.terminate() == 0, service.log.read_text()
    assert "secret" not in service.log.read_text()
    with redis.client() as client:
        assert client.acl_log() == []


def test_over_tls_with_an_authority_of_ones_own(
    serve: Serve, make_redis: MakeRedis, certificate: Path, tmp_path: Path
) -> None:
    """The certificate is checked against the authority that the URL names, and against no other."""
    port = free_port()
    make_redis(
        tls_port=str(port),
        tls_cert_file=str(certificate),
        tls_key_file=str(certificate),
        tls_ca_cert_file=str(certificate),
        tls_auth_clients="no",
    )
    url = f"rediss://127.0.0.1:{port}"
    service = serve(storage=f"{url}?ssl_ca_certs={certificate}")
    stream = service.stream().as_consumer("u")
    with watch(stream) as watching:
        assert stream.put() == 1
        assert watching.indexes(1) == [1]
    (tmp_path / "refused").mkdir()
    refused = run_to_the_end(tmp_path / "refused", url)
    assert refused.returncode == Exit.STORAGE
    assert "certificate" in refused.stderr.lower()


def test_a_cluster_over_tls(serve: Serve, make_redis: MakeRedis, certificate: Path) -> None:
    """Its nodes name each other's ports for TLS, and queues work on all of them."""

    def node() -> RedisServer:
        return make_redis(
            cluster_enabled="yes",
            tls_cluster="yes",
            tls_replication="yes",
            tls_port=str(free_port()),
            tls_cert_file=str(certificate),
            tls_key_file=str(certificate),
            tls_ca_cert_file=str(certificate),
            tls_auth_clients="no",
        )

    one, other = node(), node()
    join(one, other, boundary=SLOTS // 2)
    queues = [f"q{number}" for number in range(8)]
    names = [option for queue in queues for option in ("--queue", queue)]
    url = f"rediss+cluster://127.0.0.1:{one.options['tls-port']}?ssl_ca_certs={certificate}"
    service = serve(*names, storage=url)
    for queue in queues:
        stream = service.stream(queue).as_consumer("u")
        with watch(stream) as watching:
            assert stream.put() == 1
            assert watching.indexes(1) == [1]
            assert stream.commit(1).header("X-Easq-Committed") == "1"
    assert all(node.ask("DBSIZE") for node in (one, other))
    assert service.terminate() == 0, service.log.read_text()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    made = RedisCluster(tmp_path / "cluster")
    try:
        made.start()
        yield made
    finally:
        made.kill()


def test_nothing_is_lost_when_a_slot_moves_and_a_primary_is_killed(
    serve: Serve, cluster: RedisCluster, tmp_path: Path, record_property: Record
) -> None:
    """With `--wait-replicas 1`, under load, on three primaries with a replica each."""
    options = ("--leave-grace", "500ms", "--wait-replicas", "1")
    servers = [serve("--port", str(free_port()), *options, storage=cluster.url) for _ in range(2)]
    key = "{qservice}"

    def course(nemesis: Nemesis) -> None:
        nemesis.peace()
        before = cluster.primary_of(key)
        target = next(node for node in cluster.nodes[:SHARDS] if node is not before)
        with nemesis.fault("move", "moved", "redis"):
            cluster.move(key, target)
        nemesis.until_all_put(SETTLED_S)
        nemesis.peace()
        with nemesis.fault("kill", "restart", "redis"):
            target.kill()
            eventually(lambda: cluster.primary_of(key) is not target, within_s=SETTLED_S)
            target.start()
            eventually(cluster.is_whole, within_s=SETTLED_S)
        nemesis.until_all_put(SETTLED_S)
        nemesis.peace()

    fleet = Fleet(servers)
    outcome = run(fleet, tmp_path / "oplog", course, SEED).record(record_property)
    shown = f"{outcome.violations[:5]}\n{outcome.figures}\n{fleet.logs()}"
    assert outcome.violations == [], shown
    assert set(outcome.left) == {0}, shown
