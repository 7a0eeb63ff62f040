"""The checker's own books of one stream: what the promises say is so, kept without looking into the stream.

Every event is entered here too, by the plain rule; the answers and effects of the stream have to be the same. What the
stream hands out is not foretold but judged: `delivered` for each frame, `idle` for what was not handed out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from easq.model import Tags
from easq.storage.base import Limits, Timing
from easq.storage.effects import Effects
from easq.storage.filters import Filter

#: an item that failed so often in a group is handed out alone
ALONE_AFTER = 2


class Broken(AssertionError):
    """A promise was broken."""


def hold(promise: str, kept: bool, *facts: object) -> None:
    """Raises Broken unless `kept`."""
    if not kept:
        raise Broken(f"{promise}: {', '.join(map(str, facts))}")


@dataclass
class Item:
    """What was put."""

    priority: int
    size: int
    tags: Tags


@dataclass
class Seat:
    """One connection, what it asked for, and what it was sent and is not done with."""

    number: int
    team: Team
    user: str
    window: int
    after: int
    tags: Tags
    out: set[int] = field(default_factory=set)
    highest: dict[int, int] = field(default_factory=dict)  # class -> last first delivery
    stopped: bool = False

    def wants(self, index: int, item: Item) -> bool:
        return index > self.after and all(item.tags.get(key) == value for key, value in self.tags.items())


@dataclass(eq=False)
class Team:
    """One consumer group."""

    name: str
    committed: set[int] = field(default_factory=set)  # with what was given up
    given_up: set[int] = field(default_factory=set)
    deliveries: dict[int, int] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    held: dict[int, tuple[float, str | None]] = field(default_factory=dict)  # index -> until, for whom
    seats: dict[str, Seat] = field(default_factory=dict)
    # what it holds back: tags -> when the last seat with them was left; None while there is one
    filters: dict[tuple[tuple[str, str], ...], float | None] = field(default_factory=dict)
    wanted: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # what each user had last
    left: dict[str, float] = field(default_factory=dict)  # when each user left that has no seat
    late: set[int] = field(default_factory=set)  # went back before they were sent: exempt from the order

    def holds(self, index: int, item: Item, *, connected: bool = False) -> bool:
        """Whether it holds the item back; with `connected` alone for seats that are there."""
        return index not in self.committed and any(
            all(item.tags.get(key) == value for key, value in tags)
            for tags, left_at in self.filters.items()
            if left_at is None or not connected
        )

    def lapse(self, now: float, retention_s: float = 0.0) -> bool:
        """Filters whose last seat was left so long ago are gone; whether there were any."""
        before = self.filters
        self.filters = {
            tags: left_at
            for tags, left_at in before.items()
            if left_at is None or left_at + retention_s > now
        }
        return self.filters != before

    def alone(self, index: int) -> bool:
        return self.failures.get(index, 0) >= ALONE_AFTER

    def forget(self, index: int) -> None:
        self.committed.discard(index)
        self.given_up.discard(index)
        self.late.discard(index)
        for rows in (self.deliveries, self.failures, self.held):
            rows.pop(index, None)
        for seat in self.seats.values():
            seat.out.discard(index)


class Books:
    """The stream by the promises, and what is known to be durable."""

    def __init__(self, timing: Timing, max_failures: int) -> None:
        self.timing = timing
        self.max_failures = max_failures
        self.has_rear_room = True
        self.ended = False
        self.highest = 0  # index ever allotted
        self.put: dict[int, Item] = {}  # all that was ever allotted
        self.allotted: dict[int, Item] = {}
        self.items: dict[int, Item] = {}
        self.claimed: set[int] = set()
        self.teams: dict[str, Team] = {}
        self.stored: set[int] = set()  # acknowledged puts
        self.gone: set[int] = set()  # acknowledged removals
        self.done: dict[str, set[int]] = {}  # acknowledged commits, and what was given up
        self.asked: dict[str, set[int]] = {}  # all commits, acknowledged or not
        self.counted: dict[tuple[str, int], tuple[int, int]] = {}  # acknowledged counts
        self.effects = Effects()  # what the current event must ask for

    # -- entries ---------------------------------------------------------------------------------------------------

    def room(self, size: int, limits: Limits, *, without: Iterable[int] = ()) -> bool:
        """Whether an item fits once `without` are gone."""
        rest = [*(self.items[index] for index in self.items.keys() - set(without)), *self.allotted.values()]
        return len(rest) < limits.max_items and sum(item.size for item in rest) + size <= limits.max_bytes

    def make_room(self, size: int, limits: Limits) -> bool:
        """Absent groups let go, then the oldest are evicted if the limits say so; nothing when it would not do."""
        if self.room(size, limits):
            return True
        unheld = set(self.leaving(connected=True))
        if not self.room(
            size, limits, without=unheld if not limits.evict else {*self.items} - self.claimed | unheld
        ):
            return False
        for team in self.teams.values():
            if team.lapse(inf):
                self.effects.groups.append(team.name)
        self._retire(unheld)
        self.sweep()
        while not self.room(size, limits):
            self._remove(min(self.items.keys() - self.claimed))
        return True

    def allot(self, index: int, item: Item) -> None:
        hold("an index is above all before", index > self.highest, index, self.highest)
        self.highest = index
        self.put[index] = self.allotted[index] = item

    def show(self, index: int) -> None:
        self.items[index] = self.allotted.pop(index)
        self.stored.add(index)

    def drop(self, index: int) -> None:
        del self.allotted[index]

    def claim(self, indexes: Iterable[int], unsent: dict[str, set[int]]) -> None:
        """Hidden; what a connection was to be sent stays here until it is released."""
        self.claimed |= set(indexes)
        for name, back in unsent.items():
            self._unsent(self.teams[name], back)

    def release(self, indexes: Iterable[int]) -> None:
        back = self.claimed & set(indexes)
        self.claimed -= back
        for team in self.teams.values():
            team.late |= back

    def delete(self, indexes: Iterable[int]) -> None:
        for index in dict.fromkeys(indexes):
            if index in self.items:
                self._remove(index)

    def truncate(self, below: int) -> int:
        gone = [index for index in self.items if index < below]
        for index in gone:
            self._remove(index)
        self.effects.removed.clear()
        return len(gone)

    def _remove(self, index: int) -> None:
        del self.items[index]
        self.claimed.discard(index)
        for team in self.teams.values():
            team.forget(index)
        self.effects.removed.append(index)

    def _retire(self, indexes: Iterable[int]) -> None:
        """Gone because the groups are done; unanswered when all of them gave up."""
        for index in sorted(indexes):
            teams = [team for team in self.teams.values() if index in team.committed]
            if teams and all(index in team.given_up for team in teams):
                self.effects.unanswered.append((index, None))
            self._remove(index)

    def is_held(self, index: int, *, connected: bool = False) -> bool:
        return any(team.holds(index, self.items[index], connected=connected) for team in self.teams.values())

    def leaving(self, *, connected: bool = False) -> list[int]:
        """What some group has committed, and no group (or none with a seat that wants it) holds back."""
        committed = {index for team in self.teams.values() for index in team.committed}
        return [index for index in committed if not self.is_held(index, connected=connected)]

    def sweep(self) -> None:
        """What was committed and nobody holds back is gone."""
        self._retire(self.leaving())

    # -- groups ----------------------------------------------------------------------------------------------------

    def team(self, name: str) -> Team:
        if name not in self.teams:
            self.teams[name] = Team(name)
            self.effects.groups.append(name)
        return self.teams[name]

    def is_through(self, name: str) -> bool:
        committed = len(self.teams[name].committed) if name in self.teams else 0
        return self.ended and not self.allotted and committed == len(self.items)

    def attach(self, seat: Seat, now: float, unsent: set[int]) -> None:
        """The connection is there, an older one of the name is closed. What was kept for this user and is not
        wanted any more, or has to go alone, is everybody's.
        """
        team = seat.team
        if seat.user in team.seats:
            self.leave(team.seats[seat.user], now, lost=False, unsent=unsent)
        team.seats[seat.user] = seat
        wanted, before = tuple(sorted(seat.tags.items())), team.wanted.get(seat.user)
        team.wanted[seat.user] = wanted
        team.left.pop(seat.user, None)
        if team.filters.get(wanted, 0.0) is not None:
            team.filters[wanted] = None
            self.effects.groups.append(team.name)
        if before is not None and team.filters.get(before) is not None and before not in team.wanted.values():
            del team.filters[before]
            self.effects.groups.append(team.name)
            self.sweep()
        for index in [index for index, (_, user) in team.held.items() if user == seat.user]:
            if team.alone(index) or index in self.claimed or not seat.wants(index, self.items[index]):
                del team.held[index]

    def leave(self, seat: Seat, now: float, *, lost: bool, unsent: set[int]) -> None:
        team = seat.team
        del team.seats[seat.user]
        team.left[seat.user] = now
        if all(other.tags != seat.tags for other in team.seats.values()):
            team.filters[tuple(sorted(seat.tags.items()))] = now
            self.effects.groups.append(team.name)
        self._unsent(team, unsent)
        for index in sorted(seat.out) if lost else ():
            if not self._failed(team, index):
                team.held[index] = (now + self.timing.leave_grace_s, seat.user)

    def _unsent(self, team: Team, unsent: Iterable[int]) -> None:
        for index in unsent:
            team.late.add(index)
            team.held.pop(index, None)

    def _failed(self, team: Team, index: int) -> bool:
        """One failure more; whether it was the last that is allowed."""
        failures = team.failures[index] = team.failures.get(index, 0) + 1
        team.deliveries.setdefault(index, 0)
        self.effects.touched.append((team.name, index))
        if not self.max_failures or failures < self.max_failures or not self.has_rear_room:
            return False
        self.effects.given_up.append((team.name, index, None))
        team.committed.add(index)
        team.given_up.add(index)
        self.asked.setdefault(team.name, set()).add(index)
        if not self.is_held(index):
            self._retire([index])
        else:
            self.effects.committed.append((team.name, index, True))
        return True

    def commit(self, name: str, indexes: Sequence[int]) -> int:
        present = [index for index in dict.fromkeys(indexes) if index in self.items]
        if not present:
            return 0
        team = self.team(name)
        counted = [index for index in present if index not in team.committed - team.given_up]
        self.asked.setdefault(name, set()).update(counted)
        for index in counted:
            for seat in team.seats.values():
                seat.out.discard(index)
            team.held.pop(index, None)
            team.committed.add(index)
            team.given_up.discard(index)
        for index in counted:
            if not self.is_held(index):
                self._remove(index)
            else:
                self.effects.committed.append((name, index, False))
        return len(counted)

    def negative(
        self, name: str, pending: dict[int, Seat], unsent: set[int], *, shutdown: bool, now: float
    ) -> None:
        """`pending` are with these connections, `unsent` come back before they were sent."""
        if pending:
            self._unsent(self.teams[name], unsent)
        for index, seat in pending.items():
            seat.out.discard(index)
            if shutdown:
                seat.stopped = True
            elif not self._failed(seat.team, index):
                delays = self.timing.backoff_s
                delay = delays[min(seat.team.failures[index], len(delays)) - 1]
                if delay > 0:
                    seat.team.held[index] = (now + delay, None)

    def due(self) -> float:
        """When something is to be done, at the latest."""
        held = [until for team in self.teams.values() for until, _ in team.held.values()]
        left = [since for team in self.teams.values() for since in team.filters.values() if since is not None]
        return min([*held, *(since + self.timing.group_retention_s for since in left)], default=inf)

    def tick(self, now: float) -> None:
        """What was held is ready, groups that left long ago hold nothing back."""
        lapsed = False
        for team in self.teams.values():
            for index in [index for index, (until, _) in team.held.items() if until <= now]:
                del team.held[index]
            for user in [user for user, since in team.left.items() if since + self.timing.forget_s <= now]:
                del team.left[user], team.wanted[user]
            if team.lapse(now, self.timing.group_retention_s):
                self.effects.groups.append(team.name)
                lapsed = True
        if lapsed:
            self.sweep()

    # -- what is judged --------------------------------------------------------------------------------------------

    def settle(self, effects: Effects) -> None:
        """The event asked for what it must, and for nothing else."""
        due, self.effects = self.effects, Effects()
        hold("P13 given up at the limit", _pairs(effects.given_up) == _pairs(due.given_up), effects, due)
        hold("I1 entries leave for a reason", sorted(effects.removed) == sorted(due.removed), effects, due)
        hold("P9 commits are stored", sorted(effects.committed) == sorted(due.committed), effects, due)
        for name, index, touch in effects.given_up:
            if name in self.teams and index in self.items:
                team = self.teams[name]
                counts = (team.deliveries[index], team.failures[index])
                hold(
                    "P13 with its counts", (touch.deliveries, touch.failures) == counts, index, touch, counts
                )
        unanswered = [index for index, _ in effects.unanswered]
        hold(
            "P13 unanswered", sorted(unanswered) == sorted(index for index, _ in due.unanswered), effects, due
        )
        hold("P16 groups are stored", set(effects.groups) == set(due.groups), effects, due)
        gone = {index for _, index in {*effects.touched, *due.touched}} - self.items.keys()
        now_due = {pair for pair in due.touched if pair[1] not in gone}
        hold(
            "P12 counts are stored", {p for p in effects.touched if p[1] not in gone} == now_due, effects, due
        )
        for name in effects.forgotten_groups:
            team = self.teams.pop(name)
            known = bool(team.committed or team.deliveries or team.failures or team.held)
            hold("P16 a group in use is kept", not (team.filters or known), team)

    def delivered(self, seat: Seat, index: int, deliveries: int) -> None:
        """A frame was sent: it may be, and it is counted."""
        team = seat.team
        hold("I10 what is gone is not delivered", index in self.items, index)
        item = self.items[index]
        hold("P17 what is claimed is not delivered", index not in self.claimed, index)
        hold("I8 what is committed is not delivered", index not in team.committed, team.name, index)
        hold("a filter is kept", seat.wants(index, item), seat, index, item)
        hold("a consumer that said Shutdown gets nothing", not seat.stopped, seat, index)
        others = [other.user for other in team.seats.values() if index in other.out]
        hold("I5 one owner", not others, index, seat.user, others)
        until, user = team.held.pop(index, (0.0, seat.user))
        hold("P11 held back", user == seat.user, index, seat.user, user, until)
        known = team.deliveries.get(index, 0) + 1
        hold("I9 deliveries are counted", deliveries == known, team.name, index, deliveries, known)
        team.deliveries[index] = known
        if known == 1 and index not in team.late:
            last = seat.highest.get(item.priority, 0)
            hold("I7 first deliveries ascend", index > last, seat, index, last)
            seat.highest[item.priority] = index
        busy = any(team.alone(other) for other in seat.out)
        hold("P13 nothing beside an item that goes alone", not busy, seat, index)
        hold("P13 it goes alone", not (team.alone(index) and seat.out), seat, index)
        seat.out.add(index)
        hold("I6 the window", len(seat.out) <= seat.window, seat)

    def ready(self, team: Team) -> dict[int, Item]:
        """What could be handed out, when everything handed out was sent."""
        out = {index for seat in team.seats.values() for index in seat.out}
        return {
            index: item
            for index, item in self.items.items()
            if index not in out
            and index not in team.committed
            and index not in team.held
            and index not in self.claimed
        }

    def idle(self, sent: dict[int, list[int]]) -> None:
        """No free slot is left for which something is ready; what was `sent` came before what was not.

        A connection may wait with free slots until it is empty, one for each ready item that goes alone.
        """
        for team in self.teams.values():
            if not team.seats:
                continue
            ready = self.ready(team)
            alone = {index for index in ready if team.alone(index)}
            waiting = []
            for seat in team.seats.values():
                wanted = [index for index, item in ready.items() if seat.wants(index, item)]
                among = [index for index in wanted if index not in alone]
                self._in_order(seat, sent.get(seat.number, []), among)
                taken = seat.stopped or any(team.alone(index) for index in seat.out)
                if taken or len(seat.out) >= seat.window:
                    continue
                hold("I15 an empty connection has what is ready", bool(seat.out) or not wanted, seat, wanted)
                if among:
                    waiting.append(seat)
            hold("I15 a free slot has what is ready", len(waiting) <= len(alone), waiting, ready)

    def _in_order(self, seat: Seat, sent: list[int], left: list[int]) -> None:
        """Class, then index: within what was sent, and before what was left."""
        ranks = [self._rank(index) for index in sent if index in self.items]
        hold("P8 the highest class and lowest index first", ranks == sorted(ranks), seat, sent)
        among = [self._rank(index) for index in sent if index in self.items and not seat.team.alone(index)]
        if among and left:
            hold("P8 nothing ready is passed over", max(among) < min(map(self._rank, left)), seat, sent, left)

    def _rank(self, index: int) -> tuple[int, int]:
        return -self.items[index].priority, index

    # -- after a crash ---------------------------------------------------------------------------------------------

    def recover(
        self,
        items: dict[int, tuple[int, int, Tags]],
        last: int,
        committed: dict[str, dict[int, bool]],
        touched: dict[str, dict[int, tuple[int, int]]],
        groups: dict[str, list[tuple[Filter, float | None]]],
        now: float,
    ) -> None:
        """What was acknowledged is on the disk; what was not may be. The books go on from there."""
        hold("P4 no index comes again", last >= max(self.stored, default=0), last)
        for index, (priority, size, _) in items.items():
            hold("I10 what is gone stays gone", index not in self.gone, index)
            item = self.put.get(index)
            kept = item is not None and (item.priority, item.size) == (priority, size)
            hold("P1 what is there was put", kept, index, item, priority, size)
        lost = self.items.keys() - items.keys()
        hold("P1 what was acknowledged is there", not lost, sorted(lost))
        teams = {}
        for name in groups.keys() | self.done.keys():
            rows = committed.get(name, {}).keys() & items.keys()
            acked = self.done.get(name, set()) & items.keys()
            hold(
                "P9 an acknowledged commit is there",
                acked <= (rows if name in groups else set()),
                name,
                acked,
            )
            hold("P9 no commit that nobody asked for", rows <= self.asked.get(name, set()), name, rows)
            if name in groups:
                filters = {tags: now if left_at is None else left_at for tags, left_at in groups[name]}
                teams[name] = team = Team(name, committed=rows, filters=filters)
                team.given_up = {index for index in rows if committed[name][index]}
        for (name, index), counts in self.counted.items():
            if index in items and name in teams:
                known = touched.get(name, {}).get(index, (0, 0))
                hold(
                    "P12 counts never shrink",
                    min(k - c for k, c in zip(known, counts, strict=True)) >= 0,
                    known,
                )
        for name, rows_of in touched.items():
            for index, (deliveries, failures) in rows_of.items():
                if name in teams and index in items:
                    teams[name].deliveries[index], teams[name].failures[index] = deliveries, failures
        self.items = {index: self.put[index] for index in items}
        self.put = {index: item for index, item in self.put.items() if index <= last}
        self.stored |= items.keys()
        self.highest = last
        self.allotted, self.claimed, self.teams = {}, set(), teams
        self.asked = {name: {*committed.get(name, ())} for name in teams}
        self.effects = Effects()


def _pairs(given_up: Iterable[tuple[str, int, object]]) -> list[tuple[str, int]]:
    return sorted((name, index) for name, index, _ in given_up)
