from pathlib import Path

import pytest

from tests.support.tools import find_tool

TESTS = Path(__file__).parents[1]


def test_a_missing_program_skips_a_test_and_fails_it_with_ci_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(find_tool("sh")).name == "sh"
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="easq-none is not installed"):
        find_tool("easq-none")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(AssertionError, match="easq-none is not installed"):
        find_tool("easq-none")


def test_tests_find_programs_in_no_other_way() -> None:
    """Otherwise a test could be skipped with CI set too."""
    used = {
        str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if "shutil.which" in path.read_text()
    }
    assert used == {"support/tools.py", "support/test_tools.py", "bench/serving.py", "bench/instructions.py"}
