"""Clients that put, or watch and commit, during all faults of the services; each logs its events."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from easq.protocol.replies import STORED_HEADER
from tests.reliability.oplog import Log
from tests.support.http import Connection, Stream
from tests.support.process import Service
from tests.support.waiting import PATIENCE_S
from tests.support.websocket import Refused, watch

WINDOW = 16
#: between a lost connection and the next attempt, in seconds
AGAIN_S = 0.02
#: how a connection to a killed service ends
LOST = (OSError, EOFError)


#: a client of one stream: it works until its connection is lost, and is called again
Body: TypeAlias = Callable[[Log, Stream], None]


class Load:
    """Clients that go on whatever happens to the services, each with a log of its own.

    Each begins with a service by its number, and goes to the next one after each lost connection.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.up = threading.Event()
        self.over = threading.Event()
        self.streams: list[Stream] = []
        #: the moment of each putter's last acknowledged put
        self.last_put: dict[str, float] = {}
        self.failures: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def start(self, name: str, body: Body) -> None:
        """Run `body` repeatedly until the load ends, with a new connection after each loss."""
        turn = len(self._threads)

        def run() -> None:
            nonlocal turn
            log = Log(self.folder, name)
            try:
                while not self.over.is_set():
                    if not self.up.wait(0.05):
                        continue
                    with contextlib.suppress(*LOST):
                        body(log, self.streams[turn % len(self.streams)])
                    turn += 1
                    self.over.wait(AGAIN_S)
            except BaseException as error:
                self.failures.append(error)
            finally:
                log.close()

        thread = threading.Thread(target=run, name=name)
        thread.start()
        self._threads.append(thread)

    def point_at(self, *services: Service) -> None:
        """The clients find the services where they are now."""
        self.streams = [service.stream().as_consumer("nobody") for service in services]
        self.up.set()

    def stop(self) -> None:
        """Every client has ended."""
        self.over.set()
        for thread in self._threads:
            thread.join()

    def put_on(
        self, name: str, *, keyed: bool = False, pause_s: float = 0.0, patience_s: float = PATIENCE_S
    ) -> Body:
        """A client that puts new payloads, one after the other on one connection.

        `keyed` ones send a put whose answer was lost once more, under its idempotency key, until it is answered. An
        answer that does not come within `patience_s` is lost.
        """
        count = 0
        in_doubt = ""

        def body(log: Log, stream: Stream) -> None:
            nonlocal count, in_doubt
            with Connection(stream.port) as connection:
                connection.socket.settimeout(patience_s)
                while self.up.is_set() and not self.over.wait(pause_s):
                    again = bool(in_doubt)
                    if not again:
                        count += 1
                        log.add("put", "invoke", op=count, payload=f"{name}-{count}")
                    payload, in_doubt = f"{name}-{count}", ""
                    headers = [("Idempotency-Key", payload)] if keyed else []
                    try:
                        answer = connection.ask("POST", stream.path, headers, payload.encode())
                    except LOST:
                        log.add("put", "info", op=count, payload=payload)
                        in_doubt = payload if keyed else ""
                        raise
                    if answer.status == 503:
                        # certainly not stored by this request; by one before it, perhaps
                        assert answer.header(STORED_HEADER) == "no", answer
                        log.add("put", "info" if again else "fail", op=count, payload=payload)
                        in_doubt = payload if again else ""
                        raise ConnectionResetError(answer)
                    assert answer.status == 200, answer
                    log.add("put", "ok", op=count, payload=payload, index=int(answer.body))
                    self.last_put[name] = time.monotonic()

        return body

    def watch_on(self, name: str, *, quiet_s: float = 0.0) -> Body:
        """A client that commits each item as soon as it has it, over a connection of its own.

        With `quiet_s` it first takes all that comes until nothing does for so long, and commits that at once.
        """
        count = 0

        def body(log: Log, stream: Stream) -> None:
            nonlocal count
            count += 1
            me = stream.as_consumer(name)
            connection = f"{name}-{count}"
            log.add("open", connection=connection, window=WINDOW)
            held: list[int] = []
            try:
                with watch(me, _window_=WINDOW) as watching, Connection(stream.port) as committing:
                    while self.up.is_set() and not self.over.is_set():
                        watching.connection.socket.settimeout(quiet_s if held else 1.0)
                        try:
                            item = watching.next()
                        except TimeoutError:
                            pass
                        else:
                            held.append(item.index)
                            log.add(
                                "deliver", index=item.index, payload=item.data.decode(), connection=connection
                            )
                            if quiet_s:
                                continue
                        if held:
                            commit(log, committing, me, held)
                            held = []
            except Refused as refused:
                # 409: the service has not noticed yet that the connection before was lost
                if refused.answer.status != 409:
                    raise
            finally:
                log.add("close", connection=connection)

        return body


_operations = iter(range(1, 1 << 62))


def commit(log: Log, connection: Connection, stream: Stream, indexes: list[int], group: str = "") -> None:
    """Commit the items and log it; LOST when the outcome is unknown."""
    operation = next(_operations)
    log.add("commit", "invoke", op=operation, indexes=indexes, group=group)
    try:
        target = stream.target(_indexes_=",".join(map(str, indexes)))
        answer = connection.ask("PUT", target, stream.headers, b"")
    except LOST:
        log.add("commit", "info", op=operation, indexes=indexes, group=group)
        raise
    if answer.status == 503:
        log.add("commit", "fail", op=operation, indexes=indexes, group=group)
        raise ConnectionResetError(answer)
    assert (answer.status, answer.body) == (200, b"OK"), answer
    log.add("commit", "ok", op=operation, indexes=indexes, group=group)
