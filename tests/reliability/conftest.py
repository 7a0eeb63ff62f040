"""easq as a process, as the tests of the command line run it."""

from tests.cli.conftest import easq

__all__ = ["easq"]
