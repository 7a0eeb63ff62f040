"""Idempotency keys: a repeated put stores one item, and keys are deleted after a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

from easq.errors import KeyReused, QueueFull
from easq.model import Ack, Frame
from easq.storage.base import Limits
from easq.storage.rules.idempotency import REMEMBER_KEYS, REMEMBER_S, KeyWindow
from tests.storage.conftest import NO_LIMITS, Engine

Run: TypeAlias = Callable[[Callable[[Engine], Awaitable[Any]]], Any]


async def put(engine: Engine, data: bytes, key: str, *, rid: str = "r", limits: Limits = NO_LIMITS) -> Ack:
    return await engine.storage.append(
        "q", Frame(0, {"requestId": rid}, data), priority=0, limits=limits, key=key
    )


def test_a_repeat_gives_the_first_answer_and_stores_nothing(run: Run) -> None:
    async def body(engine: Engine) -> None:
        assert await put(engine, b"x", "k", rid="first") == Ack(1, "first")
        assert await put(engine, b"x", "k", rid="second") == Ack(1, "first", duplicate=True)
        assert await put(engine, b"x", "other", rid="third") == Ack(2, "third")
        assert await engine.length() == 2

    run(body)


def test_a_repeat_after_the_item_was_consumed_gives_the_first_answer(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await put(engine, b"x", "k")
        await engine.commit(1)
        assert await engine.length() == 0
        assert (await put(engine, b"x", "k")).duplicate
        assert await engine.length() == 0

    run(body)


def test_a_key_with_another_payload_is_refused(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await put(engine, b"x", "k")
        with pytest.raises(KeyReused, match="'k' was used before, with another payload"):
            await put(engine, b"y", "k")
        assert await engine.length() == 1

    run(body)


def test_repeats_at_the_same_time_store_one_item(run: Run) -> None:
    async def body(engine: Engine) -> None:
        answers = await asyncio.gather(*(put(engine, b"x", "k", rid=str(n)) for n in range(20)))
        assert {answer.index for answer in answers} == {1}
        assert {answer.request_id for answer in answers} == {"0"}
        assert sum(answer.duplicate for answer in answers) == 19
        assert await engine.length() == 1

    run(body)


def test_a_put_that_was_refused_does_not_use_up_its_key(run: Run) -> None:
    async def body(engine: Engine) -> None:
        full = Limits(max_items=1)
        await put(engine, b"a", "one", limits=full)
        with pytest.raises(QueueFull):
            await put(engine, b"b", "two", limits=full)
        await engine.commit(1)
        assert await put(engine, b"b", "two", limits=full) == Ack(2, "r")

    run(body)


def test_keys_belong_to_one_stream(run: Run) -> None:
    async def body(engine: Engine) -> None:
        await engine.storage.open("q/sink")
        await put(engine, b"x", "k")
        other = await engine.storage.append(
            "q/sink", Frame(0, {"requestId": "s"}, b"x"), priority=0, limits=Limits(), key="k"
        )
        assert other == Ack(1, "s")

    run(body)


def test_keys_are_remembered_across_a_restart(run_sqlite: Run) -> None:
    async def body(engine: Engine) -> None:
        await put(engine, b"x", "k", rid="first")
        await engine.commit(1)
        await engine.restart()
        assert await put(engine, b"x", "k", rid="second") == Ack(1, "first", duplicate=True)
        assert await put(engine, b"x", "next") == Ack(2, "r")

    run_sqlite(body)


def test_a_key_is_forgotten_only_when_old_and_not_among_the_last() -> None:
    window = KeyWindow()
    for _ in range(REMEMBER_KEYS + 5000):
        window.next(0.0)
    assert window.forget(REMEMBER_S - 1) == 0
    few = KeyWindow()
    for _ in range(5000):
        few.next(0.0)
    assert few.forget(10 * REMEMBER_S) == 0
    assert window.forget(REMEMBER_S) == 5001
    assert window.forget(REMEMBER_S) == 0
    for _ in range(3000):
        window.next(REMEMBER_S)
    assert window.forget(REMEMBER_S) == 8001


def test_keys_stored_before_a_start_count_as_new() -> None:
    window = KeyWindow(last=REMEMBER_KEYS + 2000)
    assert window.next(0.0) == REMEMBER_KEYS + 2001
    assert window.forget(REMEMBER_S - 1) == 0
    assert window.forget(REMEMBER_S) == 2002


@pytest.mark.parametrize("engine_url", ["memory", "sqlite"], indirect=True)
def test_forgotten_keys_are_gone_and_the_others_are_not(run: Run) -> None:
    async def body(engine: Engine) -> None:
        from easq.storage.embedded import EmbeddedStorage
        from easq.storage.rules.changes import KeysForgotten

        assert isinstance(engine.storage, EmbeddedStorage)
        for n in range(5):
            await put(engine, b"x", f"k{n}")
        await engine.storage.submit([KeysForgotten("q", 3)])
        assert [(await put(engine, b"x", f"k{n}")).duplicate for n in (0, 1, 2, 3, 4)] == [
            False,
            False,
            True,
            True,
            True,
        ]

    run(body)
