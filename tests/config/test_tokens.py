"""Tokens from a text, a file or a command: invalid ones are refused, and no secret is shown."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from easq.config import tokens
from easq.errors import ConfigError
from tests.support.nodes import ZERO, make_device


def test_a_token_file_that_others_can_read_is_warned_about(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t")
    said: list[str] = []
    for mode in (0o600, 0o644):
        file.chmod(mode)
        assert tokens.read_token(tokens.TokenSource("token_file", str(file), "x"), warn=said.append) == "t"
    assert said == [f"token file {file} is open to others (mode 0644): chmod 600 {file}"]


def test_a_token_may_come_from_a_pipe_and_is_bounded(tmp_path: Path) -> None:
    """As `--token-file <(pass show eas)` gives it."""
    reading, writing = os.pipe()
    with open(reading, "rb"):
        os.write(writing, b"secret\n")
        os.close(writing)
        source = tokens.TokenSource("token_file", f"/dev/fd/{reading}", "x")
        assert tokens.read_token(source) == "secret"
    make_device(tmp_path / "zero", ZERO)
    with pytest.raises(ConfigError, match="is larger than 65536 bytes"):
        tokens.read_token(tokens.TokenSource("token_file", str(tmp_path / "zero"), "x"))


def test_a_token_command_that_prints_without_end_is_ended() -> None:
    with pytest.raises(ConfigError, match="token_cmd 'yes' printed more than 65536 bytes"):
        tokens.read_token(tokens.TokenSource("token_cmd", ("yes",), "x"))


def test_a_token_file_is_read_without_its_newline_and_with_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t").write_text("  abc==\n")
    assert tokens.read_token(tokens.TokenSource("token_file", "~/t", "x")) == "abc=="


def test_a_token_command_runs_without_a_shell_and_gives_its_first_line() -> None:
    argv = (sys.executable, "-c", "import sys; print(sys.argv[1]); print('more')", "$HOME;`id`")
    assert tokens.read_token(tokens.TokenSource("token_cmd", argv, "x")) == "$HOME;`id`"


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("token_file", "/nowhere/t", "token file /nowhere/t: No such file or directory (x)"),
        ("token_file", "/", "token file /: Is a directory (x)"),
        ("token_file", "/dev/null", "the token is empty (x)"),
        ("token_cmd", ("/nowhere/c",), "token_cmd '/nowhere/c' cannot start: No such file or directory (x)"),
        (
            "token_file",
            "~nobody-of-that-name/t",
            "token file ~nobody-of-that-name/t: No such file or directory (x)",
        ),
        ("token_file", "a\0b", "token file a\0b: embedded null byte (x)"),
        ("token_cmd", ("c", "a\0b"), "token_cmd 'c' cannot start: embedded null byte (x)"),
        ("token_cmd", ("false",), "token_cmd 'false' failed with status 1 (x)"),
        ("token_cmd", ("true",), "the token is empty (x)"),
        ("token", "a\r\nX: y", "the token holds characters that no header may carry (x)"),
        ("token", "geheim-ü", "the token holds characters that no header may carry (x)"),
    ],
)
def test_a_source_that_gives_no_token_is_named(kind: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tokens.read_token(tokens.TokenSource(kind, value, "x"))
    assert caught.value.message == message


def test_a_token_source_does_not_show_its_token() -> None:
    assert "hunter2" not in repr(tokens.TokenSource("token", "hunter2", "x"))
