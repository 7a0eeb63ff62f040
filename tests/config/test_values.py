"""Values of a profile: valid values, and masked output."""

from __future__ import annotations

from pathlib import Path

import pytest

from easq.config.profiles import Config, Resolved, Value
from easq.config.tokens import TokenSource
from easq.config.values import address_problems, check_addresses, shown_values, values_to_save
from easq.errors import ConfigError, UsageError

URL = "http://127.0.0.1:3030/api/predict/q"


def test_one_way_to_give_a_token_replaces_the_others() -> None:
    assert values_to_save({"url": URL}) == {"url": URL}
    assert values_to_save({"token": "abc"}) == {"token": "abc", "token_file": None, "token_cmd": None}


def test_a_token_file_is_saved_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").write_text("abc")
    (tmp_path / "t").chmod(0o600)
    monkeypatch.chdir(tmp_path)
    assert values_to_save({"token_file": "t"})["token_file"] == str(tmp_path / "t")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert values_to_save({"token_file": "~/t"})["token_file"] == "~/t"
    with pytest.raises(ConfigError, match="not a regular file"):
        values_to_save({"token_file": str(tmp_path)})


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"url": "ftp://host/q"}, ConfigError),
        ({"url": "http://user:secret@host/q"}, ConfigError),
        ({"endpoint": "http://host/x?y"}, ConfigError),
        ({"group": "a b"}, UsageError),
    ],
)
def test_values_that_could_not_be_used_are_refused(values: dict[str, str], error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        values_to_save(values)
    assert "secret" not in str(refused.value)


def test_a_websocket_is_an_address_too() -> None:
    check_addresses({"url": "wss://host/path?a=b"})


def test_secrets_are_masked_unless_they_are_asked_for() -> None:
    settings = Resolved(
        profile=Value("p", "option"),
        values={"url": Value("http://user:secret@host/q", "file")},
        token=TokenSource("token", "abcdefghijklmnop", "file"),
    )
    hidden = shown_values(settings, reveal=False)
    assert "secret" not in hidden["url"].value
    assert "abcdefghijkl" not in hidden["token"].value
    assert shown_values(settings, reveal=True)["token"].value == "abcdefghijklmnop"


def test_each_wrong_address_of_the_file_is_a_problem() -> None:
    config = Config(Path("c.toml"), {"profiles": {"a": {"url": "x y"}, "b": {"url": "http://h/q"}}})
    (problem,) = address_problems(config)
    assert problem.startswith("c.toml: profiles.a: ")
