"""The log of a service, printed on stderr in the form that was asked for."""

from __future__ import annotations

import json
import logging
import time

from easq.render.printer import Printer

#: lines below warning that are logged a second, so that -v on a busy service does not fill a disk
_LOG_LINES = 1000


def log_to_printer(printer: Printer, *, form: str, verbose: int) -> None:
    """Print the log of the service on stderr.

    Args:
        form: `text` or `json`.
        verbose: 0 for warnings alone, 1 for a line for each request too, 2 for everything.
    """

    class Lines(logging.Handler):
        """Prints one line for each log record."""

        def emit(self, record: logging.LogRecord) -> None:
            """Print the record."""
            message = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
            moment = (
                time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
            )
            level = record.levelname.lower()
            if form == "json":
                fields = {"time": moment, "level": level, "logger": record.name, "message": message}
                printer.log(json.dumps(fields, ensure_ascii=False))
            else:
                printer.log(f"{moment} {level} {message}")

    class AtMost(logging.Filter):
        """Drops lines below warning if there are more than `_LOG_LINES` in a second, and logs how many."""

        second, count, dropped = 0, 0, 0

        def filter(self, record: logging.LogRecord) -> bool:
            """Whether the record is logged."""
            if record.levelno >= logging.WARNING:
                return True
            second = int(time.monotonic())
            if second != self.second:
                dropped, self.second, self.count, self.dropped = self.dropped, second, 0, 0
                if dropped:
                    logger.info("%d lines were left out: more than %d in a second", dropped, _LOG_LINES)
            self.count += 1
            self.dropped += self.count > _LOG_LINES
            return self.count <= _LOG_LINES

    level = logging.WARNING
    if verbose >= 2:
        level = logging.DEBUG
    elif verbose == 1:
        level = logging.INFO
    logger = logging.getLogger("easq")
    lines = Lines()
    lines.addFilter(AtMost())
    logger.addHandler(lines)
    logger.setLevel(level)
    logger.propagate = False
