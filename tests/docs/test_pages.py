"""The README and the pages of docs/ are true: each block runs, and what a page shows is what comes out.

- `console`: the commands of a page, in order, in the home of a new user, print what stands below them. A block whose
  command is `easq serve …` starts a service that runs until the end of the page; what it prints first is compared.
- `python`: the program ends with status 0; a service of the page runs, and EASQ_URL names its queue.
- `toml`: a configuration file without a problem.
- `sh`: each easq command in it exists and takes the options and values that are shown; it is not run, since it calls
  what is not here.
- `json`: can be read.
- `text`: nothing that runs: a message, a layout, a picture.

Ports that a page names are replaced by free ones, and `/home/ann` by the home of the test.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import click
import pytest

from easq.cli.main import root
from easq.config import profiles
from tests.support.documents import (
    PATIENCE_S,
    ROOT,
    Block,
    check_block,
    commands_of,
    make_home,
    output_pattern,
    read_blocks,
)
from tests.support.redis import free_port
from tests.support.tools import find_tool
from tests.support.waiting import eventually

PAGES = sorted((ROOT / "docs").rglob("*.md"))
README = ROOT / "README.md"
#: the README may have so many words
MAX_README_WORDS = 700
#: a block of these languages is checked by a test of its own: language -> the test's file
ELSEWHERE = {"nginx": "tests/cli/test_nginx.py"}
LANGUAGES = {"console", "python", "toml", "sh", "json", "text", *ELSEWHERE}


def page_id(path: Path) -> str:
    return path.name if path == README else path.relative_to(ROOT / "docs").as_posix()


@pytest.mark.parametrize("path", [README, *PAGES], ids=page_id)
def test_each_block_of_a_page_runs(path: Path, tmp_path: Path) -> None:
    blocks = [
        place(block, tmp_path) for block in with_free_ports(read_blocks(path.read_text(encoding="utf-8")))
    ]
    environ = make_home(tmp_path)
    for tool in ("redis-server", "curl"):
        if any(f"{tool} " in block.text for block in blocks if block.language == "console"):
            find_tool(tool)
    with services() as start:
        for block in blocks:
            where = f"{page_id(path)}:{block.line}"
            assert block.language in LANGUAGES, f"{where}: a block of language {block.language!r}"
            if block.language == "console" and serves(block):
                environ |= start(block, tmp_path, environ)
            elif block.language == "console":
                check_block(block.text, tmp_path, environ)
            elif block.language == "python":
                run_program(block, tmp_path, environ, where)
            elif block.language == "toml":
                check_config(block, tmp_path)
            elif block.language == "sh":
                check_commands(block, where)
            elif block.language == "json":
                json.loads(block.text)


def with_free_ports(blocks: list[Block]) -> list[Block]:
    """Replace the ports that commands name by free ones, the same one everywhere on a page."""
    text = "\n".join(block.text for block in blocks)
    named = {
        port for pair in re.findall(r"127\.0\.0\.1:(\d{4,5})\b|--port (\d{4,5})\b", text) for port in pair
    }
    free = {port: str(free_port()) for port in named - {""}}
    pattern = re.compile(rf"\b({'|'.join(sorted(free))})\b") if free else None
    return [
        Block(
            block.language,
            pattern.sub(lambda found: free[found[1]], block.text) if pattern else block.text,
            block.line,
        )
        for block in blocks
    ]


def place(block: Block, home: Path) -> Block:
    return Block(block.language, block.text.replace("/home/ann", str(home)), block.line)


def serves(block: Block) -> bool:
    """Whether a console block starts a service that the page goes on with."""
    commands = commands_of(block.text)
    return len(commands) == 1 and re.match(r"(\w+=\S+ )*easq serve\b(?!.* -- )", commands[0][0]) is not None


@contextmanager
def services() -> Iterator[object]:
    """Give a function that starts the service of a block; end all that were started."""
    running: list[subprocess.Popen[bytes]] = []

    def start(block: Block, home: Path, environ: dict[str, str]) -> dict[str, str]:
        ((command, shown),) = commands_of(block.text)
        if "--port" not in command:
            port = re.search(r"127\.0\.0\.1:(\d+)", shown)
            assert port is not None, "what a service prints names its port"
            command = command.replace("easq serve", f"easq serve --port {port[1]}", 1)
        said = home / f"serve{len(running)}.out"
        with said.open("wb") as out:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], env=environ, cwd=home, stdout=out, stderr=out
            )
        running.append(process)
        lines = shown.count("\n")
        eventually(lambda: said.read_bytes().count(b"\n") >= lines or process.poll() is not None)
        # of an SQLite that is too old the service warns once more, which no page shows
        given = "".join(line for line in said.read_text().splitlines(keepends=True) if " SQLite " not in line)
        assert output_pattern(shown).match(given), f"$ {command}\nshown:\n{shown}\ngiven:\n{given}"
        return dict(re.findall(r"^(EASQ_\w+)=(.*)$", given, re.MULTILINE))

    try:
        yield start
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(PATIENCE_S)


def run_program(block: Block, home: Path, environ: dict[str, str], where: str) -> None:
    if "eas_prediction" in block.text and find_spec("eas_prediction") is None:
        compile(block.text, where, "exec")  # it runs where the official SDK is installed
        return
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        env=environ,
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{where}:\n{done.stdout}{done.stderr}"


def check_config(block: Block, home: Path) -> None:
    path = home / "shown.toml"
    path.write_text(block.text, encoding="utf-8")
    path.chmod(0o600)
    loaded = profiles.load(path)
    assert loaded.warnings == ()
    assert profiles.problems(loaded) == []


def check_commands(block: Block, where: str) -> None:
    """Parse each line that begins with `easq` as click does, without running it."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=.*", words[0]):
            words.pop(0)
        if not words or words[0] != "easq":
            continue
        end = next(
            (at for at, word in enumerate(words) if word in ("|", ">", ">>", "&&", ";", "&", "<")), len(words)
        )
        parse(root, words[1:end], where)


def parse(command: click.Command, words: list[str], where: str, parent: click.Context | None = None) -> None:
    with command.make_context(command.name, list(words), parent=parent) as context:
        if isinstance(command, click.Group):
            names = command.list_commands(context)
            at = next((at for at, word in enumerate(words) if word in names), None)
            if at is None:
                assert command.invoke_without_command or all(word.startswith("-") for word in words), where
                return
            found = command.get_command(context, words[at])
            assert found is not None
            parse(found, words[at + 1 :], where, context)


def test_the_pages_are_those_of_the_site() -> None:
    """Each page stands in the navigation of mkdocs.yml, and each that stands there is one."""
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == [page_id(path) for path in PAGES]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= MAX_README_WORDS


def test_each_file_that_the_readme_names_is_there() -> None:
    """Links and pictures, also the places inside the pages, by the rule that the site makes anchors of headings by."""
    for name, anchor in re.findall(r"\]\(([\w./-]+)(?:#([\w-]+))?\)", README.read_text(encoding="utf-8")):
        text = (ROOT / name).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w]+", "-", found.lower()).strip("-") for found in re.findall(r"^#+ (.*)$", text, re.M)
        }
        assert not anchor or anchor in headings, f"{name}#{anchor}"
