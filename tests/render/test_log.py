"""The log of a service on stderr."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from easq.render.log import log_to_printer
from easq.render.printer import Printer


def test_the_log_of_requests_is_bounded_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are not; what was left out is counted."""
    lines: list[str] = []
    printer = cast(Printer, SimpleNamespace(log=lines.append))
    logger = logging.getLogger("easq")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    level = logger.level
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    try:
        log_to_printer(printer, form="text", verbose=1)
        for _ in range(1500):
            logger.info("a request")
        logger.warning("a warning")
        assert len(lines) == 1001
        assert lines[-1].endswith("a warning")
        now += 1
        logger.info("another request")
        assert [line.partition(" info ")[2] for line in lines[1001:]] == [
            "500 lines were left out: more than 1000 in a second",
            "another request",
        ]
    finally:
        logger.setLevel(level)
