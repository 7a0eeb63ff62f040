"""The wheel: its files are those of the repository, and programs run on it alone, typed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.documents import ROOT, read_blocks

#: the first program of docs/python.md puts, watches and commits, in so many lines at most
MAX_LINES = 20


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command without this repository in its paths, and return what it printed."""
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], ROOT)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed; the libraries are those of the tests, and their easq is not there."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True)
    found = home / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", found, "install", "-q", "--no-deps", "--no-index", wheel],
        home,
    )
    [packages] = home.glob("lib/python*/site-packages")
    # a path file within this folder is not read, so that an editable easq stays out
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def programs() -> list[str]:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    return [block.text for block in read_blocks(page) if block.language == "python"]


@pytest.mark.long
def test_the_wheel_has_the_files_of_the_repository(wheel: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no repository")
    listed = run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "easq"], ROOT)
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == set(listed.splitlines())
    assert "easq/py.typed" in packed


@pytest.mark.long
def test_programs_run_on_the_wheel_alone(python: Path, tmp_path: Path) -> None:
    where = run([python, "-c", "import easq; print(easq.__file__)"], tmp_path).strip()
    assert Path(where).is_relative_to(python.parent.parent)
    paths = []
    for number, program in enumerate(programs()):
        paths.append(tmp_path / f"program{number}.py")
        paths[-1].write_text(program + "\n", encoding="utf-8")
    said = run([python, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", *paths], tmp_path)
    assert f"no issues found in {len(paths)} source files" in said
    assert len([line for line in programs()[0].splitlines() if line]) <= MAX_LINES
    lines = run([python, paths[0]], tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["put"] * 3 + ["got"] * 3 + ["0"]


@pytest.mark.long
def test_a_wrong_use_is_found_by_mypy(python: Path, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text("import easq\nwith easq.QueueClient('http://h/q') as queue:\n    queue.put(7)\n")
    done = subprocess.run(
        [python, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", program],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'Argument 1 to "put" of "QueueClient" has incompatible type "int"' in done.stdout
