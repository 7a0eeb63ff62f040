"""The effects of a step of a stream: the changes that the engine stores, and the connections that it wakes."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class DeliveryRecord:
    """Deliveries and failures of an item in a group to which it was delivered at least once.

    `losses` counts its lost connections, except those whose process reconnected in time. `busy_ms` is the total time
    that the item was busy since its last failure, in milliseconds: it waited, or it was at a consumer that then
    reported busy again. `fetched_ms`, which is not stored, is the time at which a consumer got an item that was busy
    before; 0 if the time is unknown.
    """

    deliveries: int = 0
    failures: int = 0
    code: str = ""
    reason: str = ""
    losses: int = 0
    busy_ms: int = 0
    fetched_ms: int = field(default=0, compare=False)


@dataclass(slots=True)
class Effects:
    """The result of a step: the changes that the engine has to store, and the connections to wake. `removed` and
    `truncated_below` (0: none) name entries to delete.

    `given_up` entries are copied to the rear store. `unanswered` ones were removed because every group gave them up and
    none committed them. Once copies and answers are stored or refused, the engine calls `copies_stored` or
    `copies_refused` of the stream.
    """

    removed: list[int] = field(default_factory=list)
    truncated_below: int = 0
    committed: list[tuple[str, int, bool]] = field(default_factory=list)  # group, index, given up
    given_up: list[tuple[str, int, DeliveryRecord]] = field(default_factory=list)
    given_up_size: int = 0  # their bytes together
    unanswered: list[tuple[int, DeliveryRecord]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    forgotten_groups: list[str] = field(default_factory=list)
    recorded: list[tuple[str, int]] = field(default_factory=list)
    woken: set[int] = field(default_factory=set)
    replaced: set[int] = field(default_factory=set)
