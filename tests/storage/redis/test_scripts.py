"""The Lua files: scripts, the parts that they begin with, and the modules of the rules that these correspond to."""

from __future__ import annotations

from importlib import resources

import pytest

from easq.storage.redis.scripts import source

FILES = {
    path.name.removesuffix(".lua"): path.read_text(encoding="utf-8")
    for path in resources.files("easq.storage.redis").joinpath("lua").iterdir()
}
SCRIPTS = sorted(name for name, text in FILES.items() if text.startswith("-- flags:"))
PARTS = sorted(FILES.keys() - set(SCRIPTS))
#: what every script begins with; in Python these are arguments and the event loop
CONTEXT = "context"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_has_its_parts_each_after_those_that_it_uses(name: str) -> None:
    parts = FILES[name].partition("\n")[0].rpartition("after:")[2].split()
    order = [
        "context",
        "entries",
        "groups",
        "filters",
        "consumers",
        "retention",
        "failures",
        "dispatch",
        "stream",
    ]
    assert parts == [part for part in [*order, "scans"] if part in parts]
    text = source(name)
    for part in PARTS:
        assert (f"local {part} = {{}}" in text) == (part in parts and part != CONTEXT)


def test_each_part_is_named_like_the_module_of_the_rules_that_it_corresponds_to() -> None:
    modules = {path.name for path in resources.files("easq.storage.rules").iterdir()}
    assert {f"{part}.py" for part in PARTS if part != CONTEXT} <= modules


def test_each_part_is_used() -> None:
    used = {
        part for name in SCRIPTS for part in FILES[name].partition("\n")[0].rpartition("after:")[2].split()
    }
    assert used == set(PARTS)


@pytest.mark.parametrize("name", FILES)
def test_each_file_opens_with_what_it_does(name: str) -> None:
    lines = [line for line in FILES[name].split("\n") if not line.startswith("-- flags:")]
    assert lines[0].startswith("-- ")
    assert lines[0][3].isupper()
