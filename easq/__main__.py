"""The console script, which `python -m easq` is too."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line and leave with its exit status.

    A Ctrl-C that comes before there is a command to end, or after all was said, ends the process and says nothing.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a tenth of a second, in which Ctrl-C would show where Python is
    from easq.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
