"""Checks of a history: pure functions that name the broken promises of the service.

A = attempted puts, K = acknowledged ones, D = delivered. A put or commit that was neither acknowledged nor refused may
have happened, at any time after it was sent, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

from tests.reliability.oplog import Event

Rule = Callable[[list[Event]], Iterator[str]]


def violations(history: Iterable[Event], rules: Sequence[Rule] = ()) -> list[str]:
    """Return the broken promises of the history, one line each. The history has to end with a drain, in which all
    remaining items are delivered.
    """
    events = sorted(history, key=lambda event: event.t)
    return list(chain.from_iterable(rule(events) for rule in rules or RULES))


def nothing_acknowledged_is_lost(events: list[Event]) -> Iterator[str]:
    """K - D - X is empty in each group: every acknowledged put that nobody deleted was delivered, at the latest by the
    drain; nothing else in its place.
    """
    delivered = {(event.group, event.index, event.payload) for event in events if event.f == "deliver"}
    deleted = {index for event in events if event.f == "delete" for index in event.indexes}
    groups = sorted({event.group for event in events if event.f in {"open", "deliver"}}) or [""]
    for event in events:
        if event.f != "put" or event.phase != "ok" or event.index in deleted:
            continue
        for group in groups:
            if (group, event.index, event.payload) not in delivered:
                where = f" to {group}" if group else ""
                yield f"lost: {event.payload} was acknowledged as {event.index} and never delivered{where}"


def no_index_is_used_twice(events: list[Event]) -> Iterator[str]:
    """An index has the same payload in all events; indexes are at least 1 and below 2^53."""
    payloads: dict[int, str] = {}
    acknowledged: set[int] = set()
    for event in events:
        if event.f not in {"put", "deliver"} or event.phase != "ok":
            continue
        if payloads.setdefault(event.index, event.payload) != event.payload:
            yield f"reused: {event.index} is both {payloads[event.index]} and {event.payload}"
        if event.f == "put" and event.index in acknowledged:
            yield f"reused: {event.index} was given twice"
        if event.f == "put":
            acknowledged.add(event.index)
        if not 0 < event.index < 2**53:
            yield f"out of range: {event.index}"


def indexes_go_up(events: list[Event]) -> Iterator[str]:
    """An index is higher than the index of every put that was acknowledged before this put was first sent."""
    highest = 0
    floors: dict[str, int] = {}
    for event in events:
        if event.f != "put":
            continue
        if event.phase == "invoke":
            floors.setdefault(event.payload, highest)
        elif event.phase == "ok":
            floor = floors[event.payload]
            if event.index <= floor:
                yield f"went back: {event.payload} got {event.index} after {floor} was acknowledged"
            highest = max(highest, event.index)


def nothing_comes_from_nowhere(events: list[Event]) -> Iterator[str]:
    """D is in A: a delivered item was put before, and the put was not refused."""
    sent: set[str] = set()
    refused: set[str] = set()
    for event in events:
        if event.f == "put" and event.phase == "invoke":
            sent.add(event.payload)
        elif event.f == "put" and event.phase == "fail":
            refused.add(event.payload)
        elif event.f == "deliver" and event.payload not in sent:
            yield f"from nowhere: {event.payload} as {event.index}"
        elif event.f == "deliver" and event.payload in refused:
            yield f"refused, and stored all the same: {event.payload} as {event.index}"


def each_put_is_at_most_one_item(events: list[Event]) -> Iterator[str]:
    """Every payload was sent once, or under a key that makes it one item: it has one index."""
    indexes: dict[str, set[int]] = {}
    for event in events:
        if event.f == "deliver":
            indexes.setdefault(event.payload, set()).add(event.index)
    for payload, found in indexes.items():
        if len(found) > 1:
            yield f"doubled: {payload} is {sorted(found)}"


def nothing_committed_comes_back(events: list[Event]) -> Iterator[str]:
    """After a commit or delete was acknowledged, no connection opened later gets the item; across kills, too."""
    done: dict[tuple[str, int], tuple[float, str]] = {}
    opened: dict[str, float] = {}
    for event in events:
        if event.f in {"commit", "delete"} and event.phase == "ok":
            for index in event.indexes:
                done.setdefault((event.group, index), (event.t, event.f))
        elif event.f == "open":
            opened[event.connection] = event.t
        elif event.f == "deliver" and (event.group, event.index) in done:
            moment, how = done[event.group, event.index]
            if moment < opened[event.connection]:
                yield f"back after its {how}: {event.index} on {event.connection}"


def the_window_holds(events: list[Event]) -> Iterator[str]:
    """A connection never has more received items than its window for which nobody has sent a commit, negative or
    delete.
    """
    windows: dict[str, int] = {}
    out: dict[str, set[int]] = {}
    by_group: dict[str, set[str]] = {}
    for event in events:
        if event.f == "open":
            windows[event.connection], out[event.connection] = event.window, set()
            by_group.setdefault(event.group, set()).add(event.connection)
        elif event.f == "close":
            by_group[event.group].discard(event.connection)
        elif event.f in {"commit", "negative", "delete"} and event.phase == "invoke":
            for connection in by_group.get(event.group, ()):
                out[connection].difference_update(event.indexes)
        elif event.f == "deliver":
            out[event.connection].add(event.index)
            if len(out[event.connection]) > windows[event.connection]:
                yield f"above the window: {len(out[event.connection])} out on {event.connection}"


def redelivery_has_a_cause(events: list[Event]) -> Iterator[str]:
    """A group gets an item once, and once more for each fault, end of a connection or negative after that."""
    deliveries: Counter[tuple[str, int]] = Counter()
    causes_at_first: dict[tuple[str, int], int] = {}
    causes = 0
    for event in events:
        if event.f in {"kill", "freeze", "close", "negative"}:
            causes += 1
        elif event.f == "deliver":
            item = event.group, event.index
            deliveries[item] += 1
            first = causes_at_first.setdefault(item, causes)
            if deliveries[item] > 1 + causes - first:
                yield f"delivered again for no reason: {event.index}, {deliveries[item]} times"


def nothing_committed_is_handed_out(events: list[Event]) -> Iterator[str]:
    """After a commit was acknowledged the group never gets the item, on no connection: a server that stood still
    meanwhile has nothing to push of what was handed out before. Clients have to read at once what comes.
    """
    done: set[tuple[str, int]] = set()
    for event in events:
        if event.f == "commit" and event.phase == "ok":
            done.update((event.group, index) for index in event.indexes)
        elif event.f == "deliver" and (event.group, event.index) in done:
            yield f"handed out after its commit: {event.index} on {event.connection}"


def an_item_has_one_owner(events: list[Event]) -> Iterator[str]:
    """An item that is pending at an open connection goes to no other connection of the group, unless the server was
    killed or stood still.
    """
    away: set[str] = set()  # servers that were killed or stand still
    server_of: dict[str, str] = {}
    holder: dict[tuple[str, int], str] = {}
    held: dict[str, set[tuple[str, int]]] = {}

    def let_go(connection: str) -> None:
        for item in held.pop(connection, set()):
            holder.pop(item, None)

    for event in events:
        if event.f == "open":
            server_of[event.connection] = event.server
        elif event.f == "close":
            let_go(event.connection)
        elif event.f in {"kill", "freeze", "thaw", "restart"}:
            # what had been sent before may be read a little after the fault: it is let go once more when that ends
            (away.add if event.f in {"kill", "freeze"} else away.discard)(event.server)
            for connection in [name for name in held if server_of[name] == event.server]:
                let_go(connection)
        elif event.f in {"commit", "negative", "delete"} and event.phase == "invoke":
            for item in ((event.group, index) for index in event.indexes):
                held.get(holder.pop(item, ""), set()).discard(item)
        elif event.f == "deliver":
            item = event.group, event.index
            before = holder.get(item, event.connection)
            if before != event.connection:
                held[before].discard(item)
                if server_of[before] not in away:
                    yield f"two owners: {event.index} on {event.connection} while {before} has it"
            holder[item] = event.connection
            held.setdefault(event.connection, set()).add(item)


def counts_grow(events: list[Event]) -> Iterator[str]:
    """The delivery count that the service reports for an item in a group grows with each delivery."""
    last: dict[tuple[str, int], int] = {}
    for event in events:
        if event.f == "deliver" and event.deliveries:
            item = event.group, event.index
            if event.deliveries <= last.get(item, 0):
                yield f"count went back: {event.index} is delivery {event.deliveries} after {last[item]}"
            last[item] = event.deliveries


RULES: tuple[Rule, ...] = (
    nothing_acknowledged_is_lost,
    no_index_is_used_twice,
    indexes_go_up,
    nothing_comes_from_nowhere,
    each_put_is_at_most_one_item,
    nothing_committed_comes_back,
    the_window_holds,
    redelivery_has_a_cause,
)
#: of several servers before one storage, too; their clients tell group, server and deliveries
RULES_OF_A_FLEET: tuple[Rule, ...] = (
    *RULES,
    nothing_committed_is_handed_out,
    an_item_has_one_owner,
    counts_grow,
)


def figures(history: Iterable[Event]) -> dict[str, int]:
    """Return the size of the history: operations tried, acknowledged and in doubt, deliveries and redeliveries."""
    events = list(history)
    phases = Counter((event.f, event.phase) for event in events)
    delivered = Counter((event.group, event.index) for event in events if event.f == "deliver")
    return {
        "puts acknowledged": phases["put", "ok"],
        "puts refused": phases["put", "fail"],
        "puts in doubt": phases["put", "info"],
        "of these stored": len(
            {event.payload for event in events if event.f == "put" and event.phase == "info"}
            & {event.payload for event in events if event.f == "deliver"}
        ),
        "items delivered": len(delivered),
        "redeliveries": sum(delivered.values()) - len(delivered),
        "commits acknowledged": sum(
            len(event.indexes) for event in events if event.f == "commit" and event.phase == "ok"
        ),
        "kills": phases["kill", "ok"],
    }


def slowest_redelivery_s(history: Iterable[Event]) -> dict[str, float]:
    """From the moment a server was killed, or began to stand still, until the last item that its connections held then
    was at another connection: for each such fault the longest, in seconds, under `FAULT SERVER`.
    """
    server_of: dict[str, str] = {}
    held: dict[tuple[str, int], str] = {}
    waiting: dict[tuple[str, int], tuple[float, str]] = {}
    slowest: dict[str, float] = {}
    for event in sorted(history, key=lambda event: event.t):
        if event.f == "open":
            server_of[event.connection] = event.server
        elif event.f in {"kill", "freeze"}:
            for item, connection in held.items():
                if server_of[connection] == event.server:
                    waiting[item] = event.t, f"{event.f} {event.server}"
        elif event.f == "commit" and event.phase == "invoke":
            for item in ((event.group, index) for index in event.indexes):
                held.pop(item, None)
                waiting.pop(item, None)
        elif event.f == "deliver":
            item = event.group, event.index
            held[item] = event.connection
            if item in waiting:
                since, fault = waiting.pop(item)
                slowest[fault] = max(slowest.get(fault, 0.0), event.t - since)
    return slowest


def results_differ(wanted: Mapping[str, bytes], results: Iterable[tuple[str, bytes]]) -> list[str]:
    """I12: each acknowledged input (request id -> what the model gives) has one result in the sink, that one; and
    there is no other.
    """
    found: dict[str, list[bytes]] = {}
    for request_id, data in results:
        found.setdefault(request_id, []).append(data)
    complaints = [f"no result: {request_id}" for request_id in wanted.keys() - found.keys()]
    for request_id, given in found.items():
        if request_id not in wanted:
            complaints.append(f"a result of nothing: {request_id}")
        elif len(given) > 1:
            complaints.append(f"{len(given)} results: {request_id}")
        elif given[0] != wanted[request_id]:
            complaints.append(f"another result: {request_id} is {given[0]!r}")
    return complaints


def committed_without_a_result(history: Iterable[Event]) -> list[str]:
    """I12: when a commit of an input arrives, its result is already stored. `put` and `answer` name the request id."""
    request_ids: dict[int, str] = {}
    answered: set[str] = set()
    complaints = []
    for event in sorted(history, key=lambda event: event.t):
        if event.f == "put":
            request_ids[event.index] = event.payload
        elif event.f == "answer":
            answered.add(event.payload)
        elif event.f == "commit":
            complaints += [
                f"committed without a result: {index} by {event.connection}"
                for index in event.indexes
                if request_ids.get(index) not in answered
            ]
    return complaints
