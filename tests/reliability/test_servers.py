"""Several `easq serve` on one Redis, under load, while servers and Redis are killed and held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeRedis, Serve
from tests.reliability.check import RULES_OF_A_FLEET, counts_grow
from tests.reliability.fleet import SEED, Course, Fleet, Nemesis, Outcome, Record, epochs, run
from tests.support.redis import free_port


def start_fleet(serve: Serve, make_redis: MakeRedis, *options: str, count: int = 3, **given: Any) -> Fleet:
    """`count` servers on a Redis of their own, each on a port that it has again after it was killed."""
    redis = make_redis()
    servers = [
        serve("--port", str(free_port()), "--leave-grace", "500ms", *options, storage=redis.url, **given)
        for _ in range(count)
    ]
    return Fleet(servers, redis)


def check(outcome: Outcome, fleet: Fleet, folder: Path, record: Record) -> None:
    """No promise was broken, many operations were done, and no item is left."""
    found = outcome.record(record).violations
    shown = f"{len(found)} violations, logs in {folder}: {found[:5]}\n{outcome.figures}\n{fleet.logs()}"
    assert found == [], shown
    assert set(outcome.left) == {0}, shown
    assert outcome.figures["puts acknowledged"] > 100, shown


def each_once(nemesis: Nemesis) -> None:
    """Every fault once, with short pauses; a server is stopped for longer than its lease."""
    nemesis.peace()
    nemesis.kill_a_server()
    nemesis.hold_a_server(6.5)
    nemesis.kill_redis()
    nemesis.peace()


def all_of_it(nemesis: Nemesis) -> None:
    """A server is killed twice and held for 15 s once, and Redis is killed twice."""
    for _ in range(2):
        nemesis.peace(2.0, 4.0)
        nemesis.kill_a_server()
        nemesis.peace(2.0, 4.0)
        nemesis.kill_redis()
    nemesis.peace(2.0, 4.0)
    nemesis.hold_a_server(15.0)
    nemesis.peace(5.0, 8.0)


@pytest.mark.parametrize("course", [each_once, pytest.param(all_of_it, marks=pytest.mark.long)])
def test_nothing_is_lost_reused_or_shared_when_servers_and_redis_are_killed_and_held(
    serve: Serve, make_redis: MakeRedis, tmp_path: Path, record_property: Record, course: Course
) -> None:
    """Three servers, 8 producers, half of them with keys, and two groups of 4 consumers, spread over all servers.

    No acknowledged put is lost in any group, no window is exceeded, no index is used twice or out of order, no item has
    two owners, counts of deliveries grow, and in the end nothing is left over. `EASQ_SEED` changes the course.
    """
    fleet = start_fleet(serve, make_redis)
    check(run(fleet, tmp_path / "oplog", course, SEED), fleet, tmp_path, record_property)


def hold_two(nemesis: Nemesis) -> None:
    """Servers are held for longer than their lease and the grace."""
    for _ in range(2):
        nemesis.peace(1.5, 2.5)
        nemesis.hold_a_server(7.5)


def kill_a_server_and_begin_anew(nemesis: Nemesis) -> None:
    """After the kill every consumer closes its connection, so that what the storage thinks it has comes again."""
    nemesis.kill_a_server()
    nemesis.send_consumers_away()
    nemesis.peace()
    nemesis.call_consumers_back()


@pytest.mark.long
@pytest.mark.parametrize(
    ("bug", "harm", "complaint"),
    [
        ("index-from-a-local-counter", Nemesis.peace, "reused: "),
        ("window-one-too-large", Nemesis.kill_a_server, "above the window: "),
        ("acknowledged-though-redis-did-not-answer", lambda nemesis: nemesis.hold_redis(2.5), "lost: "),
        ("commits-in-local-memory", kill_a_server_and_begin_anew, "back after its commit: "),
        ("pushes-without-checking-its-lease", hold_two, ("handed out after", "two owners: ")),
        ("sweep-does-not-release", Nemesis.kill_a_server, "not drained: "),
    ],
)
def test_servers_with_a_planted_bug_are_caught(
    serve: Serve,
    make_redis: MakeRedis,
    tmp_path: Path,
    bug: str,
    harm: Course,
    complaint: str | tuple[str, str],
) -> None:
    """The same load over servers that break one promise: the checker names that promise.

    What is under way at the moment of a fault is chance, so there are up to five courses.
    """

    def course(nemesis: Nemesis) -> None:
        nemesis.peace(1.0, 1.5)
        harm(nemesis)
        nemesis.peace()

    seen: list[Outcome] = []
    while not any(found.startswith(complaint) for outcome in seen for found in outcome.violations):
        assert len(seen) < 5, seen
        fleet = start_fleet(serve, make_redis, program=("tests.reliability.planted_servers", bug))
        number = len(seen)
        seen.append(run(fleet, tmp_path / f"oplog-{number}", course, SEED + number, drain_s=15.0))
        for server in fleet.servers:
            server.kill()


@pytest.mark.long
@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda nemesis: nemesis.hold_redis(3.0), id="redis is held"),
        pytest.param(lambda nemesis: nemesis.pause_clients(3.0), id="clients are paused"),
        pytest.param(lambda nemesis: nemesis.keep_redis_busy(3.0), id="a script keeps redis busy"),
    ],
)
def test_nothing_is_lost_or_shared_when_redis_does_not_answer(
    serve: Serve, make_redis: MakeRedis, tmp_path: Path, record_property: Record, harm: Course
) -> None:
    """For less than a lease, so every consumer keeps what it has."""

    def course(nemesis: Nemesis) -> None:
        for _ in range(2):
            nemesis.peace()
            harm(nemesis)
        nemesis.peace()

    fleet = start_fleet(serve, make_redis)
    check(run(fleet, tmp_path / "oplog", course, SEED), fleet, tmp_path, record_property)


@pytest.mark.long
def test_a_flushed_redis_is_reported_and_no_index_comes_again(
    serve: Serve, make_redis: MakeRedis, tmp_path: Path, record_property: Record
) -> None:
    """The items in Redis are lost; `meta.epoch` and the log of each server report it. The queue goes on."""

    def course(nemesis: Nemesis) -> None:
        nemesis.peace(1.0, 2.0)
        nemesis.flush_redis()
        nemesis.peace(3.0, 4.0)

    fleet = start_fleet(serve, make_redis)
    before = epochs(fleet)
    outcome = run(fleet, tmp_path / "oplog", course, SEED).record(record_property)
    # that a flush loses items, and who has them, is so; everything else holds
    others = [found for found in outcome.violations if not found.startswith(AFTER_A_FLUSH)]
    assert others == [], f"{others[:5]}\n{fleet.logs()}"
    after = epochs(fleet)
    assert min(after) > max(before), fleet.logs()
    assert all("epoch" in server.log.read_text() for server in fleet.servers), fleet.logs()


#: what an emptied Redis may do: items are gone, and keys, counts and commits with them
AFTER_A_FLUSH = ("lost: ",)


@pytest.mark.long
def test_one_server_on_a_file_keeps_the_same_promises(
    serve: Serve, tmp_path: Path, record_property: Record
) -> None:
    """The clients and the rules of a fleet hold for what is known to be right."""

    def course(nemesis: Nemesis) -> None:
        nemesis.peace()
        nemesis.kill_a_server()
        nemesis.hold_a_server(3.0)
        nemesis.peace()

    fleet = Fleet([serve("--port", str(free_port()))])
    rules = [rule for rule in RULES_OF_A_FLEET if rule is not counts_grow]  # may be short by the last 100 ms
    check(run(fleet, tmp_path / "oplog", course, SEED, rules), fleet, tmp_path, record_property)
