"""Work on several items at a time: results in order, errors kept, nothing begun after a stop."""

from __future__ import annotations

import threading

import pytest

from easq.client.items import Item
from easq.errors import NotFound, UsageError
from easq.prediction.in_order import in_order

ITEMS = [Item(bytes([65 + number])) for number in range(6)]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    done = list(in_order(iter(ITEMS), lambda item: item.data.lower(), workers=workers))
    assert done == [(item, item.data.lower()) for item in ITEMS]


def test_a_slow_first_item_is_waited_for_while_others_are_done() -> None:
    second_done = threading.Event()

    def work(item: Item) -> bytes:
        if item is ITEMS[0]:
            assert second_done.wait(30)
        else:
            second_done.set()
        return item.data

    assert [data for _, data in in_order(iter(ITEMS), work, workers=2)] == [item.data for item in ITEMS]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_is_the_result_of_its_item_alone(workers: int) -> None:
    error, refused = NotFound("no"), UsageError("unreadable")

    def work(item: Item) -> bytes:
        if item.data == b"B":
            raise error
        return item.data

    items = [*ITEMS[:2], Item(b"", error=refused)]
    results = [result for _, result in in_order(iter(items), work, workers=workers)]
    assert results == [b"A", error, refused]


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_begun_after_a_stop(workers: int) -> None:
    begun: list[bytes] = []
    results = in_order(
        iter(ITEMS), lambda item: begun.append(item.data), workers=workers, stop=lambda: len(begun) >= 2
    )
    assert len(list(results)) == len(begun) < len(ITEMS)
