"""Facts about a stream by its attributes, and reopening it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import easq
from easq.client.items import MOST_BYTES
from easq.client.state import item_limit, knows_keys, last_index, reopen
from tests.support.redis import free_port


@pytest.fixture
def queue() -> Iterator[easq.QueueClient]:
    with easq.serve(max_payload=1000) as service, easq.QueueClient(service.url) as client:
        yield client


def test_the_last_index_is_that_of_the_last_item(queue: easq.QueueClient) -> None:
    assert last_index(queue) == 0
    queue.put(b"x")
    last = queue.put(b"y").index
    assert last_index(queue) == last


def test_the_limit_of_an_item_is_the_services(queue: easq.QueueClient) -> None:
    assert item_limit(queue) == 1000
    assert knows_keys(queue)


def test_a_service_that_does_not_answer_has_the_most_that_one_takes() -> None:
    with easq.QueueClient(f"http://127.0.0.1:{free_port()}/api/predict/q") as client:
        assert item_limit(client) == MOST_BYTES
        assert not knows_keys(client)


def test_an_ended_stream_is_reopened_and_an_open_one_left_alone(queue: easq.QueueClient) -> None:
    reopen(queue)
    queue.put(b"x")
    queue.end(force=True)
    with pytest.raises(easq.StreamEnded):
        queue.put(b"y")
    reopen(queue)
    queue.put(b"y")
