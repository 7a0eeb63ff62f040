"""A Sentinel promotes a replica while servers work: lost items, and the warnings about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.reliability.fleet import SEED, Course, Fleet, Nemesis, Record, epochs, run
from tests.support.redis import RedisServer, Sentinel, free_port
from tests.support.waiting import eventually

pytestmark = pytest.mark.long


class Replicated:
    """A primary, its replica, and Sentinels that watch them: more than half have to agree."""

    def __init__(self, folder: Path, sentinels: int = 1) -> None:
        self.primary = RedisServer(folder / "primary")
        self.primary.start()
        self.replica = RedisServer(folder / "replica", replicaof=f"127.0.0.1 {self.primary.port}")
        self.replica.start()
        self.sentinels = [
            Sentinel(folder / f"sentinel{number}", self.primary, quorum=sentinels // 2 + 1)
            for number in range(sentinels)
        ]
        for sentinel in self.sentinels:
            sentinel.start()
        self._until(lambda: self.replica.follows(self.primary))
        for sentinel in self.sentinels:
            self._until(partial(sentinel.knows, self.replica))
            self._until(partial(_knows_others, sentinel, sentinels - 1))
        self._until(lambda: self._have_settled_on(self.primary))

    @property
    def url(self) -> str:
        """The value of `easq serve --storage` with which the servers ask the Sentinels for the primary."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{Sentinel.name}"

    def kill(self) -> None:
        """All of them are gone."""
        for server in (*self.sentinels, self.replica, self.primary):
            server.kill()

    def promote_the_replica(self) -> None:
        """The primary is killed, and Sentinel has put the replica in its place."""
        self.primary.kill()
        self._until(lambda: self._have_settled_on(self.replica))

    def bring_back_the_primary(self) -> None:
        """Start it again, and wait until one of the two follows the other: the one that Sentinel has made a replica."""
        self.primary.start()
        self._until(lambda: self.primary.follows(self.replica) or self.replica.follows(self.primary))

    def cut_off_the_replica(self) -> None:
        """Make the replica follow an unused port: it does not get later writes of the primary."""
        self.replica.ask("REPLICAOF", "127.0.0.1", free_port())

    def _have_settled_on(self, primary: RedisServer) -> bool:
        """Whether all Sentinels that run send clients there."""
        return all(sentinel.has_settled_on(primary) for sentinel in self.sentinels if sentinel.is_running)

    def _until(self, look: Callable[[], bool]) -> None:
        try:
            eventually(look, within_s=Sentinel.SETTLED_S)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self) -> str:
        """Return the logs of all of them, and how often Sentinel stopped acting."""
        shown = [f"{[sentinel.tilts() for sentinel in self.sentinels]} times +tilt"]
        for server in (*self.sentinels, self.primary, self.replica):
            shown.append(f"-- {server.folder.name}\n{server.log.read_text()[-4000:]}")
        return "\n".join(shown)


def _knows_others(sentinel: Sentinel, count: int) -> bool:
    return sentinel.others() == count


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    made = Replicated(tmp_path)
    yield made
    made.kill()


def start_fleet(serve: Serve, replicated: Replicated, *options: str, bug: str = "") -> Fleet:
    """Two servers that ask the Sentinel where the primary is."""
    program = ("tests.reliability.planted_servers", bug) if bug else ("easq",)
    options = ("--leave-grace", "500ms", *options)
    servers = [
        serve("--port", str(free_port()), *options, storage=replicated.url, program=program) for _ in range(2)
    ]
    return Fleet(servers)


def fail_over(replicated: Replicated, *, stale: bool) -> Course:
    """The replica, or one that was cut off some time before, takes the primary's place; the old primary comes back,
    and puts are acknowledged again. What is put shortly before is delivered only after it.
    """

    def course(nemesis: Nemesis) -> None:
        nemesis.peace()
        nemesis.send_consumers_away()
        if stale:
            replicated.cut_off_the_replica()
        nemesis.peace(1.0, 1.5)
        with nemesis.fault("kill", "restart", "redis"):
            replicated.promote_the_replica()
            replicated.bring_back_the_primary()
        nemesis.call_consumers_back()
        nemesis.until_all_put(Sentinel.SETTLED_S)
        nemesis.peace(2.0, 3.0)

    return course


@pytest.mark.parametrize("stale", [False, True], ids=["a good replica", "a stale replica"])
def test_with_wait_replicas_nothing_acknowledged_is_lost(
    serve: Serve, replicated: Replicated, tmp_path: Path, record_property: Record, stale: bool
) -> None:
    """Also, no index is used twice, and no committed item is delivered again."""
    fleet = start_fleet(serve, replicated, "--wait-replicas", "1")
    course = fail_over(replicated, stale=stale)
    outcome = run(fleet, tmp_path / "oplog", course, SEED).record(record_property)
    shown = f"{outcome.violations[:5]}\n{outcome.figures}\n{fleet.logs()}\n{replicated.logs()}"
    assert outcome.violations == [], shown
    assert set(outcome.left) == {0}, shown


def test_two_of_three_sentinels_are_enough(serve: Serve, tmp_path: Path, record_property: Record) -> None:
    """The one that the servers ask first is killed, and then the primary."""
    replicated = Replicated(tmp_path, sentinels=3)
    try:
        fleet = start_fleet(serve, replicated, "--wait-replicas", "1")
        replicated.sentinels[0].kill()
        course = fail_over(replicated, stale=False)
        outcome = run(fleet, tmp_path / "oplog", course, SEED).record(record_property)
        shown = f"{outcome.violations[:5]}\n{outcome.figures}\n{fleet.logs()}\n{replicated.logs()}"
        assert outcome.violations == [], shown
        assert set(outcome.left) == {0}, shown
    finally:
        replicated.kill()


def test_without_it_the_loss_is_reported_and_no_index_comes_again(
    serve: Serve, replicated: Replicated, tmp_path: Path, record_property: Record
) -> None:
    """A stale replica takes over: what it had not got is gone, `meta.epoch` goes up, and each server's log says so."""
    fleet = start_fleet(serve, replicated)
    before = max(epochs(fleet))
    course = fail_over(replicated, stale=True)
    outcome = run(fleet, tmp_path / "oplog", course, SEED).record(record_property)
    shown = f"{outcome.violations[:5]}\n{outcome.figures}\n{fleet.logs()}\n{replicated.logs()}"
    assert [found for found in outcome.violations if found.startswith("lost: ")], shown
    assert [found for found in outcome.violations if found.startswith(("reused: ", "went back: "))] == [], (
        shown
    )
    assert min(epochs(fleet)) > before, shown
    assert all("epoch" in server.log.read_text() for server in fleet.servers), shown


def test_a_server_that_acknowledges_without_waiting_is_caught(
    serve: Serve, replicated: Replicated, tmp_path: Path
) -> None:
    """The server claims to wait for a replica, but does not."""
    fleet = start_fleet(serve, replicated, "--wait-replicas", "1", bug="acknowledged-without-wait")
    outcome = run(fleet, tmp_path / "oplog", fail_over(replicated, stale=True), SEED)
    assert [found for found in outcome.violations if found.startswith("lost: ")], replicated.logs()
