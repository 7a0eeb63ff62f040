"""The checker works: each forged history breaks one promise, and the checker names it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.reliability.check import RULES, RULES_OF_A_FLEET, figures, slowest_redelivery_s, violations
from tests.reliability.oplog import Event, Log, read


def put(t: float, payload: str, index: int, *, phase: str = "ok", op: int | None = None) -> list[Event]:
    """A put sent at `t` and answered a little later."""
    number = int(t * 100) if op is None else op
    answer = Event(t + 0.1, "p", "put", phase, number, index=index, payload=payload)
    return [Event(t, "p", "put", "invoke", number, payload=payload), answer]


def opened(t: float, connection: str, window: int = 2) -> Event:
    return Event(t, "w", "open", connection=connection, window=window)


def delivered(t: float, index: int, payload: str, connection: str = "c1") -> Event:
    return Event(t, "w", "deliver", index=index, payload=payload, connection=connection)


def commit(t: float, *indexes: int, phase: str = "ok") -> list[Event]:
    return [
        Event(t, "w", "commit", "invoke", int(t * 100), indexes=indexes),
        Event(t + 0.1, "w", "commit", phase, int(t * 100), indexes=indexes),
    ]


KILL = Event(5.0, "nemesis", "kill")

GOOD = [
    opened(0.0, "c1"),
    *put(1.0, "a", 1),
    *put(1.2, "b", 2),
    *put(1.4, "doubtful", 0, phase="info"),
    *put(1.5, "refused", 0, phase="fail"),
    delivered(2.0, 1, "a"),
    *commit(2.1, 1),
    delivered(2.5, 2, "b"),
    *commit(4.9, 2, phase="info"),
    KILL,
    opened(6.0, "c2", 100),
    delivered(6.1, 2, "b", "c2"),
    delivered(6.2, 3, "doubtful", "c2"),
    *commit(6.5, 2, 3),
]


def deleted(t: float, *indexes: int) -> Event:
    return Event(t, "d", "delete", indexes=indexes)


def test_what_was_deleted_need_not_be_delivered() -> None:
    assert violations([*GOOD, *put(1.6, "x", 11), deleted(2.0, 11)]) == []


def test_a_good_history_has_no_violations() -> None:
    """Lost answers are no violation: a put in doubt may be stored, and a commit in doubt may be without effect."""
    assert violations(GOOD) == []
    assert figures(GOOD) == {
        "puts acknowledged": 2,
        "puts refused": 1,
        "puts in doubt": 1,
        "of these stored": 1,
        "items delivered": 3,
        "redeliveries": 1,
        "commits acknowledged": 3,
        "kills": 1,
    }


def test_a_put_in_doubt_may_be_absent() -> None:
    assert violations([event for event in GOOD if (event.f, event.payload) != ("deliver", "doubtful")]) == []


def test_the_order_of_events_does_not_matter() -> None:
    """Logs come from many clients."""
    assert violations(reversed(GOOD)) == []


@pytest.mark.parametrize(
    ("forged", "complaint"),
    [
        pytest.param(
            put(1.6, "gone", 9), "lost: gone was acknowledged as 9 and never delivered", id="lost ack"
        ),
        pytest.param(
            put(1.6, "gone", 2),
            "lost: gone was acknowledged as 2 and never delivered",
            id="lost, and its index reused",
        ),
        pytest.param(
            [*put(3.0, "c", 2), delivered(6.3, 2, "c", "c2")], "reused: 2 is both b and c", id="reused index"
        ),
        pytest.param(put(3.0, "b", 2), "reused: 2 was given twice", id="one index twice"),
        pytest.param([delivered(6.3, 1, "other", "c2")], "reused: 1 is both a and other", id="other payload"),
        pytest.param(
            [
                *put(2.0, "high", 50),
                *put(3.0, "low", 40),
                delivered(6.3, 40, "low", "c2"),
                delivered(6.4, 50, "high", "c2"),
            ],
            "went back: low got 40 after 50 was acknowledged",
            id="index goes back",
        ),
        pytest.param([*put(1.7, "z", 0), delivered(6.3, 0, "z", "c2")], "out of range: 0", id="index zero"),
        pytest.param([delivered(6.3, 7, "phantom", "c2")], "from nowhere: phantom as 7", id="phantom"),
        pytest.param(
            [delivered(6.3, 7, "refused", "c2")],
            "refused, and stored all the same: refused as 7",
            id="refused and stored",
        ),
        pytest.param([delivered(6.3, 8, "doubtful", "c2")], "doubled: doubtful is [3, 8]", id="doubled"),
        pytest.param(
            [delivered(6.3, 1, "a", "c2")], "back after its commit: 1 on c2", id="redelivery after commit"
        ),
        pytest.param(
            [*put(1.6, "x", 11), deleted(2.0, 11), delivered(6.3, 11, "x", "c2")],
            "back after its delete: 11 on c2",
            id="delivery after delete",
        ),
        pytest.param(
            [
                opened(1.9, "c0", 1),
                *put(1.60, "x", 11),
                *put(1.62, "y", 12),
                delivered(2.90, 11, "x", "c0"),
                delivered(2.91, 12, "y", "c0"),
            ],
            "above the window: 2 out on c0",
            id="window",
        ),
        pytest.param(
            [*put(1.6, "x", 11), delivered(6.30, 11, "x", "c2"), delivered(6.31, 11, "x", "c2")],
            "delivered again for no reason: 11, 2 times",
            id="redelivery without cause",
        ),
    ],
)
def test_a_broken_promise_is_named(forged: list[Event], complaint: str) -> None:
    assert complaint in violations([*GOOD, *forged])


def test_every_rule_is_broken_by_some_forged_history() -> None:
    """Each rule fires for at least one history above."""
    marks = test_a_broken_promise_is_named.pytestmark[0].args[1]
    histories = [sorted([*GOOD, *mark.values[0]], key=lambda event: event.t) for mark in marks]
    assert [rule.__name__ for rule in RULES if not any(list(rule(history)) for history in histories)] == []


def test_a_delivery_on_a_connection_older_than_the_commit_is_no_violation() -> None:
    """The frame was under way when another consumer committed the item."""
    late = [opened(2.05, "c0"), replace(delivered(2.3, 1, "a"), connection="c0"), Event(2.04, "w", "close")]
    assert violations([*GOOD, *late]) == []


# -- several servers ---------------------------------------------------------------------------------------------


def at(server: str, event: Event) -> Event:
    """The event in the group `g`, at a server."""
    return replace(event, group="g", server=server)


#: s0 is held while w0 has two items; w1 at s1 gets them, and does them
FLEET = [
    at("s0", opened(0.0, "w0-1")),
    at("s1", opened(0.1, "w1-1")),
    *put(1.0, "a", 1),
    *put(1.2, "b", 2),
    at("s0", delivered(2.0, 1, "a", "w0-1")),
    at("s0", delivered(2.1, 2, "b", "w0-1")),
    Event(3.0, "nemesis", "freeze", server="s0"),
    at("s1", replace(delivered(8.0, 1, "a", "w1-1"), deliveries=2)),
    at("s1", replace(delivered(8.5, 2, "b", "w1-1"), deliveries=2)),
    Event(9.0, "nemesis", "thaw", server="s0"),
    *(at("s1", event) for event in commit(10.0, 1, 2)),
]


def test_a_held_server_breaks_nothing() -> None:
    assert violations(FLEET, RULES_OF_A_FLEET) == []
    assert slowest_redelivery_s(FLEET) == {"freeze s0": 5.5}


@pytest.mark.parametrize(
    ("forged", "complaint"),
    [
        pytest.param(
            [at("s0", replace(delivered(9.1, 1, "a", "w0-1"), deliveries=3))],
            "two owners: 1 on w0-1 while w1-1 has it",
            id="a server that was held pushes what it had",
        ),
        pytest.param(
            [at("s0", replace(delivered(10.2, 1, "a", "w0-1"), deliveries=3))],
            "handed out after its commit: 1 on w0-1",
            id="and pushes it after it was committed",
        ),
        pytest.param(
            [at("s2", opened(0.2, "w2-1")), at("s2", delivered(2.5, 1, "a", "w2-1"))],
            "two owners: 1 on w2-1 while w0-1 has it",
            id="two servers hand out one item",
        ),
        pytest.param(
            [at("s1", replace(delivered(8.6, 1, "a", "w1-1"), deliveries=2))],
            "count went back: 1 is delivery 2 after 2",
            id="a delivery that was not counted",
        ),
        pytest.param(
            [
                replace(opened(0.2, "x-1"), group="other"),
                replace(delivered(2.5, 1, "a", "x-1"), group="other"),
            ],
            "lost: b was acknowledged as 2 and never delivered to other",
            id="lost in one group",
        ),
    ],
)
def test_what_servers_do_to_one_another_is_named(forged: list[Event], complaint: str) -> None:
    assert complaint in violations([*FLEET, *forged], RULES_OF_A_FLEET)


def test_a_log_is_read_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("log")
    logs = [Log(folder, "one"), Log(folder, "two")]
    logs[0].add("put", "invoke", op=1, payload="a")
    logs[1].add("commit", indexes=[1, 2])
    logs[0].add("put", "ok", op=1, payload="a", index=1)
    for log in logs:
        log.close()
    events = read(folder)
    assert [(event.client, event.f, event.phase, event.indexes) for event in events] == [
        ("one", "put", "invoke", ()),
        ("two", "commit", "ok", (1, 2)),
        ("one", "put", "ok", ()),
    ]
