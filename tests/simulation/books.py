"""An independent model of one stream: the state that the promises require, computed without the rules.

Every event is entered here too, by the plain rule; the answers and effects of the stream have to be the same. What the
stream dispatches is not predicted but judged: `delivered` for each frame, `idle` for items left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeAlias

from easq.model import Tags
from easq.protocol.operations import BUSY, SHUTDOWN
from easq.storage.base import Limits, Timing
from easq.storage.rules import failures as rules
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.filters import Filter

#: an item that failed so often in a group is delivered alone, as is one whose connection was lost
ALONE_AFTER = 2
#: of an item in a group: deliveries, failures, losses, and how long it was busy, in milliseconds
Counts: TypeAlias = tuple[int, int, int, int]


class Broken(AssertionError):
    """A promise was broken."""


def hold(promise: str, is_kept: bool, *facts: object) -> None:
    """Raises Broken unless `is_kept`."""
    if not is_kept:
        raise Broken(f"{promise}: {', '.join(map(str, facts))}")


@dataclass
class Item:
    """An item, as it was put."""

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
    pending: set[int] = field(default_factory=set)
    highest: dict[int, int] = field(default_factory=dict)  # class -> last first delivery
    stopped: bool = False
    process: str = ""
    back: set[int] = field(default_factory=set)  # its process had these, and was away for a moment
    redeliveries: set[int] = field(
        default_factory=set
    )  # held for this user, which gets them one after the other

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
    losses: dict[int, int] = field(default_factory=dict)
    busy_ms: dict[int, int] = field(default_factory=dict)
    fetched_ms: dict[int, int] = field(default_factory=dict)  # when a consumer got what was busy before
    # index -> until, for whom, and the process that has to come back
    held: dict[int, tuple[float, str | None, str]] = field(default_factory=dict)
    failed_by: dict[int, str] = field(default_factory=dict)  # goes to another than this user
    free_again: set[int] = field(default_factory=set)  # of these, what there was no other for
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
        """Remove the filters whose retention period is over; return whether there were any."""
        before = self.filters
        self.filters = {
            tags: left_at
            for tags, left_at in before.items()
            if left_at is None or left_at + retention_s > now
        }
        return self.filters != before

    def alone(self, index: int) -> bool:
        return self.failures.get(index, 0) >= ALONE_AFTER or self.losses.get(index, 0) > 0

    def counts(self, index: int) -> Counts:
        return (
            self.deliveries.get(index, 0),
            self.failures.get(index, 0),
            self.losses.get(index, 0),
            self.busy_ms.get(index, 0),
        )

    def others(self, index: int, item: Item) -> bool:
        """Return whether a consumer other than the one that failed the item could get it."""
        user = self.failed_by[index]
        return any(
            seat.user != user and not seat.stopped and seat.wants(index, item) for seat in self.seats.values()
        )

    def may_have(self, seat: Seat, index: int, item: Item) -> bool:
        """Whether the item is not for another consumer, since this one failed it."""
        return self.failed_by.get(index) != seat.user or not self.others(index, item)

    def forget(self, index: int) -> None:
        self.committed.discard(index)
        self.given_up.discard(index)
        self.late.discard(index)
        self.free_again.discard(index)
        for rows in (
            self.deliveries,
            self.failures,
            self.losses,
            self.busy_ms,
            self.fetched_ms,
            self.held,
            self.failed_by,
        ):
            rows.pop(index, None)
        for seat in self.seats.values():
            seat.pending.discard(index)


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
        self.counted: dict[tuple[str, int], Counts] = {}  # acknowledged counts
        self.effects = Effects()  # what the current event must ask for

    # -- entries ---------------------------------------------------------------------------------------------------

    def room(self, size: int, limits: Limits, *, without: Iterable[int] = ()) -> bool:
        """Whether an item fits once `without` are gone."""
        rest = [*(self.items[index] for index in self.items.keys() - set(without)), *self.allotted.values()]
        return len(rest) < limits.max_items and sum(item.size for item in rest) + size <= limits.max_bytes

    def make_room(self, size: int, limits: Limits) -> bool:
        """Drop the filters of absent groups, then evict the oldest items if the limits allow it; change nothing if that
        would not make enough room.
        """
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

    def allocate(self, index: int, item: Item) -> None:
        hold("an index is above all before", index > self.highest, index, self.highest)
        self.highest = index
        self.put[index] = self.allotted[index] = item

    def show(self, index: int) -> None:
        self.items[index] = self.allotted.pop(index)
        self.stored.add(index)

    def drop(self, index: int) -> None:
        del self.allotted[index]

    def claim(self, indexes: Iterable[int], unsent: dict[str, set[int]]) -> None:
        """Hide the items; unsent deliveries of a connection stay here until the items are released."""
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
        """Remove items that the groups have finished; they are unanswered if all groups gave them up."""
        for index in sorted(indexes):
            teams = [team for team in self.teams.values() if index in team.committed]
            if teams and all(index in team.given_up for team in teams):
                self.effects.unanswered.append((index, None))
            self._remove(index)

    def is_held(self, index: int, *, connected: bool = False) -> bool:
        return any(team.holds(index, self.items[index], connected=connected) for team in self.teams.values())

    def leaving(self, *, connected: bool = False) -> list[int]:
        """Return the items that a group has committed and no group (or none with a seat that wants them) retains."""
        committed = {index for team in self.teams.values() for index in team.committed}
        return [index for index in committed if not self.is_held(index, connected=connected)]

    def sweep(self) -> None:
        """Remove the committed items that no group retains."""
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
        """The connection is there, an older one of the name is closed. Items held for this user and is not wanted
        any more is everybody's. A process that is back has all that it had; another one gets it one by one, and what
        that other process had has failed.
        """
        team = seat.team
        if seat.user in team.seats:
            older = team.seats[seat.user]
            is_back = seat.process != "" and older.process == seat.process
            self.leave(older, now, lost=is_back, unsent=unsent)
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
        mine = {index: held for index, held in sorted(team.held.items()) if held[1] == seat.user}
        for index, (until, _, process) in mine.items():
            if process not in ("", seat.process) and not self._lost(team, index):
                team.held[index] = (until, seat.user, "")
        for _, index in sorted((self._rank(index), index) for index in mine if index in team.held):
            until, _, process = team.held[index]
            if index in self.claimed or not seat.wants(index, self.items[index]):
                del team.held[index]
            elif process and len(seat.back) < seat.window:
                seat.back.add(index)
                del team.held[index]
            else:
                seat.redeliveries.add(index)
                team.held[index] = (until, seat.user, "")

    def leave(self, seat: Seat, now: float, *, lost: bool, unsent: set[int]) -> None:
        team = seat.team
        del team.seats[seat.user]
        team.left[seat.user] = now
        if all(other.tags != seat.tags for other in team.seats.values()):
            team.filters[tuple(sorted(seat.tags.items()))] = now
            self.effects.groups.append(team.name)
        self._unsent(team, unsent)
        until = now + self.timing.leave_grace_s
        for index in sorted(seat.pending) if lost else ():
            if seat.process:
                team.held[index] = (until, seat.user, seat.process)
            elif team.losses.get(index, 0) < rules.FREE_LOSSES:
                team.losses[index] = team.losses.get(index, 0) + 1
                self.effects.recorded.append((team.name, index))
                team.held[index] = (until, seat.user, "")
            elif not self._lost(team, index):
                team.held[index] = (until, seat.user, "")

    def _lost(self, team: Team, index: int) -> bool:
        """Count a lost connection as a failure; return whether it was the last one allowed."""
        team.held.pop(index, None)
        team.losses[index] = team.losses.get(index, 0) + 1
        return self._failed(team, index)

    def _unsent(self, team: Team, unsent: Iterable[int]) -> None:
        for index in unsent:
            team.late.add(index)
            team.held.pop(index, None)
            for seat in team.seats.values():
                seat.back.discard(index)

    def _failed(self, team: Team, index: int) -> bool:
        """Count a failure; return whether it was the last one allowed."""
        failures = team.failures[index] = team.failures.get(index, 0) + 1
        team.deliveries.setdefault(index, 0)
        team.busy_ms.pop(index, None)
        team.fetched_ms.pop(index, None)
        self.effects.recorded.append((team.name, index))
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
                seat.pending.discard(index)
            team.held.pop(index, None)
            team.failed_by.pop(index, None)
            team.committed.add(index)
            team.given_up.discard(index)
        for index in counted:
            if not self.is_held(index):
                self._remove(index)
            else:
                self.effects.committed.append((name, index, False))
        return len(counted)

    def negative(
        self,
        name: str,
        pending: dict[int, Seat],
        unsent: set[int],
        *,
        code: str,
        now: float,
        delay_s: float | None = None,
    ) -> None:
        """`pending` are with these connections, `unsent` come back before they were sent."""
        if pending:
            self._unsent(self.teams[name], unsent)
        for index, seat in pending.items():
            seat.pending.discard(index)
            seat.back.discard(index)
            team = seat.team
            if code == SHUTDOWN:
                seat.stopped = True
                continue
            if code == BUSY and index in team.fetched_ms:
                team.busy_ms[index] += round(now * 1000) - team.fetched_ms.pop(index)
            waited_ms, limit_ms = team.busy_ms.get(index, 0), round(self.timing.busy_limit_s * 1000)
            if code == BUSY and not (limit_ms and waited_ms >= limit_ms):
                wait_ms = min(max(waited_ms, 1000), 30_000) if delay_s is None else round(delay_s * 1000)
                wait_ms = min(wait_ms, limit_ms - waited_ms) if limit_ms else wait_ms
                team.busy_ms[index] = waited_ms + max(1, wait_ms)
                self.effects.recorded.append((team.name, index))
                delay = wait_ms / 1000
            elif self._failed(team, index):
                continue
            else:
                delays = self.timing.backoff_s
                delay = delays[min(team.failures[index], len(delays)) - 1]
            team.failed_by[index] = seat.user
            team.free_again.discard(index)
            if delay > 0:
                team.held[index] = (now + delay, None, "")

    def due(self) -> float:
        """Return the latest time at which `tick` has to be called."""
        held = [until for team in self.teams.values() for until, _, _ in team.held.values()]
        left = [since for team in self.teams.values() for since in team.filters.values() if since is not None]
        return min([*held, *(since + self.timing.group_retention_s for since in left)], default=inf)

    def tick(self, now: float) -> None:
        """End the holds that are due, and the retention of groups that left long ago."""
        lapsed = False
        for team in self.teams.values():
            over = sorted((until, index) for index, (until, _, _) in team.held.items() if until <= now)
            for _, index in over:
                _, user, process = team.held.pop(index)
                if process and not self._lost(team, index):
                    assert user is not None
                    team.failed_by[index] = user
                    team.free_again.discard(index)
            for user in [user for user, since in team.left.items() if since + self.timing.forget_s <= now]:
                del team.left[user], team.wanted[user]
            if team.lapse(now, self.timing.group_retention_s):
                self.effects.groups.append(team.name)
                lapsed = True
        if lapsed:
            self.sweep()

    # -- what is judged --------------------------------------------------------------------------------------------

    def settle(self, effects: Effects) -> None:
        """Check that the effects of the event are complete, and that there are no others."""
        due, self.effects = self.effects, Effects()
        hold("P13 given up at the limit", _pairs(effects.given_up) == _pairs(due.given_up), effects, due)
        hold("I1 entries leave for a reason", sorted(effects.removed) == sorted(due.removed), effects, due)
        hold("P9 commits are stored", sorted(effects.committed) == sorted(due.committed), effects, due)
        for name, index, record in effects.given_up:
            if name in self.teams and index in self.items:
                team = self.teams[name]
                counts = team.counts(index)
                hold("P13 with its counts", counts_of(record) == counts, index, record, counts)
        unanswered = [index for index, _ in effects.unanswered]
        hold(
            "P13 unanswered", sorted(unanswered) == sorted(index for index, _ in due.unanswered), effects, due
        )
        hold("P16 groups are stored", set(effects.groups) == set(due.groups), effects, due)
        gone = {index for _, index in {*effects.recorded, *due.recorded}} - self.items.keys()
        now_due = {pair for pair in due.recorded if pair[1] not in gone}
        hold(
            "P12 counts are stored",
            {p for p in effects.recorded if p[1] not in gone} == now_due,
            effects,
            due,
        )
        for name in effects.forgotten_groups:
            team = self.teams.pop(name)
            known = any((team.committed, team.deliveries, team.failures, team.losses, team.held))
            hold("P16 a group in use is kept", not (team.filters or known), team)

    def delivered(self, seat: Seat, index: int, deliveries: int, *, now: float, exact: bool) -> None:
        """A frame was sent: it may be, and it is counted. When `exact` it was dispatched just now."""
        team = seat.team
        hold("I10 what is gone is not delivered", index in self.items, index)
        item = self.items[index]
        hold("P17 what is claimed is not delivered", index not in self.claimed, index)
        hold("I8 what is committed is not delivered", index not in team.committed, team.name, index)
        hold("a filter is kept", seat.wants(index, item), seat, index, item)
        hold("a consumer that said Shutdown gets nothing", not seat.stopped, seat, index)
        others = [other.user for other in team.seats.values() if index in other.pending]
        hold("I5 one owner", not others, index, seat.user, others)
        if exact and index not in team.free_again:
            hold("P10 what failed goes to another", team.may_have(seat, index, item), seat, index)
        keepers = [other.user for other in team.seats.values() if other is not seat and index in other.back]
        hold("P11 a process that is back keeps what it holds", not keepers, index, seat.user, keepers)
        if index not in team.held:
            seat.redeliveries.discard(index)  # it was not done in time, and is like any other
        until, user, _ = team.held.pop(index, (0.0, seat.user, ""))
        hold("P11 held back", user == seat.user, index, seat.user, user, until)
        known = team.deliveries.get(index, 0) + 1
        hold("I9 deliveries are counted", deliveries == known, team.name, index, deliveries, known)
        team.deliveries[index] = known
        if team.busy_ms.get(index):
            team.fetched_ms[index] = round(now * 1000)
        if known == 1 and index not in team.late:
            last = seat.highest.get(item.priority, 0)
            hold("I7 first deliveries ascend", index > last, seat, index, last)
            seat.highest[item.priority] = index
        if index not in seat.back:
            busy = any(team.alone(other) or other in seat.redeliveries for other in seat.pending)
            hold("P13 nothing beside an item that goes alone", not busy, seat, index)
            alone = team.alone(index) or index in seat.redeliveries
            hold("P13 it goes alone", not (alone and seat.pending), seat, index)
        seat.pending.add(index)
        hold("I6 the window", len(seat.pending) <= seat.window, seat)

    def ready(self, team: Team) -> dict[int, Item]:
        """Return the items that could be dispatched once all dispatched ones were sent."""
        out = {index for seat in team.seats.values() for index in seat.pending}
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
                wanted = [
                    index
                    for index, item in ready.items()
                    if seat.wants(index, item) and team.may_have(seat, index, item)
                ]
                among = [index for index in wanted if index not in alone]
                self._in_order(seat, sent.get(seat.number, []), among)
                taken = seat.stopped or any(
                    team.alone(index) or index in seat.redeliveries for index in seat.pending
                )
                keeps = any(
                    index in ready or index in team.held for index in seat.redeliveries - seat.pending
                )
                if taken or (keeps and seat.pending) or len(seat.pending) >= seat.window:
                    continue
                hold(
                    "I15 an empty connection has what is ready",
                    bool(seat.pending) or not wanted,
                    seat,
                    wanted,
                )
                if among:
                    waiting.append(seat)
            hold("I15 a free slot has what is ready", len(waiting) <= len(alone), waiting, ready)

    def no_others(self) -> None:
        """A failed item without another consumer is an ordinary item from now on, even if another consumer connects."""
        for team in self.teams.values():
            for index in team.failed_by.keys() - team.held.keys():
                if not team.others(index, self.items[index]):
                    team.free_again.add(index)

    def _in_order(self, seat: Seat, sent: list[int], left: list[int]) -> None:
        """Class, then index: within what was sent, and before what was left."""
        sent = [index for index in sent if index not in seat.back | seat.redeliveries]
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
        records: dict[str, dict[int, Counts]],
        groups: dict[str, list[tuple[Filter, float | None]]],
        now: float,
    ) -> None:
        """Check after a power cut: acknowledged changes are on the disk, others may be. The model continues from
        there.
        """
        hold("P4 no index comes again", last >= max(self.stored, default=0), last)
        for index, (priority, size, _) in items.items():
            hold("I10 what is gone stays gone", index not in self.gone, index)
            item = self.put.get(index)
            is_same = item is not None and (item.priority, item.size) == (priority, size)
            hold("P1 what is there was put", is_same, index, item, priority, size)
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
                known = records.get(name, {}).get(index, (0, 0, 0, 0))
                # but for the time that it was busy, which begins anew with each failure
                is_less = any(k < c for k, c in zip(known[:3], counts[:3], strict=True))
                hold("P12 counts never shrink", not is_less, known)
        for name, rows_of in records.items():
            for index, counts in rows_of.items():
                if name in teams and index in items:
                    team = teams[name]
                    for rows, count in zip(
                        (team.deliveries, team.failures, team.losses, team.busy_ms), counts, strict=True
                    ):
                        rows[index] = count
        self.items = {index: self.put[index] for index in items}
        self.put = {index: item for index, item in self.put.items() if index <= last}
        self.stored |= items.keys()
        self.highest = last
        self.allotted, self.claimed, self.teams = {}, set(), teams
        self.asked = {name: {*committed.get(name, ())} for name in teams}
        self.effects = Effects()


def counts_of(record: DeliveryRecord) -> Counts:
    """The delivery counts of an item."""
    return record.deliveries, record.failures, record.losses, record.busy_ms


def _pairs(given_up: Iterable[tuple[str, int, object]]) -> list[tuple[str, int]]:
    return sorted((name, index) for name, index, _ in given_up)
