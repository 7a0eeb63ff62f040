"""Settings of the simulation that differ from those of a service."""

from __future__ import annotations

import pytest

from easq.storage.rules import failures


@pytest.fixture(autouse=True)
def few_losses_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lives are short: a loss of a consumer that names no process counts earlier."""
    monkeypatch.setattr(failures, "FREE_LOSSES", 2)
