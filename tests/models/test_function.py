"""A Python function as a model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from easq.errors import UsageError
from easq.models.base import Answer, Call, ModelFailed
from easq.models.function import Function
from easq.models.open import open_model
from easq.models.threads import Threaded
from tests.support.waiting import eventually


def ask(model: Function, data: bytes = b"x", *, timeout_s: float = 30.0) -> Answer:
    async def once() -> Answer:
        try:
            return await model.answer(Call(data), timeout_s=timeout_s)
        finally:
            await model.close()

    return asyncio.run(once())


def job_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("easq-job-")]


@pytest.mark.parametrize(
    ("function", "answer"),
    [(bytes.upper, b"X"), (bytes.decode, b"x"), (lambda _: "é", "é".encode()), (lambda _: None, b"")],
)
def test_bytes_text_and_nothing_are_answers(
    function: Callable[[bytes], bytes | str | None], answer: bytes
) -> None:
    assert ask(Function(function)).data == answer
    eventually(lambda: not job_threads())


def test_an_exception_is_a_failure_with_its_class_and_text() -> None:
    def fail(_data: bytes) -> bytes:
        raise ValueError("no\nsuch picture")

    with pytest.raises(ModelFailed) as raised:
        ask(Function(fail))
    assert (raised.value.code, raised.value.status) == ("EngineError", 500)
    assert raised.value.message == "ValueError: no such picture"


def test_the_function_may_say_that_it_is_busy() -> None:
    def busy(_data: bytes) -> bytes:
        raise ModelFailed("loading", status=503, busy=True)

    with pytest.raises(ModelFailed, match="loading") as raised:
        ask(Function(busy))
    assert raised.value.busy


def test_another_type_is_a_failure() -> None:
    with pytest.raises(ModelFailed, match="returned int, not bytes or text"):
        ask(Function(lambda _: 7))  # type: ignore[arg-type,return-value]


def test_a_function_that_hangs_fails_in_time_and_the_next_call_has_another_thread() -> None:
    gate = threading.Event()

    def hang(data: bytes) -> bytes:
        if data == b"hang":
            gate.wait()
        return data

    async def both() -> bytes:
        model = Function(hang, threads=2)
        try:
            with pytest.raises(ModelFailed) as raised:
                await model.answer(Call(b"hang"), timeout_s=0.05)
            assert raised.value.status == 504
            return (await model.answer(Call(b"b"), timeout_s=30.0)).data
        finally:
            await model.close()

    try:
        assert asyncio.run(both()) == b"b"
    finally:
        gate.set()
    eventually(lambda: not job_threads())


def test_cancelled_calls_fail_as_a_shutdown() -> None:
    gate = threading.Event()

    def hang(data: bytes) -> bytes:
        gate.wait()
        return data

    async def cancel() -> None:
        model = Function(hang)
        call = asyncio.create_task(model.answer(Call(b"x")))
        await asyncio.sleep(0)
        model.cancel()
        try:
            with pytest.raises(ModelFailed) as raised:
                await call
            assert raised.value.code == "Shutdown"
        finally:
            await model.close()

    try:
        asyncio.run(cancel())
    finally:
        gate.set()


def test_what_is_no_model_is_refused() -> None:
    async def coroutine(data: bytes) -> bytes:
        return data

    with pytest.raises(UsageError, match="coroutine"):
        open_model(coroutine)  # type: ignore[arg-type]
    for command in ([], [""], [b"cat"]):
        with pytest.raises(UsageError, match="list of words"):
            open_model(command)  # type: ignore[arg-type]
    assert isinstance(open_model(["cat"]), Threaded)
    assert isinstance(open_model(bytes.upper), Function)
