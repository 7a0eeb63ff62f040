"""What names a model, and what it opens."""

from __future__ import annotations

import asyncio

import pytest

from easq.errors import ChildFailed, UsageError
from easq.models.base import Answer, Call, Model
from easq.models.function import Function
from easq.models.http import Http
from easq.models.open import Echo, open_model, parse_model
from easq.models.threads import Threaded


def answer(model: Model, call: Call) -> Answer:
    async def once() -> Answer:
        try:
            return await model.answer(call)
        finally:
            await model.close()

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("echo", Echo),
        ("exec:cat -u", Threaded),
        ("http://127.0.0.1:1/x", Http),
        ("http:http://127.0.0.1:1/x", Http),
        (["cat", "-u"], Threaded),
        (bytes.upper, Function),
    ],
)
def test_each_source_opens_its_kind(source: object, kind: type) -> None:
    assert type(open_model(source)) is kind  # type: ignore[arg-type]


def test_a_model_stays_itself() -> None:
    model = Echo()
    assert open_model(model) is model


def test_echo_answers_data_and_type() -> None:
    found = answer(Echo(), Call(b"x", headers={"Content-Type": "text/plain"}))
    assert (found.data, found.content_type) == (b"x", "text/plain")


@pytest.mark.parametrize("text", ["", "nothing", "exec:", "exec:''", "exec:'a", "http:", "ftp://h/"])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_model(text)


def test_a_command_that_does_not_exist_is_found_before_a_call() -> None:
    with pytest.raises(ChildFailed, match="no such command"):
        open_model(["no-such-command-here"]).check()
