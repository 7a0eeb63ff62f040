"""Several `easq serve` before one storage, clients spread over all of them, and a nemesis that kills and holds them.

The seed determines the course. The logs in the folder of the run have all events of clients and all faults of servers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tests.reliability.check import RULES_OF_A_FLEET, Rule, figures, slowest_redelivery_s, violations
from tests.reliability.load import LOST, Body, Load, commit
from tests.reliability.oplog import Log, read
from tests.support.http import Connection, Stream
from tests.support.process import Service
from tests.support.protobuf import read_item
from tests.support.redis import RedisServer
from tests.support.waiting import eventually
from tests.support.websocket import BINARY, CLOSE, PING, Refused, Watch, watch

SEED = int(os.environ.get("EASQ_SEED", "20240601"))
PRODUCERS, GROUPS, CONSUMERS, WINDOW = 8, ("one", "two"), 4, 6
#: a producer waits so long between two puts, and so long for an answer before it asks elsewhere, in seconds
PAUSE_S, PATIENCE_S = 0.06, 3.0
#: a consumer keeps what came for so long before it commits it; it pings so often; the last of a group leaves a server
#: from which no byte came for so long. In seconds
HOLD_S, PING_S, SILENCE_S = 0.12, 1.0, 4.5
#: after the last fault all that is left has to be delivered and committed within so long, in seconds
DRAIN_S = 60.0


@dataclass(frozen=True)
class Fleet:
    """Servers named s0, s1 ... before one storage; `redis` where that is a Redis."""

    servers: Sequence[Service]
    redis: RedisServer | None = None
    #: servers that were killed, and the groups of which a consumer was on one of them and has stayed away since
    fallen: list[str] = field(default_factory=list)
    bereft: set[str] = field(default_factory=set)

    def name(self, port: int) -> str:
        """The server that has the port."""
        return next(f"s{number}" for number, server in enumerate(self.servers) if server.port == port)

    def logs(self) -> str:
        """Return the logs of the servers, for the message of a failure."""
        return "\n".join(
            f"-- s{number}\n{server.log.read_text()[-3000:]}" for number, server in enumerate(self.servers)
        )


class Nemesis:
    """Injects faults into a fleet, one at a time; logs the begin and end of each."""

    def __init__(
        self, fleet: Fleet, producing: Load, consuming: Load, log: Log, chance: random.Random
    ) -> None:
        self._fleet = fleet
        self._producing = producing
        self._consuming = consuming
        self._log = log
        self._chance = chance
        self._wait = threading.Event().wait

    def peace(self, least_s: float = 0.5, most_s: float = 1.5) -> None:
        """Wait a while without a fault."""
        self._wait(self._chance.uniform(least_s, most_s))

    def until_all_put(self, within_s: float) -> None:
        """Every producer has had a put acknowledged since this began."""
        began, last = time.monotonic(), self._producing.last_put
        eventually(lambda: len(last) == PRODUCERS and min(last.values()) > began, within_s=within_s)

    def send_consumers_away(self) -> None:
        """Stop the consumers: from now on items stay in the queue."""
        self._consuming.up.clear()

    def call_consumers_back(self) -> None:
        """Start the consumers again."""
        self._consuming.up.set()

    def kill_a_server(self) -> None:
        """Kill one server, and start it again on its port a little later."""
        server = self._chance.choice(self._fleet.servers)
        with self.fault("kill", "restart", self._fleet.name(server.port)):
            self._fleet.fallen.append(self._fleet.name(server.port))
            server.kill()
            self.peace()
            server.start()

    def hold_a_server(self, seconds: float) -> None:
        """Stop one server (SIGSTOP), and continue it later."""
        server = self._chance.choice(self._fleet.servers)
        with self.fault("freeze", "thaw", self._fleet.name(server.port)):
            server.freeze()
            self._wait(seconds)
            server.thaw()

    def kill_redis(self) -> None:
        """Kill Redis, and start it again on its data."""
        with self.fault("kill", "restart", "redis") as redis:
            redis.restart()

    def hold_redis(self, seconds: float) -> None:
        """Redis stands still."""
        with self.fault("freeze", "thaw", "redis") as redis:
            redis.freeze()
            self._wait(seconds)
            redis.thaw()

    def pause_clients(self, seconds: float) -> None:
        """Pause all answers of Redis for a time (CLIENT PAUSE)."""
        with self.fault("freeze", "thaw", "redis") as redis:
            redis.ask("CLIENT", "PAUSE", round(seconds * 1000))
            self._wait(seconds)

    def keep_redis_busy(self, seconds: float) -> None:
        """Run an endless script in Redis, which answers BUSY until the script is killed."""
        script = "while true do end"
        with self.fault("freeze", "thaw", "redis") as redis:
            redis.ask("CONFIG", "SET", "busy-reply-threshold", 200)
            runs = threading.Thread(target=lambda: _without_an_answer(redis, "EVAL", script, 0))
            runs.start()
            self._wait(seconds)
            redis.ask("SCRIPT", "KILL")
            runs.join()

    def flush_redis(self) -> None:
        """Delete all data in Redis."""
        with self.fault("flush", "restart", "redis") as redis:
            redis.ask("FLUSHALL")

    @contextlib.contextmanager
    def fault(self, begin: str, end: str, server: str) -> Iterator[RedisServer | None]:
        """Log the body as a fault of `server`; the body gets the fleet's Redis."""
        self._log.add(begin, server=server)
        yield self._fleet.redis
        self._log.add(end, server=server)


def _without_an_answer(redis: RedisServer, *command: str | int) -> None:
    with contextlib.suppress(Exception):
        redis.ask(*command)


