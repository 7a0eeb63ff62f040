"""The context of one run: configuration, clients made on first use, the printer, questions to the user.

`exit_status` is the only place where an error becomes an exit status.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from easq.errors import ConfigError, EasqError, UsageError

if TYPE_CHECKING:
    from easq.client.queue import QueueClient
    from easq.config.profiles import Config, Resolved
    from easq.net.http import Transport
    from easq.net.settings import NetworkSettings
    from easq.prediction.discovery import Discovery
    from easq.prediction.lookup import Lookup
    from easq.protocol.operations import Caller
    from easq.render.printer import Printer

#: the output formats
OUTPUTS = ("text", "json", "table", "raw", "none")
#: the environment variable that click's completion reads
COMPLETE_VARIABLE = "_EASQ_COMPLETE"


class App:
    """One run of easq: its options, and the objects that commands share."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.options: dict[str, Any] = {}
        self.warnings: deque[str] = deque()  #: warnings of other threads, printed by `tell_warnings`
        self.at_end = ExitStack()  #: closed with the App
        self._has_told_retry = False

    # output

    @cached_property
    def printer(self) -> Printer:
        """The printer for the output format that was asked for."""
        from easq.render.printer import Printer

        return Printer(
            output=self.output,
            quiet=self.options.get("quiet", False),
            verbose=self.options.get("verbose", 0),
            color=self.options.get("color", "auto"),
            environ=self.environ,
        )

    @property
    def output(self) -> str:
        """The output format: from the option, the environment, or `text`."""
        asked = self.options.get("output") or self.environ.get("EASQ_OUTPUT") or "text"
        return asked if asked in OUTPUTS else "text"

    def start(self) -> None:
        """Check the environment. Raises UsageError."""
        asked = self.environ.get("EASQ_OUTPUT")
        if asked and asked not in OUTPUTS:
            raise UsageError(f"EASQ_OUTPUT is {asked!r}, not one of {', '.join(OUTPUTS)}")

    def tell_warnings(self) -> None:
        """Print the warnings of other threads. Only the main thread prints: it handles a closed stdout."""
        while self.warnings:
            self.printer.warn(self.warnings.popleft())

    # configuration

    @cached_property
    def config(self) -> Config:
        """The configuration file. Loading it prints a warning for what is unsafe or unknown in it."""
        from easq.config.profiles import config_path, load

        config = load(config_path(self.environ))
        for warning in config.warnings:
            self.printer.warn(warning)
        return config

    @cached_property
    def settings(self) -> Resolved:
        """The settings of this run."""
        from easq.config.profiles import resolve

        self.check_token_options()
        return resolve(self.config, self.options, self.environ)

    def check_token_options(self) -> None:
        """Warn of a token on the command line. Raises UsageError for two tokens."""
        if self.options.get("token") and self.options.get("token_file"):
            raise UsageError("--token and --token-file are both given")
        if self.options.get("token"):
            self.printer.hide(self.options["token"])
            self.printer.warn(
                "others can see a token on the command line (ps, history): use --token-file or EASQ_TOKEN instead"
            )

    def stream_url(self, *, sink: bool | None = None) -> str:
        """Return the URL of the input, or of the sink (None: as -k says). Raises ConfigError."""
        from easq.net.url import stream_url

        url = self.settings.get("url")
        if not url:
            raise ConfigError(
                "no url of a queue is known",
                hint="easq config --url URL --token-file FILE, or --url, or EASQ_URL",
            )
        return stream_url(url, sink=self.options.get("sink", False) if sink is None else sink)

    @cached_property
    def token(self) -> str:
        """The token, masked in all messages; empty if there is none. Raises ConfigError."""
        from easq.config.tokens import read_token

        token = read_token(self.settings.token, warn=self.printer.warn)
        self.printer.hide(token)
        return token

    # clients

    @cached_property
    def exchange(self) -> NetworkSettings:
        """The network settings of this run."""
        from easq.net.settings import NetworkSettings

        if self.options.get("insecure"):
            self.printer.warn("certificates are not verified (--insecure)")
        return NetworkSettings(
            connect_timeout_s=self.options.get("connect_timeout", 5.0),
            request_timeout_s=self.options.get("request_timeout", 30.0),
            headers=dict(self.options.get("header", ())),
            cacert=self.options.get("cacert") or "",
            insecure=self.options.get("insecure", False),
            trace=self.printer.trace if self.options.get("verbose") else None,
        )

    @cached_property
    def transport(self) -> Transport:
        """The HTTP client of this run."""
        from dataclasses import replace

        from easq.net.http import Transport

        return Transport(replace(self.exchange, on_retry=self._tell_retry))

    def _tell_retry(self, error: EasqError) -> None:
        """Print once, on a terminal or with -v, why a request is sent again. Other threads print nothing."""
        if self._has_told_retry or threading.current_thread() is not threading.main_thread():
            return
        if self.printer.err_is_terminal or self.options.get("verbose"):
            self._has_told_retry = True
            self.printer.notice(f"{error.message}; trying again")

    @cached_property
    def instances(self) -> Transport:
        """The HTTP client for direct calls of instances, without a proxy."""
        from dataclasses import replace

        from easq.net.http import Transport

        return Transport(replace(self.transport.settings, environ={}))

    @cached_property
    def discovery(self) -> Discovery:
        """The instances of the service. Raises ConfigError if no service is configured."""
        from easq.net.files import easq_folder
        from easq.prediction.discovery import Discovery
        from easq.protocol.durations import parse_duration

        refresh_s: float | None = self.options.get("refresh")
        if refresh_s is None and self.settings.get("refresh"):
            refresh_s = parse_duration(self.checked("refresh"))
        return Discovery(
            self._lookup(),
            self.transport.settings,
            refresh_s=refresh_s,
            folder=easq_folder(self.environ, "XDG_CACHE_HOME", ".cache"),
            warn=self.warnings.append,
        )

    def _lookup(self) -> Lookup:
        from easq.errors import AuthFailed
        from easq.prediction.lookup import EasLookup, ModelArtsLookup

        endpoint, service = self._needed("endpoint"), self._needed("service")
        if self.settings.get("via") != "modelarts":
            return EasLookup(endpoint, service)
        if not self.token:
            raise AuthFailed("ModelArts needs a token", hint="--token-file, or EASQ_TOKEN: an IAM token")
        lookup = ModelArtsLookup(endpoint, self._needed("project"), service, self.token)
        self.warn_where_unencrypted(lookup.endpoint)
        return lookup

    def _needed(self, key: str) -> str:
        from easq.config.keys import ENVIRONMENT

        if not self.settings.get(key):
            variable = f"{ENVIRONMENT[key]}, or " if key in ENVIRONMENT else ""
            raise ConfigError(
                f"no {key} is known for direct connect",
                hint=f"--{key}, or {variable}easq config set {key} VALUE",
            )
        return self.settings.get(key)

    def checked(self, key: str) -> str:
        """Return the setting `key`, or an empty string. Raises UsageError or ConfigError for a wrong value."""
        from easq.config.keys import value_problem

        value = self.settings.values.get(key)
        if value is None:
            return ""
        if problem := value_problem(key, value.value):
            kind = UsageError if value.origin.startswith("option") else ConfigError
            raise kind(f"{problem} ({value.origin})")
        return value.value

    def caller(self) -> Caller:
        """Return the caller: consumer and token. Raises ConfigError or UsageError for a wrong name."""
        from easq.model import Consumer
        from easq.protocol.operations import Caller

        consumer = Consumer(self.checked("group"), self.checked("user"))
        return Caller(consumer, self.token, self.options.get("rear", False))

    def warn_where_unencrypted(self, *urls: str) -> None:
        """Warn if the token is sent unencrypted to one of `urls`, beyond this network."""
        from easq.net.url import is_private

        for url in urls:
            scheme = url.partition(":")[0].lower()
            if scheme in ("http", "ws") and not is_private(url):
                self.printer.warn(f"the token travels unencrypted, over {scheme} and beyond this network")
                return

    def queue(self, *, sink: bool | None = None) -> QueueClient:
        """Return a client of the input or the sink (None: as -k says)."""
        from easq.client.queue import QueueClient

        return QueueClient.over(self.transport, *self.stream(sink=sink))

    def stream(self, *, sink: bool | None = None) -> tuple[str, Caller]:
        """Return the URL of the input or the sink (None: as -k says), and the caller."""
        url = self.stream_url(sink=sink)
        caller = self.caller()
        if caller.token:
            self.warn_where_unencrypted(url)
        return url, caller

    def tell_done(self, word: str, indexes: Sequence[int], counted: int | None, uncounted: str) -> None:
        """Print that `indexes` are `word` (such as `committed`).

        If `counted` is lower than their number, warn on stderr; `uncounted` names the items that do not count.
        """
        if self.output == "json":
            self.printer.record({word: [str(index) for index in indexes], "counted": counted})
            return
        self.printer.line(f"[OK] {word}")
        if counted is not None and counted < len(indexes):
            self.printer.warn(f"{counted} of {len(indexes)} {word}; not counted: {uncounted}")

    def close(self) -> None:
        """Close all connections, and print the remaining warnings."""
        self.at_end.close()
        if "printer" in self.__dict__:
            self.printer.status("")
        for client in ("discovery", "instances", "transport"):
            if client in self.__dict__:
                self.__dict__[client].close()
        self.tell_warnings()

    # input

    def stdin(self) -> IO[bytes]:
        """Return stdin as bytes. Raises UsageError if it is closed."""
        if sys.stdin is None:
            raise UsageError("stdin is closed")
        return sys.stdin.buffer

    def read_stdin(self, limit: int) -> str:
        """Return all of stdin as text. Raises UsageError if it has more than `limit` bytes."""
        data = self.stdin().read(limit + 1)
        if len(data) > limit:
            raise UsageError(f"more than {limit} bytes came on stdin")
        # programs on Windows write a byte order mark
        return data.decode("utf-8-sig", "replace")

    def can_ask(self) -> bool:
        """Whether the user can be asked: stdin and stderr are a terminal, and --no-input is not given."""
        if self.options.get("no_input") or self.environ.get("EASQ_NO_INPUT"):
            return False
        return sys.stdin is not None and sys.stdin.isatty() and self.printer.err_is_terminal

    def ask(self, question: str, *, default: bool) -> bool:
        """Ask the user, and return the answer. Raises UsageError at the end of the input."""
        if self.options.get("yes"):
            return True
        while True:
            self.printer.ask(f"{question} {'[Y/n]' if default else '[y/N]'}")
            try:
                answer = self.stdin().readline()
            except KeyboardInterrupt:
                self.printer.after_answer()
                raise
            if not answer.endswith(b"\n"):
                self.printer.after_answer()
            if not answer:
                raise UsageError("no answer: end of input at the prompt")
            word = answer.decode("utf-8", "replace").strip().lower()
            if word in ("", "y", "yes", "n", "no"):
                return default if not word else word in ("y", "yes")

    def confirm(self, question: str) -> None:
        """Ask the user to confirm, unless -y is given. Raises UsageError if the user refuses or cannot be asked."""
        if self.options.get("yes"):
            return
        if not self.can_ask():
            raise UsageError("not confirmed, and no terminal to ask on", hint="-y confirms")
        if not self.ask(question, default=False):
            raise UsageError("not confirmed: nothing was done")


def exit_status(error: BaseException) -> int:
    """Return the exit status for `error`."""
    from easq.cli.signals import Terminated
    from easq.errors import Exit
    from easq.render.printer import OutputClosed

    if isinstance(error, EasqError):
        return int(error.exit)
    if isinstance(error, OutputClosed):
        return int(Exit.SIGPIPE)
    if isinstance(error, Terminated):
        return int(Exit.SIGTERM)
    if isinstance(error, KeyboardInterrupt):
        return int(Exit.SIGINT)
    return int(Exit.BUG)


def environment() -> Mapping[str, str]:
    """Return the environment of this process."""
    return os.environ
