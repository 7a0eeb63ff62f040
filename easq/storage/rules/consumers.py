"""The consumers of a group: their connections, the views that connections share, and the members listed in
attributes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from easq.model import Consumer, Tags


class FilterView:
    """The scan position, per priority, of the consumers with one start and one tag filter.

    Items that became ready again behind the cursors are in `inbox` until they are examined, then in `returned` if they
    match the filter.
    """

    __slots__ = ("after", "cursors", "inbox", "left", "returned", "sessions", "tags")

    def __init__(self, after: int, tags: Tags) -> None:
        self.after = after
        self.tags = dict(tags)
        self.cursors: dict[int, int] = {}
        self.inbox: list[tuple[int, int]] = []  # (-priority, index)
        self.returned: list[tuple[int, int]] = []  # heap of (-priority, index)
        self.sessions: set[int] = set()
        self.left = 0  # rest of the budget of this call


@dataclass(slots=True)
class ConsumerSession:
    """One watch connection."""

    number: int
    consumer: Consumer
    window: int
    auto_commit: bool
    view: FilterView
    pending: set[int] = field(default_factory=set)  # pending at this connection
    unsent: dict[int, None] = field(default_factory=dict)  # pending but not fetched yet, in order
    served: int = 0  # `Dispatcher.count` when the connection last got an item
    stopped: bool = False
    alone: int = 0  # index of the item that is delivered alone to the connection, or will be; 0: none
    process: str = ""
    # heap of (-priority, index): items held for this user, delivered one at a time
    redeliveries: list[tuple[int, int]] = field(default_factory=list)

    @property
    def free(self) -> int:
        """The number of free slots."""
        return 0 if self.stopped or self.alone or self.redeliveries else self.window - len(self.pending)


@dataclass(slots=True)
class GroupMember:
    """A consumer as attributes list it, connected or not."""

    consumer: Consumer
    session: int | None
    window: int
    auto_commit: bool
    tags: Tags
    index: int = 0
    active_at: float = 0.0
    left_pending: bool = False
