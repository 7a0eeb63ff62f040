"""-o json: every command prints JSON, one object per line, and nothing else."""

from __future__ import annotations

import json

import click
import pytest

from easq.cli.main import root
from tests.cli.conftest import Easq

#: those that print for people and shells alone
WITHOUT = {"completion", "demo", "help", "serve"}
#: one asks service discovery, not a queue, one does not end: their JSON is tested in test_endpoints.py and test_work.py
ELSEWHERE = {"endpoints", "work", "bench put", "bench drain", "bench predict", "bench roundtrip"}

#: each command with arguments that it succeeds with, on an input of five items, and a sink of one result `r-1`
RUNS: dict[str, list[str]] = {
    "config": ["--url", "http://127.0.0.1:1/q", "-p", "other"],
    "config list": [],
    "config path": [],
    "config rm": ["spare", "-y"],
    "config set": ["user", "me", "-p", "other"],
    "config show": ["--origin"],
    "config unset": ["user", "-p", "spare"],
    "config use": ["spare"],
    "config validate": ["--connect"],
    "info": [],
    "put": ["-d", "x"],
    "get": ["-l", "9"],
    "delete": ["1", "2", "-y"],
    "trunc": ["--all", "-y"],
    "watch": ["--commit", "output", "-n", "2"],
    "predict": ["-d", "x", "--tags", "requestId=r-1"],
    "commit": ["1"],
    "negative": ["1"],
    "search": ["3"],
    "count": [],
    "end": ["-y"],
    "wait": ["--result", "r-1"],
    "version": ["-v"],
}


def leaves(group: click.Group, above: str = "") -> dict[str, click.Command]:
    """The commands by their words; a group is one, too, when it does something by itself."""
    found: dict[str, click.Command] = {}
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is None or command.hidden:
            continue
        words = f"{above}{name}"
        if isinstance(command, click.Group):
            found |= leaves(command, f"{words} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[words] = command
    return found


def test_every_command_is_tried() -> None:
    assert set(leaves(root)) - WITHOUT - ELSEWHERE == set(RUNS)


@pytest.mark.parametrize("words", RUNS)
def test_what_it_prints_is_json(queue: Easq, words: str) -> None:
    queue("put", "-q", "-f", "-", stdin=b"1\n2\n3\n4\n5\n")
    queue("put", "-q", "-k", "-d", "result", "--tags", "requestId=r-1")
    queue("config", "-p", "spare", "--url", "http://127.0.0.1:1/q", "--user", "me")
    done = queue(*words.split(), *RUNS[words], "-o", "json")
    assert done.status == 0
    assert done.out.endswith(b"\n")
    for line in [*done.out.splitlines(), *done.err.encode().splitlines()]:
        assert isinstance(json.loads(line), dict)
    failed = queue(*words.split(), "--no-such-option", "-o", "json")
    assert (failed.status, failed.out) == (2, b"")
    assert json.loads(failed.err)["error"]["kind"] == "usage"
