"""The official Python SDK in an environment of its own, made once and kept in pytest's cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from tests.support.sdk import SDK, environ, make_sdk, run

RunSdk: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
StartSdk: TypeAlias = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture(scope="session")
def sdk_python(pytestconfig: pytest.Config) -> Path:
    """A Python with the official SDK and nothing else; whichever worker comes first makes it."""
    name = f"sdk-{SDK.partition('==')[2]}-py{sys.version_info.major}.{sys.version_info.minor}"
    folder = Path(pytestconfig.cache.mkdir(name))
    return make_sdk(folder)


@pytest.fixture
def run_sdk(sdk_python: Path) -> RunSdk:
    """Runs a script in a fresh interpreter that knows the SDK, and easq from this checkout; it must exit with 0."""

    def run_script(script: str, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return run([sdk_python, "-c", script, *arguments], timeout_s=timeout_s)

    return run_script


@pytest.fixture
def start_sdk(sdk_python: Path) -> StartSdk:
    """Starts such a script, to be talked to over its stdin and stdout; it is ended when the block is left."""

    @contextmanager
    def start(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [str(sdk_python), "-c", script, *arguments]
        with subprocess.Popen(command, text=True, env=environ(), **pipes) as process:
            try:
                yield process
            finally:
                process.kill()

    return start
