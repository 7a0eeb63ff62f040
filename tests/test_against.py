"""The command that runs new tests against an older revision, on a small repository of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_TESTS = """
import subprocess, sys, time
import pytest
from small import double
from small.later import triple

def test_that_was_there():
    assert double(1) == 2

def test_that_changes():
    assert double(3) == 6

def test_mended():
    assert double(2) == 4

def test_that_held_before():
    assert double(1) == 2

def test_of_a_new_module():
    assert triple(1) == 3

def test_of_a_new_parameter():
    assert double(1, times=2) == 4

def test_that_waits():
    while double(2) != 4:
        time.sleep(0.01)

@pytest.mark.parametrize("options", [(), ("--later", "1")], ids=["without", "with"])
def test_of_the_command(options):
    ran = subprocess.run([sys.executable, "-m", "small", *options], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\\n"
"""


def test_new_tests_are_judged_by_what_they_do_on_the_older_code(tmp_path: Path) -> None:
    repository, listed = tmp_path / "repository", tmp_path / "results.json"
    package, tests = repository / "small", repository / "tests"
    package.mkdir(parents=True)
    tests.mkdir()
    (tests / "__init__.py").touch()
    (package / "__init__.py").write_text("def double(n):\n    return 2\n")
    (package / "__main__.py").write_text("import sys\nprint(sys.argv[1:])\n")
    (tests / "test_double.py").write_text(
        "from small import double\n\ndef test_that_was_there():\n    assert double(1) == 2\n"
        "def test_that_changes():\n    assert double(1) == 2\n"
    )

    def git(*words: str) -> str:
        author = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false")
        command = ["git", *author, "-C", str(repository), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "before")
    # the working tree: what is mended, and the tests for it
    (package / "__init__.py").write_text("def double(n, times=1):\n    return 2 * n * times\n")
    (package / "later.py").write_text("def triple(n):\n    return 3 * n\n")
    (tests / "test_double.py").write_text(_TESTS)

    changed = git("status", "--porcelain")

    command = [sys.executable, ROOT / "tests" / "against.py", "--code", "HEAD", "--package", "small"]
    options = ["--drop-option", "--later", "--timeout", "0.5", "-n", "1", "--changed", "--json", listed]
    ran = subprocess.run(
        [*command, *options, "tests"],
        cwd=repository,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # which take longer to load than the tests
        capture_output=True,
        text=True,
        check=True,
    )

    judged = {
        result["test"].partition("::")[2]: result["outcome"] for result in json.loads(listed.read_text())
    }
    assert judged == {
        "test_that_changes": "fails",
        "test_mended": "fails",
        "test_that_held_before": "passes",
        "test_of_a_new_module": "missing",
        "test_of_a_new_parameter": "signature",
        "test_that_waits": "hangs",
        "test_of_the_command[without]": "passes",
        "test_of_the_command[with]": "passes",
    }, ran.stdout
    assert ran.stdout.splitlines()[1].split()[1:] == ["8", "2", "1", "1", "1", "0", "3"]
    assert "  tests/test_double.py::test_that_held_before\n" in ran.stdout
    assert git("status", "--porcelain") == changed, "the repository is left as it is"