def epochs(fleet: Fleet) -> list[int]:
    """Return the `meta.epoch` of each server."""
    return [int(server.stream().attributes()["meta.epoch"]) for server in fleet.servers]


#: pytest's `record_property`
Record: TypeAlias = Callable[[str, object], None]
#: what is done to a fleet while it works
Course: TypeAlias = Callable[[Nemesis], None]


def consume_on(fleet: Fleet, load: Load, name: str, group: str, *, impatient: bool) -> Body:
    """A consumer that commits what came, each time at another server; `impatient` ones leave a silent server.

    The first of each group whose server is killed never comes back: what it had has to reach another one.
    """
    count = 0
    turn = 0

    def commit_somewhere(log: Log, me: Stream, indexes: list[int]) -> None:
        nonlocal turn
        attempts = itertools.count()
        while next(attempts) == 0 or not load.over.wait(0.1):
            turn += 1
            port = fleet.servers[turn % len(fleet.servers)].port
            with contextlib.suppress(*LOST), Connection(port) as connection:
                connection.socket.settimeout(PATIENCE_S)
                commit(log, connection, me, indexes, group)
                return

    def receive(log: Log, watching: Watch, me: Stream, connection: str) -> None:
        held: list[int] = []
        last_byte = last_ping = first_held = time.monotonic()
        while load.up.is_set() and not load.over.is_set():
            now = time.monotonic()
            if now - last_ping > PING_S:
                watching.send(PING, b"here")
                last_ping = now
            if held and now - first_held > HOLD_S:
                commit_somewhere(log, me, held)
                held = []
            watching.connection.socket.settimeout(HOLD_S / 2)
            try:
                frame = watching.read()
            except TimeoutError:
                if impatient and now - last_byte > SILENCE_S:
                    raise ConnectionResetError("silence") from None
                continue
            last_byte = time.monotonic()
            if frame.opcode == CLOSE:
                raise ConnectionResetError(frame.payload)
            if frame.opcode == BINARY:
                item = read_item(frame.payload)
                deliveries = int(item.tags.get("deliveryCount", "1"))
                details = {"index": item.index, "payload": item.data.decode(), "deliveries": deliveries}
                log.add("deliver", connection=connection, group=group, **details)
                first_held = first_held if held else last_byte
                held.append(item.index)

    def body(log: Log, stream: Stream) -> None:
        nonlocal count
        count += 1
        me = stream.as_consumer(name, group)
        connection = f"{name}-{count}"
        log.add("open", connection=connection, window=WINDOW, group=group, server=fleet.name(stream.port))
        try:
            with watch(me, _window_=WINDOW) as watching:
                receive(log, watching, me, connection)
        except Refused as refused:
            # its connection before is not known to be lost yet, or the server cannot serve
            if refused.answer.status not in {409, 503}:
                raise
            load.over.wait(0.1)
        finally:
            log.add("close", connection=connection, group=group)
            if fleet.name(stream.port) in fleet.fallen and group not in fleet.bereft:
                fleet.bereft.add(group)
                load.over.wait()

    return body


@dataclass(frozen=True)
class Outcome:
    """The result of a run; `left` is the number of items that each server reported at the end."""

    violations: list[str]
    figures: dict[str, object]
    left: list[int]

    def record(self, record: Record) -> Outcome:
        """The figures stand at the end of the test's log."""
        for name, value in self.figures.items():
            record(name, value)
        return self


def run(
    fleet: Fleet,
    folder: Path,
    course: Course,
    seed: int,
    rules: Sequence[Rule] = RULES_OF_A_FLEET,
    *,
    drain_s: float = DRAIN_S,
) -> Outcome:
    """Run producers and consumers while the nemesis injects faults; then drain the remaining items.

    When that takes longer than `drain_s` there is a violation `not drained`.
    """
    folder.mkdir()
    log = Log(folder, "nemesis")
    producing, consuming = Load(folder), Load(folder)
    for number in range(PRODUCERS):
        name = f"p{number}"
        body = producing.put_on(name, keyed=number % 2 == 1, pause_s=PAUSE_S, patience_s=PATIENCE_S)
        producing.start(name, body)
    for group in GROUPS:
        for number in range(CONSUMERS):
            name = f"{group}-{number}"
            consuming.start(
                name, consume_on(fleet, consuming, name, group, impatient=number == CONSUMERS - 1)
            )
    drained = True
    try:
        for load in (consuming, producing):
            load.point_at(*fleet.servers)
        course(Nemesis(fleet, producing, consuming, log, random.Random(seed)))
        producing.stop()
        try:
            eventually(lambda: set(_lengths(fleet)) == {0}, within_s=drain_s)
        except AssertionError:
            drained = False
    finally:
        for load in (producing, consuming):
            load.stop()
        log.close()
    failures = [*producing.failures, *consuming.failures]
    assert failures == [], (failures, fleet.logs())
    history = read(folder)
    found = violations(history, rules)
    if not drained:
        found.append(f"not drained: {_lengths(fleet)} left after {drain_s:.0f} s")
    slowest = {
        f"slowest redelivery in s after {fault}": round(s, 2)
        for fault, s in slowest_redelivery_s(history).items()
    }
    return Outcome(found, {**figures(history), **slowest, "seed": seed}, _lengths(fleet))


def _lengths(fleet: Fleet) -> list[int]:
    """Return the number of items that each server reports; -1 for a server that does not answer."""
    return [_length(server) for server in fleet.servers]


def _length(server: Service) -> int:
    try:
        return server.stream().length()
    except (*LOST, AssertionError):
        return -1
