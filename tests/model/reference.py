"""The queue as documented, in plain lists and dictionaries: slow, obvious, and without code of the product.

An item is ready for a group when it is present, not claimed, and neither committed, pending nor held back there. After
every step each group's ready items go to its connections, highest class and lowest index first, each to the connection
with most free slots. One that failed goes to another consumer; one whose connection was lost goes alone.
"""

from __future__ import annotations

from dataclasses import replace

from tests.model.values import Connection, Group, Item

GRACE_S, RETENTION_S, FORGET_S, MAX_FAILURES = 2.0, 10.0, 20.0, 2
FREE_LOSSES, BUSY_LIMIT_MS = 1, 500
LOST = "the connection was lost"
MAX_ITEMS, MAX_BYTES = 12, 200


class Refused(Exception):
    """The step is refused; the text is the reason."""


class Reference:
    def __init__(self, now: float, backoff_s: float) -> None:
        self.now = now
        self.backoff_s = backoff_s
        self.last = self.deliveries_made = self.numbers = 0
        self.ended = False
        self.items: dict[int, Item] = {}
        self.claimed: set[int] = set()
        self.groups: dict[str, Group] = {}
        self.connections: dict[int, Connection] = {}
        self.keys: dict[str, tuple[int, str, bytes]] = {}
        self.rear: list[tuple[dict[str, str], bytes]] = []
        self.sink: list[tuple[dict[str, str], bytes]] = []
        self.flush()

    # -- items -----------------------------------------------------------------------------------------------------

    def put(self, data: bytes, tags: dict[str, str], priority: int, key: str) -> tuple[int, str, bool]:
        if key in self.keys:
            index, request_id, first = self.keys[key]
            if first != data:
                raise Refused("KeyReused")
            return index, request_id, True
        if self.ended:
            raise Refused("StreamEnded")
        if not self.fits(len(data), set(self.items)):
            loose = set(self.leaving(connected=True))
            if not self.fits(len(data), self.items.keys() - loose):
                raise Refused("QueueFull")
            for group in self.groups.values():
                group.lapse(self.now)
            self.sweep()
        self.last += 1
        self.items[self.last] = Item(self.last, priority, tags, data)
        if key:
            self.keys[key] = (self.last, tags["requestId"], data)
        self.push()
        return self.last, tags["requestId"], False

    def fits(self, size: int, indexes: set[int]) -> bool:
        held = sum(len(self.items[index].data) for index in indexes)
        return len(indexes) < MAX_ITEMS and held + size <= MAX_BYTES

    def present(self, tags: dict[str, str] | None = None, start: int = 0) -> list[Item]:
        items = [item for index, item in sorted(self.items.items()) if index not in self.claimed]
        return [item for item in items if item.index >= start and item.has(tags or {})]

    def get(self, start: int, length: int, tags: dict[str, str]) -> list[Item]:
        if start < 0:
            start = max((item.index for item in self.present()), default=1)
        return self.present(tags, start)[:length]

    def claim(self, indexes: list[int]) -> None:
        self.claimed.update(indexes)
        for connection in self.connections.values():
            for index in set(indexes) & set(connection.unsent):
                self.take_back(connection, index)
        self.push()

    def release(self, indexes: list[int]) -> None:
        self.claimed.difference_update(indexes)
        self.push()

    def delete(self, indexes: list[int]) -> int:
        gone = set(indexes) & self.items.keys()
        for index in gone:
            self.remove(index)
        self.push()
        return len(gone)

    def remove(self, index: int) -> None:
        del self.items[index]
        self.claimed.discard(index)
        for group in self.groups.values():
            group.forget(index)
        for connection in self.connections.values():
            self.take_back(connection, index)

    def truncate(self, below: int) -> int:
        return self.delete([index for index in self.items if index < below])

    # -- consumers -------------------------------------------------------------------------------------------------

    def of(self, group: str) -> list[Connection]:
        return [connection for connection in self.connections.values() if connection.group == group]

    def is_through(self, name: str) -> bool:
        return self.ended and self.items.keys() == self.groups.get(name, Group()).committed

    def attach(
        self, name: str, user: str, window: int, after: int, tags: dict[str, str], process: str
    ) -> int:
        if self.is_through(name):
            raise Refused("StreamEnded")
        group = self.groups.setdefault(name, Group())
        for old in [old for old in self.of(name) if old.user == user]:
            self.leave(old, lost=process != "" and old.process == process)
        self.numbers += 1
        new = Connection(self.numbers, name, user, window, after, tags, self.deliveries_made, process=process)
        self.connections[new.number] = new
        wanted, before = tuple(sorted(tags.items())), group.users.get(user)
        group.users[user] = wanted
        group.left.pop(user, None)
        group.filters[wanted] = None
        if (
            before is not None
            and group.filters.get(before) is not None
            and before not in group.users.values()
        ):
            del group.filters[before]
            self.sweep()
        mine = {index: held for index, held in sorted(group.held.items()) if held[1] == user}
        for index, (until, _, its_process) in mine.items():
            if its_process not in ("", process) and not self.lost(name, index):
                group.held[index] = (until, user, "")
        for _, index in sorted(self.items[index].rank for index in mine if index in group.held):
            until, _, its_process = group.held[index]
            if index in self.claimed or not new.wants(self.items[index]):
                del group.held[index]
            elif its_process and len(new.pending) < new.window:
                del group.held[index]
                self.hand_out(new, index)
                new.alone = index if group.record(index).goes_alone else 0
            else:
                group.held[index] = (until, user, "")
                new.redeliveries.append(index)
        self.push()
        return new.number

    def detach(self, number: int, *, lost: bool) -> None:
        if number in self.connections:
            self.leave(self.connections[number], lost=lost)
            self.push()

    def leave(self, connection: Connection, *, lost: bool) -> None:
        del self.connections[connection.number]
        group = self.groups[connection.group]
        group.left[connection.user] = self.now
        if all(one.tags != connection.tags for one in self.of(connection.group)):
            group.filters[tuple(sorted(connection.tags.items()))] = self.now
        for index in sorted(set(connection.pending) - set(connection.unsent)) if lost else ():
            held = (self.now + GRACE_S, connection.user, connection.process)
            if connection.process:
                group.held[index] = held
            elif group.record(index).losses < FREE_LOSSES:
                group.record(index).losses += 1
                group.held[index] = held
            elif not self.lost(connection.group, index):
                group.held[index] = held

    def lost(self, name: str, index: int) -> bool:
        """Count a lost connection as a failure. Return whether it was the last failure allowed."""
        self.groups[name].held.pop(index, None)
        self.groups[name].record(index).losses += 1
        return self.failed(name, index, "", LOST)

    def take_back(self, connection: Connection, index: int) -> None:
        for indexes in (connection.pending, connection.unsent):
            if index in indexes:
                indexes.remove(index)
        if connection.alone == index:
            connection.alone = 0

    def ready(self, name: str) -> list[Item]:
        group = self.groups[name]
        pending = {index for connection in self.of(name) for index in connection.pending}
        return [
            item for item in self.present() if item.index not in {*pending, *group.committed, *group.held}
        ]

    def push(self) -> None:
        for name, group in self.groups.items():
            self.serve(name)
            while True:
                reserved = {one.alone for one in self.of(name) if one.is_reserved}
                ready = sorted(
                    (item for item in self.ready(name) if item.index not in reserved),
                    key=lambda item: item.rank,
                )
                alone = [item for item in ready if group.record(item.index).goes_alone]
                others = [item for item in ready if item not in alone]
                failed = [item for item in others if item.index in group.failed_by]
                free = [one for one in self.of(name) if one.free > 0]
                plain = [
                    item for item in others if item not in failed and any(one.wants(item) for one in free)
                ]
                best = plain[0].rank if plain else (1, 0)
                if self.reserve(name, [item for item in alone if item.rank < best]):
                    self.serve(name)
                elif self.pass_on(name, [item for item in failed if item.rank < best]):
                    pass
                elif plain:
                    self.hand_to_one(plain[0], free)
                elif not self.release_reserved(name):
                    break

    def hand_to_one(self, item: Item, connections: list[Connection]) -> bool:
        takers = [one for one in connections if one.wants(item) and one.free > 0]
        if takers:
            self.hand_out(min(takers, key=lambda one: (-one.free, one.served, one.number)), item.index)
        return bool(takers)

    def serve(self, name: str) -> None:
        """Assign items to reserved connections that are now empty; then assign the items held for a consumer."""
        group = self.groups[name]
        for one in self.of(name):
            is_ready = any(item.index == one.alone for item in self.ready(name))
            if one.is_reserved and (one.stopped or not is_ready):
                one.alone = 0
            elif one.is_reserved and not one.pending:
                self.hand_out(one, one.alone)
        for one in self.of(name):
            while one.redeliveries and (
                one.redeliveries[0] in self.claimed
                or group.held.get(one.redeliveries[0], (0.0, "", ""))[1:] != (one.user, "")
            ):
                one.redeliveries.pop(0)
            if one.redeliveries and not one.stopped and not one.pending:
                one.alone = one.redeliveries.pop(0)
                del group.held[one.alone]
                self.hand_out(one, one.alone)

    def wanting(self, name: str, item: Item) -> list[Connection]:
        return [one for one in self.of(name) if one.wants(item) and not one.stopped]

    def takers(self, name: str, item: Item) -> list[Connection]:
        """Return the connections that can get the item alone."""
        wanting, failed_by = self.wanting(name, item), self.groups[name].failed_by.get(item.index)
        others = [one for one in wanting if one.user != failed_by] or wanting
        return [one for one in others if not one.alone and not one.redeliveries]

    def reserve(self, name: str, items: list[Item]) -> bool:
        for item in items:
            if takers := self.takers(name, item):
                chosen = min(takers, key=lambda one: (len(one.pending), one.served, one.number))
                chosen.alone = item.index
                return True
        return False

    def release_reserved(self, name: str) -> bool:
        for one in self.of(name):
            if one.is_reserved and not all(
                taker.pending for taker in self.takers(name, self.items[one.alone])
            ):
                one.alone = 0
                return True
        return False

    def pass_on(self, name: str, items: list[Item]) -> bool:
        """Dispatch a failed item to another consumer; without one it is an ordinary item."""
        failed_by = self.groups[name].failed_by
        for item in items:
            others = [one for one in self.wanting(name, item) if one.user != failed_by[item.index]]
            if not others:
                del failed_by[item.index]
                return True
            if self.hand_to_one(item, others):
                return True
        return False

    def hand_out(self, connection: Connection, index: int) -> None:
        self.deliveries_made += 1
        connection.served = self.deliveries_made
        connection.pending.append(index)
        connection.unsent.append(index)

    def read(self, number: int) -> list[tuple[Item, int]]:
        if number not in self.connections:
            return []
        connection = self.connections[number]
        sent, connection.unsent = connection.unsent, []
        if not sent and self.is_through(connection.group):
            raise Refused("StreamEnded")
        records = [self.groups[connection.group].record(index) for index in sent]
        for record in records:
            record.deliveries += 1
            record.fetched_ms = round(self.now * 1000) if record.busy_ms else 0
        return [(self.items[index], record.deliveries) for index, record in zip(sent, records, strict=True)]

    def commit(self, name: str, indexes: list[int]) -> int:
        present = set(indexes) & self.items.keys()
        group = self.groups.setdefault(name, Group()) if present else Group()
        counted = present - (group.committed - group.given_up)
        for connection in self.of(name):
            for index in counted:
                self.take_back(connection, index)
        for index in counted:
            group.held.pop(index, None)
            group.failed_by.pop(index, None)
        group.committed |= counted
        group.given_up -= counted
        for index in counted:
            if not self.is_held(index):
                self.remove(index)
        self.push()
        return len(counted)

    def negative(self, name: str, indexes: list[int], code: str, reason: str, delay_ms: int | None) -> int:
        pending = [
            (one, index) for index in dict.fromkeys(indexes) for one in self.of(name) if index in one.pending
        ]
        for connection, index in pending:
            self.take_back(connection, index)
            if code == "Shutdown":
                connection.stopped = True
            elif (wait_ms := self.back_off(name, index, code, reason, delay_ms)) is not None:
                self.groups[name].failed_by[index] = connection.user
                if wait_ms:
                    self.groups[name].held[index] = (self.now + wait_ms / 1000, "", "")
        for connection, _ in pending:
            for index in list(connection.unsent) if connection.stopped else ():
                self.take_back(connection, index)
        self.push()
        return len(pending)

    def back_off(self, name: str, index: int, code: str, reason: str, delay_ms: int | None) -> int | None:
        """Return the back-off of the item in ms; None after its last failure."""
        record = self.groups[name].record(index)
        if code == "Busy" and record.fetched_ms:
            record.busy_ms += round(self.now * 1000) - record.fetched_ms
            record.fetched_ms = 0
        if code == "Busy" and record.busy_ms < BUSY_LIMIT_MS:
            wait_ms = min(max(record.busy_ms, 1000), 30_000) if delay_ms is None else delay_ms
            wait_ms = min(wait_ms, BUSY_LIMIT_MS - record.busy_ms)
            record.busy_ms += max(1, wait_ms)
            return wait_ms
        if self.failed(name, index, "503" if code == "Busy" else code, reason):
            return None
        return round(self.backoff_s * 1000)

    def failed(self, name: str, index: int, code: str, reason: str) -> bool:
        """Count a failure. Return whether it was the last one allowed, so that the group has given the item up."""
        group, item = self.groups[name], self.items[index]
        record = group.record(index)
        record.failures, record.code, record.reason = record.failures + 1, code, reason
        record.busy_ms = record.fetched_ms = 0
        size = sum(len(data) for _, data in self.rear) + len(item.data)
        if record.failures < MAX_FAILURES or len(self.rear) >= MAX_ITEMS or size > MAX_BYTES:
            return False
        counts = {"rear@deliveries": str(record.deliveries), "rear@failures": str(record.failures)}
        why = {"rear@index": str(index), "rear@group": name, **counts}
        last = {key: text for key, text in (("lastCode", code), ("lastReason", reason)) if text}
        self.rear.append(({**item.tags, **why, **last}, item.data))
        group.committed.add(index)
        group.given_up.add(index)
        if not self.is_held(index):
            self.retire(index, group)
        return True

    def retire(self, index: int, last_group: Group | None = None) -> None:
        """Remove the item; if every group gave it up, put an answer into the sink."""
        groups = [group for group in self.groups.values() if index in group.committed]
        if all(index in group.given_up for group in groups):
            record = (last_group or groups[-1]).record(index)
            code, reason = record.code, record.reason
            said = reason if code.isdigit() or not code else code
            last = {"lastCode": code if code.isdigit() else "500", **({"lastReason": said} if said else {})}
            kind = {"Header:Content-Type": "text/plain; charset=utf-8"}
            self.sink.append(({**self.items[index].tags, "ts@sink": "7", **last, **kind}, reason.encode()))
        self.remove(index)

    def is_held(self, index: int, *, connected: bool = False) -> bool:
        return any(group.holds(self.items[index], connected=connected) for group in self.groups.values())

    def leaving(self, *, connected: bool = False) -> list[int]:
        """Return the items that a group has committed and no group (or none with a connected consumer) retains."""
        committed = {index for group in self.groups.values() for index in group.committed}
        return [index for index in sorted(committed) if not self.is_held(index, connected=connected)]

    def sweep(self) -> None:
        for index in self.leaving():
            self.retire(index)

    # -- time and the disk -----------------------------------------------------------------------------------------

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for name, group in self.groups.items():
            over = sorted((held[0], index) for index, held in group.held.items() if held[0] <= self.now)
            for _, index in over:
                _, user, process = group.held.pop(index)
                if process:
                    group.failed_by[index] = user
                    self.lost(name, index)
        for group in self.groups.values():
            for user in [user for user, left_at in group.left.items() if left_at + FORGET_S <= self.now]:
                del group.left[user], group.users[user]
        lapsed = [group.lapse(self.now, RETENTION_S) for group in self.groups.values()]
        if any(lapsed):
            self.sweep()
        self.push()
        self.flush()

    def flush(self) -> None:
        """The counts are stored as they are."""
        self.counts = {
            name: {index: replace(record) for index, record in group.records.items()}
            for name, group in self.groups.items()
        }

    def restart(self, stored: set[str], seconds: float, *, killed: bool) -> None:
        """`stored` groups are known again, with the counts that were stored before a kill. Who was connected left now;
        for the others time went on after a kill, and stood still while the service was stopped in order.
        """
        self.now += seconds
        if not killed:
            self.flush()
        self.connections, self.claimed = {}, set()
        self.groups = {name: group for name, group in self.groups.items() if name in stored}
        for name in stored:
            group = self.groups.setdefault(name, Group())
            known = self.counts.get(name, {})
            group.records = {
                index: replace(record, fetched_ms=0) for index, record in known.items() if index in self.items
            }
            group.held, group.users, group.left = {}, {}, {}
            for tags, left_at in group.filters.items():
                group.filters[tags] = self.now if left_at is None else left_at + seconds * (not killed)
            group.lapse(self.now, RETENTION_S)
        self.sweep()
        self.numbers = self.deliveries_made = 0
