"""Fixtures: the services of the server's tests."""

from __future__ import annotations

from tests.server.conftest import start

__all__ = ["start"]
