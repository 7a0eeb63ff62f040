"""The README is true: every block of it is run, and what it shows is what comes out."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from easq.config import profiles
from easq.errors import Exit
from tests.client.servers import Behaviour, Speaking, behaving, echo, host_endpoints, listing, reply
from tests.support.documents import (
    PATIENCE_S,
    ROOT,
    blocks_of,
    check_block,
    commands_of,
    make_home,
    output_pattern,
)
from tests.support.redis import free_port
from tests.support.tools import find_tool
from tests.support.waiting import eventually

README = (ROOT / "README.md").read_text(encoding="utf-8")
#: what a block has that starts a Redis
NEEDS_REDIS = "redis-server --port"


def marked(mark: str) -> str:
    """The one command between two `<!-- mark -->` lines."""
    (found,) = re.findall(rf"<!-- {mark} -->\n```sh\n(.*?)\n```\n<!-- {mark} -->", README, re.DOTALL)
    return str(found)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def environ(home: Path) -> Mapping[str, str]:
    """A user who has nothing of easq yet."""
    return make_home(home)


@pytest.fixture
def model_port() -> int:
    return free_port()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def service(home: Path, environ: Mapping[str, str], port: int) -> Iterator[Path]:
    """`easq serve` as the README starts it but for the port; the file holds what it says."""
    said = home / "serve.out"
    with said.open("wb") as out:
        process = subprocess.Popen(
            ["easq", "serve", "--port", str(port)], env=environ, cwd=home, stdout=out, stderr=out
        )
    try:
        eventually(lambda: said.read_bytes().count(b"\n") >= 3 or process.poll() is not None)
        assert process.poll() is None, said.read_text()
        yield said
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) == 0


def test_the_main_job_is_as_shown(
    service: Path, home: Path, environ: Mapping[str, str], port: int, model_port: int
) -> None:
    """Every console block, in order, gives the output that it shows."""
    first, *others = [
        block.replace("3030", str(port)).replace("8501", str(model_port)).replace("/home/ann", str(home))
        for block in blocks_of(README, "console")
        if NEEDS_REDIS not in block
    ]
    ((command, shown),) = commands_of(first)
    assert command == "easq serve"
    # of an SQLite that is too old the service warns once more, which the README does not show
    said = service.read_text().splitlines(keepends=True)
    assert "".join(line for line in said if " SQLite " not in line) == shown
    assert len(others) > 8
    for block in others:
        check_block(block, home, environ)


def test_several_servers_on_one_redis_are_as_shown(home: Path, environ: Mapping[str, str]) -> None:
    find_tool("redis-server")
    (block,) = [block for block in blocks_of(README, "console") if NEEDS_REDIS in block]
    for shown in ("6379", "3031", "3032"):
        block = block.replace(shown, str(free_port()))
    check_block(block, home, environ)


def test_a_pattern_holds_on_to_what_does_not_vary() -> None:
    """The comparison of this file can fail."""
    shown = "[OK] 1 e47b76e2-2648-40fe-9197-a268015cbd1f ts@source=1685802680575 cost: 5.892141ms\n"
    same = "[OK] 1 00000000-2648-40fe-9197-a268015cbd1f ts@source=1785802680575 cost: 12ms\n"
    assert output_pattern(shown).fullmatch(same)
    assert not output_pattern(shown).fullmatch(same.replace("[OK] 1", "[OK] 2"))
    assert not output_pattern(shown).fullmatch(same + "more\n")


def test_the_exit_codes_are_the_enums() -> None:
    rows = re.findall(r"^\| ([0-9]+) \| (.*) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), code.meaning) for code in Exit]


def test_the_configuration_shown_is_a_good_one(tmp_path: Path) -> None:
    (block,) = blocks_of(README, "toml")
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
    (block,) = [block for block in blocks_of(README, "sh") if "--via" in block]
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
    (usage,) = re.findall(r"^```\n(easq serve .*?)^```$", README, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        ["easq", "serve", "--help"], env=environ, capture_output=True, text=True, check=True
    )
    named = re.findall(r"--[a-z-]+", usage)
    assert len(named) > 3
    for option in named:
        assert re.search(rf"{option}\b", done.stdout), option


@pytest.mark.long
def test_one_command_line_installs_and_shows_the_main_job(tmp_path: Path) -> None:
    """In a copy of the checkout, with nothing of this environment's packages."""
    checkout = tmp_path / "easq"
    checkout.mkdir()
    for name in ("easq", "completions"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL", "EASQ"))
    }
    done = subprocess.run(
        ["bash", "-c", marked("demo-command")],
        cwd=checkout,
        env={**inherited, "HOME": str(tmp_path), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=4 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("steps did what they say.\n"), done.stdout
