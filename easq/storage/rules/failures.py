"""Failures of items: lost connections, negatives, busy items, and items that have failed too often."""

from __future__ import annotations

from dataclasses import replace

from easq.protocol.operations import BUSY, SHUTDOWN, Negative
from easq.storage.rules.consumers import ConsumerSession
from easq.storage.rules.effects import DeliveryRecord, Effects
from easq.storage.rules.groups import ConsumerGroup, Hold
from easq.storage.rules.state import StreamState

#: failure code of an item that was busy for too long
BUSY_STATUS = "503"
#: the wait of a busy item without `delay_s`: as long as it has waited before, within these bounds, in milliseconds
BUSY_FIRST_MS, BUSY_MOST_MS = 1000, 30_000
#: number of lost connections of an item that do not count as failures if the consumer names no process
FREE_LOSSES = 10
#: the failure reason of an item whose consumer did not reconnect
_LOST = "the connection was lost"


class FailureRules(StreamState):
    """The steps in which items fail."""

    # -- lost connections ----------------------------------------------------------------------------------------------

    def lose(
        self, group: ConsumerGroup, session: ConsumerSession, index: int, now: float, effects: Effects
    ) -> None:
        """Hold an item of a lost connection for its user during the grace period.

        The loss counts as a failure if the process does not reconnect in time, or after `FREE_LOSSES` losses if the
        consumer named no process.
        """
        hold = Hold(now + self.timing.leave_grace_s, session.consumer.user, session.process)
        if session.process:
            self._hold(group, index, hold)
        elif group.records[index].losses < FREE_LOSSES:
            group.records[index].losses += 1
            effects.recorded.append((group.name, index))
            self._hold(group, index, hold)
        else:
            self._count_loss(group, index, effects, hold)

    def _count_loss(self, group: ConsumerGroup, index: int, effects: Effects, hold: Hold) -> None:
        """Count the lost connection as a failure of the item; hold the item as `hold` says unless it is given up."""
        group.held.pop(index, None)
        group.records[index].losses += 1
        if not self._fail(group, index, "", _LOST, effects):
            self._hold(group, index, hold)

    def count_replaced(self, group: ConsumerGroup, session: ConsumerSession, effects: Effects) -> None:
        """Count the losses of an earlier process of the same name: it will not reconnect, as `session` replaces it."""
        lost = [
            index
            for index, hold in group.held.items()
            if hold.user == session.consumer.user and hold.process not in ("", session.process)
        ]
        for index in sorted(lost):
            self._count_loss(group, index, effects, group.held[index]._replace(process=""))

    def end_hold(self, group: ConsumerGroup, index: int, hold: Hold, effects: Effects) -> None:
        """Make the held item ready for all consumers. If it was held for a process, count a failure."""
        del group.held[index]
        if hold.process:
            group.records[index].losses += 1
            if self._fail(group, index, "", _LOST, effects):
                return
            if hold.user is not None:
                group.failed_by[index] = hold.user
        self._dispatcher.make_ready(group, index)

    def stood_still(self, now: float) -> None:
        """Restart the grace period of all lost connections: nobody could reconnect while the service stood still."""
        for group in self._groups.values():
            for index, hold in list(group.held.items()):
                if hold.user is not None:
                    self._hold(group, index, hold._replace(until=now + self.timing.leave_grace_s))

    # -- negatives -----------------------------------------------------------------------------------------------------

    def negative(self, name: str, negative: Negative, now: float) -> tuple[int, Effects]:
        """Make items that are pending in the group ready again after their back-off, and return how many; ignore
        others.

        Busy items wait for `delay_s` of the negative; without it, as long as they have waited before.
        """
        effects = Effects()
        code = negative.code
        group = self._groups.get(name)
        if group is None:
            return 0, effects
        counted = 0
        stopped: set[int] = set()
        for index in dict.fromkeys(negative.indexes):
            number = group.pending.get(index)
            if number is None:
                continue
            counted += 1
            self._dispatcher.end_delivery(group, index)
            if code == SHUTDOWN:
                stopped.add(number)
                self._dispatcher.make_ready(group, index)
                continue
            record = group.records.setdefault(index, DeliveryRecord())
            if code == BUSY and (waiting_ms := self._busy_for(record, negative.delay_s, now)) is not None:
                record.busy_ms += max(1, waiting_ms)  # with 0 it would not count as busy
                effects.recorded.append((name, index))
                delay = waiting_ms / 1000
            else:
                if self._fail(group, index, BUSY_STATUS if code == BUSY else code, negative.reason, effects):
                    continue
                delays = self.timing.backoff_s
                delay = delays[min(record.failures, len(delays)) - 1]
            group.failed_by[index] = self._sessions[number].consumer.user
            if delay > 0:
                self._hold(group, index, Hold(now + delay))
            else:
                self._dispatcher.make_ready(group, index)
        for number in stopped:
            self._dispatcher.stop(group, self._sessions[number])
        self._dispatch_to(group, effects)
        return counted, effects

    def _busy_for(self, record: DeliveryRecord, delay_s: float | None, now: float) -> int | None:
        """Return how many milliseconds a busy item has to wait; None when it has reached the limit.

        If it was busy before, the time that it was at the consumer counts: a worker keeps it until it may call the
        model again.
        """
        if record.fetched_ms:
            record.busy_ms += max(0, round(now * 1000) - record.fetched_ms)
            record.fetched_ms = 0
        limit_ms = round(self.timing.busy_limit_s * 1000)
        if limit_ms and record.busy_ms >= limit_ms:
            return None
        if delay_s is None:
            delay_ms = min(max(record.busy_ms, BUSY_FIRST_MS), BUSY_MOST_MS)
        else:
            delay_ms = round(delay_s * 1000)
        return min(delay_ms, limit_ms - record.busy_ms) if limit_ms else delay_ms

    # -- too many failures ---------------------------------------------------------------------------------------------

    def _fail(self, group: ConsumerGroup, index: int, code: str, reason: str, effects: Effects) -> bool:
        """Count a failure of the item. Return whether it was the last failure allowed, so that the group gave the item
        up.
        """
        record = group.records.setdefault(index, DeliveryRecord())
        record.failures += 1
        record.code, record.reason = code, reason
        record.busy_ms = record.fetched_ms = 0
        effects.recorded.append((group.name, index))
        return self._give_up(group, index, record, effects)

    def _give_up(self, group: ConsumerGroup, index: int, record: DeliveryRecord, effects: Effects) -> bool:
        """Give the item up if it has reached the limit of failures: it counts as committed, and a dead letter is
        requested.

        Returns whether it was given up. Without room in the rear store it stays, and is retried after the longest
        back-off.
        """
        if not self.max_failures or record.failures < self.max_failures:
            return False
        size = effects.given_up_size + self.entries.size_of(index)
        if not self.has_rear_room(len(effects.given_up) + 1, size):
            return False
        effects.given_up_size = size
        effects.given_up.append((group.name, index, replace(record)))
        left = self._snapshot(index)
        group.committed.add(index)
        group.given_up.add(index)
        if self._is_free(index):
            self._removed[index] = left
            self._retire([index], effects)
        else:
            effects.committed.append((group.name, index, True))
        return True

    def copies_stored(self, effects: Effects) -> None:
        """Record that copies and answers of removed entries are stored: the entries will not be restored."""
        for index in _copied_in(effects):
            self._removed.pop(index, None)

    def copies_refused(self, effects: Effects, now: float) -> Effects:
        """Restore removed entries, as their copies and answers could not be stored.

        Entries that were deleted or committed since are not restored. An item that a group gave up is ready for it
        after the longest back-off. After the same delay, `tick` tries again to remove the entries whose answer was
        refused.
        """
        again = now + self.timing.backoff_s[-1]
        taken = Effects()
        for index in dict.fromkeys(effects.removed):
            if index in self._removed:
                left = self._removed.pop(index)
                if left is None:
                    taken.removed.append(index)
                else:
                    priority, size, states = left
                    self.entries.restore(index, priority, size)
                    for name, state in states.items():
                        if any(state):
                            self._group(name, taken).restore_state(index, state)
        for name, index, _ in effects.given_up:
            group = self._groups.get(name)
            is_done = group is None or (index in group.committed and index not in group.given_up)
            if group is not None and index in self.entries and not is_done:
                group.committed.discard(index)
                group.given_up.discard(index)
                self._hold(group, index, Hold(again))
        self._unanswered_at = min(self._unanswered_at, again)
        self.due = min(self.due, again)
        for index in _copied_in(effects):
            for group in self._groups.values():
                self._dispatcher.make_ready(group, index)
        self._dispatch_all(taken)
        return taken


def _copied_in(effects: Effects) -> list[int]:
    """Return the entries that have a copy or an answer, each once."""
    given_up = [index for _, index, _ in effects.given_up]
    return list(dict.fromkeys([*given_up, *(index for index, _ in effects.unanswered)]))
