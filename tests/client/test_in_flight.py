"""What is in hand, in one thread: whose an item is after a connection was lost, and what is committed when."""

from __future__ import annotations

import pytest

from easq.client.in_flight import Hands
from easq.model import Frame


@pytest.fixture
def hands() -> Hands[str]:
    return Hands()


def test_an_item_goes_from_hand_to_hand(hands: Hands[str]) -> None:
    hands.add(Frame(1), 1)
    assert hands.in_flight == 0
    assert hands.take(lambda: 1) == Frame(1)
    assert (hands.in_flight, hands.begun) == (1, 1)
    hands.done(1, "note")
    hands.end_take()
    assert (hands.in_flight, hands.begun, hands.next_batch()) == (1, 0, [1])
    assert hands.committed([1]) == ["note"]
    assert hands.in_flight == 0


def test_what_comes_again_while_it_is_in_hand_is_not_begun_again(hands: Hands[str]) -> None:
    """A lost connection gave it back, and the new one brought it: it is ours, and counts as come on the new one."""
    hands.add(Frame(1), 1)
    hands.take(lambda: 1)
    hands.add(Frame(1), 2)
    assert hands.drop_waiting() == []
    assert hands.release(1) == 2


def test_what_waits_since_a_connection_that_is_lost_is_left_out(hands: Hands[str]) -> None:
    """It may be in other hands; if it comes to us again it is begun."""
    hands.add(Frame(1), 1)
    hands.add(Frame(2), 1)
    hands.add(Frame(2), 2)
    assert hands.take(lambda: 2) == Frame(2)
    hands.add(Frame(1), 2)
    assert hands.take(lambda: 2) == Frame(1)


def test_what_was_committed_and_comes_again_is_committed_again(hands: Hands[str]) -> None:
    """The commit was lost on the way; nobody is told of it a second time."""
    hands.add(Frame(1), 1)
    hands.take(lambda: 1)
    hands.done(1, "note")
    hands.committed([1])
    assert not hands.accepts(Frame(1), 2)
    assert hands.next_batch() == [1]
    assert hands.committed([1]) == []


def test_what_was_released_is_new_when_it_comes_again(hands: Hands[str]) -> None:
    """A failure that was told may be answered with a redelivery before the telling has ended."""
    hands.add(Frame(1), 1)
    hands.take(lambda: 1)
    assert hands.release(1) == 1
    assert hands.accepts(Frame(1), 1)
    hands.end_take()
    assert hands.release(7) == 0


def test_once_it_is_to_end_nothing_is_begun(hands: Hands[str]) -> None:
    hands.add(Frame(1), 1)
    hands.add(Frame(2), 1)
    assert hands.take(lambda: 1) == Frame(1)
    hands.stop(0.0)
    assert hands.is_stopping
    assert hands.take(lambda: 1) is None
    assert not hands.wait_for_room()
    assert hands.drop_waiting() == [Frame(2)]
    assert not hands.is_busy_in_time()
    hands.close()
    assert hands.next_batch() == []


def test_a_batch_has_a_bound(hands: Hands[str]) -> None:
    for index in range(1, 301):
        hands.add(Frame(index), 1)
        hands.done(index, "note")
    assert hands.next_batch() == list(range(1, 257))
