"""What a step of a stream asks of its engine: what to make durable, and whom to wake."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Touch:
    """What a group remembers of an item that was delivered to it at least once.

    `losses` counts the connections that were lost with it, except those whose process reconnected in time; `busy_ms` is
    how long it was busy since its last failure: it waited, or was at a consumer that then said so again. `fetched_ms`,
    which is not stored, is when a consumer got an item that was busy before, 0 if that is not known.
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
    """What a step asks of the engine. `removed` and `truncated_below` (0: none) name entries to forget.

    `given_up` are copied to the rear store; `unanswered` left because every group gave them up, and none committed. The
    stream is told once copies and answers are stored, or there was no space for them (`buried`, `take_up`).
    """

    removed: list[int] = field(default_factory=list)
    truncated_below: int = 0
    committed: list[tuple[str, int, bool]] = field(default_factory=list)  # group, index, given up
    given_up: list[tuple[str, int, Touch]] = field(default_factory=list)
    given_up_size: int = 0  # their bytes together
    unanswered: list[tuple[int, Touch]] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    forgotten_groups: list[str] = field(default_factory=list)
    touched: list[tuple[str, int]] = field(default_factory=list)
    woken: set[int] = field(default_factory=set)
    replaced: set[int] = field(default_factory=set)
