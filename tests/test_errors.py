"""The tree of errors: what each class says to programs, and what an HTTP status becomes."""

from __future__ import annotations

import pytest

from easq import errors
from easq.errors import EasqError, Exit, error_class


def classes() -> list[type[EasqError]]:
    return [
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, EasqError) and found is not EasqError
    ]


@pytest.mark.parametrize(
    ("status", "name"),
    [
        (400, "BadRequest"),
        (401, "AuthFailed"),
        (403, "Forbidden"),
        (404, "NotFound"),
        (405, "MethodNotAllowed"),
        (406, "NotAcceptable"),
        (409, "AnotherWatcher"),
        (410, "StreamEnded"),
        (413, "PayloadTooLarge"),
        (418, "Refused"),
        (421, "Forbidden"),
        (422, "KeyReused"),
        (426, "UpgradeRequired"),
        (429, "QueueFull"),
        (450, "QueueFull"),
        (500, "ServerError"),
        (502, "ServerError"),
        (503, "Unavailable"),
        (302, "ServerError"),
    ],
)
def test_a_status_is_read_back_into_its_class(status: int, name: str) -> None:
    assert error_class(status).__name__ == name


def test_each_class_has_an_exit_code_a_kind_and_a_docstring() -> None:
    for found in classes():
        assert found.exit is not Exit.BUG, found
        assert found.kind.replace("_", "").isalpha(), found
        assert found.__doc__, found


def test_kinds_differ_unless_one_class_is_a_case_of_the_other() -> None:
    for one in classes():
        for other in classes():
            if one.kind == other.kind:
                assert issubclass(one, other) or issubclass(other, one), (one, other)


def test_an_error_has_the_status_of_its_answer() -> None:
    without, given = errors.Refused("no"), errors.Refused("no", hint="do this", status=418)
    assert (without.status, without.http_status, without.hint) == (400, None, "")
    assert (given.status, given.http_status, given.hint, str(given)) == (418, 418, "do this", "no")
    assert errors.MethodNotAllowed("no", allow="GET").allow == "GET"


def test_each_exit_code_has_a_meaning() -> None:
    assert all(code.meaning for code in Exit)
