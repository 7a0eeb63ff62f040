"""The console script, which `python -m easq` is too."""

from __future__ import annotations

import gc
import signal
from typing import NoReturn

#: thresholds of the garbage collector (see gc.set_threshold); Python's defaults are 700, 10, 10
_COLLECT_AFTER = (50_000, 20, 20)


def main() -> NoReturn:
    """Run the command line and leave with its exit status.

    A Ctrl-C that comes before there is a command to end, or after all was said, ends the process and says nothing.

    Garbage collection finds nothing in a one-shot command, and takes a sixth of the time of `easq put -d x`: it runs
    while modules are loaded, whose objects stay, and once more at exit. So it runs less often here, and not at exit.
    """
    gc.set_threshold(*_COLLECT_AFTER)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # a tenth of a second, in which Ctrl-C would show where Python is
    from easq.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
