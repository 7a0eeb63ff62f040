"""The state of a stream in its attributes: its length, consumers, groups, and the filters that retain items."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from easq.protocol.attributes import ConsumerLine, GroupLine, HeldLine
from easq.storage.base import StreamStats
from easq.storage.rules.consumers import ConsumerSession, GroupMember
from easq.storage.rules.entries import Entries
from easq.storage.rules.groups import ConsumerGroup


def stats_of(
    entries: Entries,
    groups: Collection[ConsumerGroup],
    sessions: Mapping[int, ConsumerSession],
    *,
    now: float,
    ended: bool,
    retention_s: float,
) -> StreamStats:
    """Return the state of a stream at `now`; claimed items count as removed."""
    return StreamStats(
        length=entries.count(),
        size=entries.visible_size,
        first=next(entries.indexes_from(0), 0),
        last=entries.last_visible(),
        next=entries.last + 1,
        ended=ended,
        consumers=[
            _consumer_line(group, member, None if member.session is None else sessions[member.session], now)
            for group in groups
            for member in group.members.values()
        ],
        groups=[
            GroupLine(
                id=group.name,
                index=min(group.pending, default=0),
                pending=len(group.pending),
                delivered=group.highest + 1,
                consumers=group.connected,
            )
            for group in groups
            if group.connected or group.members
        ],
        held=[
            HeldLine(
                group.name,
                None if one else len(entries) - len(group.committed),
                None if left_at is None else max(0.0, left_at + retention_s - now),
                dict(one),
            )
            for group in groups
            if len(entries) > len(group.committed)
            for one, left_at in group.filters
        ],
    )


def _consumer_line(
    group: ConsumerGroup, member: GroupMember, session: ConsumerSession | None, now: float
) -> ConsumerLine:
    held = sum(1 for hold in group.held.values() if hold.user == member.consumer.user)
    if session is not None:
        status = "Running"
    elif not member.left_pending:
        status = "Complete"
    else:
        status = "Leaving" if held else "Exit"
    return ConsumerLine(
        id=member.consumer.id,
        index=member.index,
        pending=held if session is None else len(session.pending),
        status=status,
        idle_s=max(0.0, now - member.active_at),
        window=0 if session is None else member.window,
        slots=0 if session is None else max(0, member.window - len(session.pending)),
        auto_commit=member.auto_commit,
        tags=member.tags,
    )
