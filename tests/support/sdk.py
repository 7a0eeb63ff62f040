"""The official Python SDK in an environment of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
#: the newest release when the wire was written; it brings protobuf 3.20.3
SDK = "eas-prediction==0.36"


def make_sdk(folder: Path) -> Path:
    """A Python below `folder` with the SDK and nothing else; whoever comes first makes it."""
    python, done = folder / "venv" / "bin" / "python", folder / "made"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder / "venv", with_pip=True, clear=True)
            run(
                [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK], timeout_s=300
            )
            done.touch()
    return python


def environ() -> dict[str, str]:
    """An environment in which the SDK's Python finds easq from this checkout, and nothing of ours."""
    found = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))
    }
    return found | {"PYTHONPATH": str(ROOT)}


def run(command: list[Path | str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """What a command did that had to exit with 0."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environ(),
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
