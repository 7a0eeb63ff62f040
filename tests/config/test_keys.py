"""The keys and values of a profile."""

from __future__ import annotations

import pytest

from easq.config import keys
from easq.errors import ConfigError

GOOD = {
    "group": "eas",
    "user": "a.b-c_9",
    "service": "mnist_1",
    "project": "0f7e",
    "via": "modelarts",
    "sign": "hmac",
    "refresh": "1m30s",
}


@pytest.mark.parametrize("key", GOOD)
def test_a_value_that_can_be_used_has_no_problem(key: str) -> None:
    assert keys.value_problem(key, GOOD[key]) == ""


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("user", "a b", "user 'a b' is not 1-128 of A-Z a-z 0-9 . _ -"),
        ("project", "a/b", "project 'a/b' is not 1-128 of A-Z a-z 0-9 . _ -"),
        (
            "via",
            "websockets",
            "via 'websockets' is not one of queue, gateway, direct, modelarts, websocket"
            " (did you mean 'websocket'?)",
        ),
        ("sign", "x", "sign 'x' is not one of auto, token, hmac, none"),
        ("refresh", "0s", "the refresh must be above 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(key: str, value: str, problem: str) -> None:
    assert keys.value_problem(key, value) == problem


def test_a_duration_that_is_none_is_named() -> None:
    for value in ("soon", "-1s"):
        assert keys.value_problem("refresh", value).startswith("refresh: ")


def test_every_key_takes_text_and_one_takes_words() -> None:
    for key in keys.KEYS:
        assert keys.type_problem(key, ["x"] if key == "token_cmd" else "x") == ""
        assert keys.type_problem(key, 7)


def test_all_problems_of_a_profile_are_listed() -> None:
    values = {"url": 7, "token": "x", "token_file": "y", "via": "pigeon", "unknown": 1}
    found = keys.values_problems(values)
    assert found[:2] == ["url must be text, not int", "token and token_file are both given"]
    assert found[2].startswith("via 'pigeon' is not one of ")
    assert len(found) == 3


def test_keys_and_profile_names_are_checked() -> None:
    keys.check_key("refresh")
    keys.check_profile_name("prod-1")
    with pytest.raises(ConfigError, match=r"^unknown key 'refersh' \(did you mean 'refresh'\?\)$"):
        keys.check_key("refersh")
    with pytest.raises(ConfigError):
        keys.check_profile_name("a/b")
