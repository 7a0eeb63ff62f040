"""What the README and the pages state beside their blocks: exit codes, options, addresses, the installation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from easq.config import profiles
from easq.errors import Exit, error_class
from easq.protocol import operations
from tests.client.servers import Behaviour, Speaking, behaving, echo, host_endpoints, listing, reply
from tests.docs.commands import page
from tests.support.documents import (
    PATIENCE_S,
    ROOT,
    blocks_of,
    make_home,
    output_pattern,
)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def marked(mark: str) -> str:
    """The one command between two `<!-- mark -->` lines."""
    (found,) = re.findall(
        rf"<!-- {mark} -->\n```sh\n(.*?)\n```\n<!-- {mark} -->", text_of("README.md"), re.DOTALL
    )
    return str(found)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def environ(home: Path) -> Mapping[str, str]:
    """A user who has nothing of easq yet."""
    return make_home(home)


def test_a_pattern_holds_on_to_what_does_not_vary() -> None:
    """The comparison of this file can fail."""
    shown = "[OK] 1 e47b76e2-2648-40fe-9197-a268015cbd1f ts@source=1685802680575 cost: 5.892141ms\n"
    same = "[OK] 1 00000000-2648-40fe-9197-a268015cbd1f ts@source=1785802680575 cost: 12ms\n"
    assert output_pattern(shown).fullmatch(same)
    assert not output_pattern(shown).fullmatch(same.replace("[OK] 1", "[OK] 2"))
    assert not output_pattern(shown).fullmatch(same + "more\n")


def test_the_exit_codes_are_the_enums() -> None:
    rows = re.findall(r"^\| ([0-9]+) \| (.*) \|$", text_of("docs/scripts.md"), re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in Exit]


def test_the_configuration_shown_is_a_good_one(tmp_path: Path) -> None:
    (block,) = blocks_of(text_of("docs/configuration.md"), "toml")
    path = tmp_path / "config.toml"
    path.write_text(block, encoding="utf-8")
    path.chmod(0o600)
    loaded = profiles.load(path)
    assert loaded.warnings == ()
    assert profiles.problems(loaded) == []
    settings = profiles.resolve(loaded, {}, {})
    assert settings.get("url").endswith("/api/predict/qservice")
    assert {
        profiles.resolve(loaded, {"profile": name}, {}).get("via") or "queue" for name in loaded.profiles
    } == {
        "queue",
        "direct",
        "modelarts",
        "websocket",
    }


def test_each_call_of_a_service_that_is_shown_reaches_it(home: Path, environ: Mapping[str, str]) -> None:
    """The commands that call a service run, with servers of ours in the place of the cloud's."""
    (block,) = [block for block in blocks_of(text_of("docs/predict.md"), "sh") if "--via" in block]
    (home / "image.jpg").write_bytes(b"\xff\xd8")
    (home / "lines.txt").write_bytes(b"first\nsecond\n")
    answers = [b"yes", b"yes", b"tsrif\ndnoces\n"]
    yes = Behaviour(reply(200, b"yes"))
    with behaving(yes) as instance, Speaking(echo) as speaking:
        lists = Behaviour(listing(instance)), Behaviour(host_endpoints(instance))
        with behaving(lists[0]) as discovery, behaving(lists[1]) as management:
            block = block.replace(
                "http://pai-eas-vpc.cn-shanghai.aliyuncs.com", f"http://127.0.0.1:{discovery.port}"
            )
            block = block.replace(
                "https://modelarts.cn-north-4.myhuaweicloud.com", f"http://127.0.0.1:{management.port}"
            ).replace("wss://HOST", f"ws://127.0.0.1:{speaking.port}")
            for command, answer in zip(block.splitlines(), answers, strict=True):
                done = subprocess.run(
                    ["bash", "-c", command],
                    env={**environ, "EASQ_TOKEN": "t"},
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
                assert (done.returncode, done.stdout) == (0, answer), done.stderr
    assert [body for _, body in instance.requests] == [b"[{}]", b"\xff\xd8"]
    assert "X-Apig-AppCode: CODE" in speaking.heads()[0].split("\r\n")


def test_the_options_of_serve_that_are_named_exist(environ: Mapping[str, str]) -> None:
    (usage,) = re.findall(
        r"^```text\n(easq serve .*?)^```$", text_of("docs/serve.md"), re.MULTILINE | re.DOTALL
    )
    done = subprocess.run(
        ["easq", "serve", "--help"], env=environ, capture_output=True, text=True, check=True
    )
    named = re.findall(r"--[a-z-]+", usage)
    assert len(named) > 3
    for option in named:
        assert re.search(rf"{option}\b", done.stdout), option


@pytest.mark.long
def test_the_first_command_leaves_an_easq_that_is_found(tmp_path: Path) -> None:
    """In a copy of the checkout, with nothing of this environment's packages, and a pipx of its own."""
    checkout = tmp_path / "easq"
    checkout.mkdir()
    for name in ("easq", "completions"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYTHON", "VIRTUAL", "EASQ", "PIPX"))
    }
    environ = {**inherited, "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    tools = tmp_path / "tools"
    for step in ([sys.executable, "-m", "venv", tools], [tools / "bin" / "pip", "install", "-q", "pipx"]):
        subprocess.run(step, env=environ, check=True, timeout=4 * PATIENCE_S)
    environ["PATH"] = f"{tmp_path / '.local' / 'bin'}:{tools / 'bin'}:{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", marked("install-command")],
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("steps gave the expected output.\n"), done.stdout
    found = subprocess.run(
        ["bash", "-c", "command -v easq"], env=environ, capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{tmp_path}/.local/bin/easq\n"


def test_the_page_of_all_commands_is_up_to_date() -> None:
    """`python -m tests.docs.commands` writes it."""
    assert text_of("docs/commands.md") == page()


def test_the_protocol_page_names_every_word_of_the_wire() -> None:
    """Each parameter, and each header of the queue service and of easq, that stands in the source."""
    text = text_of("docs/protocol.md")
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "easq").rglob("*.py")))
    words = set(operations._METHODS_OF) | {
        name.lower()
        for name in re.findall(r"\"(X-E(?:AS-QueueService|as-Queueservice|asq)-[A-Za-z-]+)\"", source)
    }
    assert len(words) > 30
    missing = [word for word in sorted(words - {"_delete_"}) if word not in text.lower()]
    assert missing == []


