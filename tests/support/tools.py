"""Finds the programs that tests start: where one is missing its tests are skipped, and fail when CI is set."""

from __future__ import annotations

import os
import shutil

import pytest


def find_tool(program: str, path: str | None = None) -> str:
    """Return the path of the program, looked up in `path` or PATH. Skip the test where it is missing.

    With the environment variable CI set a missing program fails the test.
    """
    found = shutil.which(program, path=path)
    if found is not None:
        return found
    if os.environ.get("CI"):
        raise AssertionError(f"{program} is not installed, and CI is set")
    pytest.skip(f"{program} is not installed")
