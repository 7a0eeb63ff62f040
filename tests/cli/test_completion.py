"""Completion: the files equal the generated scripts, and completing uses no network."""

from __future__ import annotations

import subprocess

import pytest

from easq.cli.completion import SHELLS
from tests.cli.conftest import ROOT, Easq
from tests.support.tools import find_tool


@pytest.mark.parametrize("shell", SHELLS)
def test_the_file_is_what_the_command_prints(easq: Easq, shell: str) -> None:
    done = easq("completion", shell)
    assert (done.status, done.err) == (0, "")
    assert done.text == (ROOT / "completions" / f"easq.{shell}").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_takes_the_script(shell: str) -> None:
    script = ROOT / "completions" / f"easq.{shell}"
    subprocess.run([find_tool(shell), "-n", str(script)], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("easq tr", ["trunc"]),
        ("easq stream tr", ["trunc"]),
        ("easq config va", ["validate"]),
        ("easq get --req", ["--request-id", "--request-timeout"]),
        ("easq -o t", ["text", "table"]),
        ("easq -p p", ["prod"]),
    ],
)
def test_words_are_completed_without_a_server(easq: Easq, words: str, found: list[str]) -> None:
    easq("config", "-p", "prod", "--url", "http://127.0.0.1:1/q")
    done = easq(
        env={
            "_EASQ_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
    )
    assert (done.status, done.err) == (0, "")
    assert sorted(done.text.splitlines()) == sorted(f"plain,{word}" for word in found)


def test_a_shell_that_is_not_known(easq: Easq) -> None:
    done = easq("completion", "tcsh")
    assert done.status == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.err
