"""The data of the reference: items, connections, groups."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Item:
    index: int
    priority: int
    tags: dict[str, str]
    data: bytes

    @property
    def rank(self) -> tuple[int, int]:
        return (-self.priority, self.index)

    def has(self, tags: dict[str, str]) -> bool:
        return all(self.tags.get(key) == value for key, value in tags.items())


@dataclass
class Connection:
    number: int
    group: str
    user: str
    window: int
    after: int
    tags: dict[str, str]
    served: int
    pending: list[int] = field(default_factory=list)  # dispatched and not done
    unsent: list[int] = field(default_factory=list)  # of these, not read yet
    stopped: bool = False
    process: str = ""
    alone: int = 0  # what it has, or waits for, with nothing beside it
    redeliveries: list[int] = field(default_factory=list)  # held for its user: it gets one after the other

    @property
    def free(self) -> int:
        return 0 if self.stopped or self.alone or self.redeliveries else self.window - len(self.pending)

    @property
    def is_reserved(self) -> bool:
        return self.alone > 0 and self.alone not in self.pending

    def wants(self, item: Item) -> bool:
        return item.index > self.after and item.has(self.tags)


@dataclass
class DeliveryRecord:
    deliveries: int = 0
    failures: int = 0
    code: str = ""  # of the last failure, as the reason
    reason: str = ""
    losses: int = 0
    busy_ms: int = 0
    fetched_ms: int = field(default=0, compare=False)

    @property
    def goes_alone(self) -> bool:
        return self.failures >= 2 or self.losses >= 1


@dataclass(eq=False)
class Group:
    committed: set[int] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    records: dict[int, DeliveryRecord] = field(default_factory=dict)
    # until when, for which user, and which process has to come back
    held: dict[int, tuple[float, str, str]] = field(default_factory=dict)
    failed_by: dict[int, str] = field(default_factory=dict)  # goes to another than this user
    # what it holds back: tags -> when the last consumer with them left; None while one is connected
    filters: dict[tuple[tuple[str, str], ...], float | None] = field(default_factory=dict)
    users: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)  # what each watched for last
    left: dict[str, float] = field(default_factory=dict)  # when each left that is not connected

    def holds(self, item: Item, *, connected: bool = False) -> bool:
        """Return whether the group retains the item; with `connected`, only for connected consumers."""
        return item.index not in self.committed and any(
            item.has(dict(tags)) for tags, left_at in self.filters.items() if left_at is None or not connected
        )

    def lapse(self, now: float, retention_s: float = 0.0) -> bool:
        """Remove filters whose retention period is over. Return whether there were any."""
        before = self.filters
        self.filters = {
            tags: left_at
            for tags, left_at in before.items()
            if left_at is None or left_at + retention_s > now
        }
        return self.filters != before

    def record(self, index: int) -> DeliveryRecord:
        return self.records.setdefault(index, DeliveryRecord())

    def forget(self, index: int) -> None:
        self.committed.discard(index)
        self.given_up.discard(index)
        self.records.pop(index, None)
        self.held.pop(index, None)
        self.failed_by.pop(index, None)