def test_the_statuses_of_the_protocol_page_end_a_command_as_it_says() -> None:
    rows = re.findall(r"^\| ([45][0-9]{2}) \| .* \| ([0-9]+) \|$", text_of("docs/protocol.md"), re.MULTILINE)
    assert len(rows) == len(dict(rows)) >= 20
    assert rows == [(status, str(int(error_class(int(status)).exit))) for status, _ in rows]


def test_each_promise_names_tests_that_exist() -> None:
    """P1-P20 and C1-C8, each with its limits and tests. A test that has moved is found by its name."""
    sections = re.split(
        r"^### ", text_of("docs/guarantees.md").partition("## What is not")[0], flags=re.MULTILINE
    )
    assert [section.split()[0] for section in sections[1:]] == [
        *(f"P{number}" for number in range(1, 21)),
        *(f"C{number}" for number in range(1, 9)),
    ]
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    for section in sections[1:]:
        named = re.findall(r"`tests/[\w/]+\.py::(\w+)`", section)
        assert len(named) >= 2, section
        assert set(named) <= tests, f"{section.splitlines()[0]}: {sorted(set(named) - tests)}"
        assert "\nLimits: " in section or section.startswith("C7 "), section


def test_contributing_names_files_and_tests_that_exist() -> None:
    """Paths with NAME, ENGINE or METRIC in them are those of a new file."""
    text = text_of("CONTRIBUTING.md")
    paths = set(re.findall(r"`((?:easq|tests|docs)/[\w/.]+)(?:::\w+)?`", text))
    assert len(paths) > 20
    new = {path for path in paths if re.search(r"NAME|ENGINE|METRIC", path)}
    assert [path for path in sorted(paths - new) if not (ROOT / path).exists()] == []
    for path, test in re.findall(r"`(tests/[\w/.]+)::(\w+)`", text):
        assert f"def {test}(" in text_of(path), test


def test_each_workflow_runs_the_script_of_this_repository() -> None:
    """And may do no more than it has to: each gets rights to read alone, but for the step that publishes."""
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        assert "- run: bash .ci/run\n" in text, path.name
        assert "\npermissions:\n  contents: read\n" in text, path.name
        assert re.findall(r"(\S+): write$", text, re.MULTILINE) in ([], ["id-token"]), path.name


def test_no_code_in_a_table_shows_the_backslash_before_a_bar() -> None:
    """Between backticks the site prints it; `<code>` and `&#124;` are the same everywhere."""
    for path in (ROOT / "docs").glob("*.md"):
        rows = re.findall(r"^\|.*`[^`|]*\\\|[^`]*`.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert rows == [], path.name
