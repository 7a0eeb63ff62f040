"""A history to its verdict: pure functions, each naming what of the service's promises the history breaks.

A = attempted puts, K = acknowledged ones, D = delivered. A put or commit that was neither acknowledged nor refused may
have happened, at any time after it was sent, or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

from tests.reliability.oplog import Event

Rule = Callable[[list[Event]], Iterator[str]]


def violations(history: Iterable[Event]) -> list[str]:
    """Everything that the history breaks, one line each. It has to end with a drain: all that is left is delivered."""
    events = sorted(history, key=lambda event: event.t)
    return list(chain.from_iterable(rule(events) for rule in RULES))


def nothing_acknowledged_is_lost(events: list[Event]) -> Iterator[str]:
    """K - D - X is empty: every acknowledged put that nobody deleted was delivered, at the latest by the drain;
    nothing else in its place.
    """
    delivered = {(event.index, event.payload) for event in events if event.f == "deliver"}
    deleted = {index for event in events if event.f == "delete" for index in event.indexes}
    for event in events:
        if event.f != "put" or event.phase != "ok" or event.index in deleted:
            continue
        if (event.index, event.payload) not in delivered:
            yield f"lost: {event.payload} was acknowledged as {event.index} and never delivered"


def no_index_is_used_twice(events: list[Event]) -> Iterator[str]:
    """One index, one payload, whoever tells of it; and they are 1 or more, and below 2^53."""
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
    """An index is higher than that of every put acknowledged before this one was sent (for the first time)."""
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
    """D is in A: what is delivered was sent, by someone, before, and was not refused."""
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
    done: dict[int, tuple[float, str]] = {}
    opened: dict[str, float] = {}
    for event in events:
        if event.f in {"commit", "delete"} and event.phase == "ok":
            for index in event.indexes:
                done.setdefault(index, (event.t, event.f))
        elif event.f == "open":
            opened[event.connection] = event.t
        elif event.f == "deliver" and event.index in done:
            moment, how = done[event.index]
            if moment < opened[event.connection]:
                yield f"back after its {how}: {event.index} on {event.connection}"


def the_window_holds(events: list[Event]) -> Iterator[str]:
    """On a connection never more than its window is received and not yet sent to be done with, by anyone."""
    windows: dict[str, int] = {}
    out: dict[str, set[int]] = {}
    for event in events:
        if event.f == "open":
            windows[event.connection], out[event.connection] = event.window, set()
        elif event.f in {"commit", "negative", "delete"} and event.phase == "invoke":
            for indexes in out.values():
                indexes.difference_update(event.indexes)
        elif event.f == "deliver":
            out[event.connection].add(event.index)
            if len(out[event.connection]) > windows[event.connection]:
                yield f"above the window: {len(out[event.connection])} out on {event.connection}"


def redelivery_has_a_cause(events: list[Event]) -> Iterator[str]:
    """An item is delivered once, and once more for each kill, end of a connection or negative after that."""
    deliveries: Counter[int] = Counter()
    causes_at_first: dict[int, int] = {}
    causes = 0
    for event in events:
        if event.f in {"kill", "close", "negative"}:
            causes += 1
        elif event.f == "deliver":
            deliveries[event.index] += 1
            first = causes_at_first.setdefault(event.index, causes)
            if deliveries[event.index] > 1 + causes - first:
                yield f"delivered again for no reason: {event.index}, {deliveries[event.index]} times"


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


def figures(history: Iterable[Event]) -> dict[str, int]:
    """What the history is worth: how much was tried, acknowledged, left open, delivered and delivered again."""
    events = list(history)
    phases = Counter((event.f, event.phase) for event in events)
    delivered = Counter(event.index for event in events if event.f == "deliver")
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
    """I12: when a commit of an input comes in, its result is stored. `put` and `answer` name the request id."""
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
