"""Services in the test's own process, as the server's tests have them."""

from __future__ import annotations

from tests.server.conftest import start

__all__ = ["start"]
