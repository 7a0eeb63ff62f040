"""The official Python SDK in an environment of its own, made once and kept in pytest's cache."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
#: the newest release when the wire was written; it brings protobuf 3.20.3
SDK = "eas-prediction==0.36"

RunSdk: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
StartSdk: TypeAlias = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture(scope="session")
def sdk_python(pytestconfig: pytest.Config) -> Path:
    """A Python with the official SDK and nothing else; whichever worker comes first makes it."""
    name = f"sdk-{SDK.partition('==')[2]}-py{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(pytestconfig.cache.mkdir(name))
    python, done = folder / "venv" / "bin" / "python", folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder / "venv", with_pip=True, clear=True)
            _run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK], timeout_s=300
            )
            done.touch()
    return python


@pytest.fixture
def run_sdk(sdk_python: Path) -> RunSdk:
    """Runs a script in a fresh interpreter that knows the SDK, and easq from this checkout; it must exit with 0."""

    def run(script: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return _run([sdk_python, "-c", script, *arguments], timeout_s=timeout_s)

    return run


@pytest.fixture
def start_sdk(sdk_python: Path) -> StartSdk:
    """Starts such a script, to be talked to over its stdin and stdout; it is ended when the block is left."""

    @contextmanager
    def start(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [str(sdk_python), "-c", script, *arguments]
        with subprocess.Popen(command, text=True, env=_environ(), **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


def _environ() -> dict[str, str]:
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return environ | {"PYTHONPATH": str(ROOT)}


def _run(command: list[Path | str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=_environ(),
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
