"""The log of a service, printed on stderr as text or JSON."""

from __future__ import annotations

import json
import logging
import time

from easq.render.printer import Printer

#: the logger of the package, parent of the loggers of its modules
_LOGGER = logging.getLogger("easq")
#: maximum number of lines below warning per second, so that -v on a busy service does not fill the disk
_LOG_LINES = 1000


def log_to_printer(printer: Printer, *, form: str, verbose: int) -> None:
    """Print the log of the service on stderr.

    Args:
        form: `text` or `json`.
        verbose: 0 for warnings alone, 1 for a line for each request too, 2 for everything.
    """
    handler = _PrinterHandler(printer, form)
    handler.addFilter(_LinesPerSecond())
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    _LOGGER.propagate = False


class _PrinterHandler(logging.Handler):
    """Prints one line for each log record."""

    def __init__(self, printer: Printer, form: str) -> None:
        super().__init__()
        self._printer, self._form = printer, form

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            message += "\n" + (self.formatter or logging.Formatter()).formatException(record.exc_info)
        moment = (
            time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        )
        level = record.levelname.lower()
        if self._form == "json":
            fields = {"time": moment, "level": level, "logger": record.name, "message": message}
            self._printer.log(json.dumps(fields, ensure_ascii=False))
        else:
            self._printer.log(f"{moment} {level} {message}")


class _LinesPerSecond(logging.Filter):
    """Drops lines below warning if there are more than `_LOG_LINES` in a second, and logs how many."""

    def __init__(self) -> None:
        super().__init__()
        self._second = self._count = self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        second = int(time.monotonic())
        if second != self._second:
            dropped, self._second, self._count, self._dropped = self._dropped, second, 0, 0
            if dropped:
                _LOGGER.info("%d lines were left out: more than %d in a second", dropped, _LOG_LINES)
        self._count += 1
        self._dropped += self._count > _LOG_LINES
        return self._count <= _LOG_LINES
