"""The current list of the instances of a service. Only a background thread renews it, never a request.

    first request ── a recent list on disk? ── yes ──> use the list
                           │ no
                           └── look up ── good ──> use the answer, write it to disk
                                          bad ───> use the old list on disk, or raise an error
    afterwards: one thread looks up every refresh +- 10 %, or reads a newer list that another process wrote to disk.
    Only a good answer replaces the list.

`easq.prediction.lookup` has the requests. If the platform limits their rate (ModelArts), all processes of a user share
the limit.

Source: Alibaba's page on direct connect over a VPC. Discovery is not asked for each request. Only an answer 200 with
instances replaces the list; the list is never cleared. It does not expire either, because a failure of discovery says
nothing about the instances.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from easq.errors import EasqError, Unreachable, UsageError
from easq.model import Instance
from easq.net.balance import Balance
from easq.net.http import Transport
from easq.net.retry import Retry
from easq.net.settings import NetworkSettings
from easq.prediction.cache import CachedList, limiter_file, list_file, read_list, write_list
from easq.prediction.lookup import Lookup
from easq.prediction.rate_limit import LookupLimiter
from easq.protocol.discovery import Malformed

#: minimum time between two look-ups of one process, in seconds
_LEAST_PAUSE_S = 0.1
#: random variation of the refresh, as a part of it, so that clients do not all look up at the same time
_JITTER = 0.1
#: time limit of one look-up: seconds, and part of the refresh; the smaller one holds
_DEADLINE_S = 4.0
_DEADLINE_PART = 0.8
#: maximum size of an answer in bytes
_MAX_ANSWER = 1024 * 1024
#: time for which `close` waits for a look-up in flight, in seconds; the look-up ends at its own deadline
_FAREWELL_S = 0.2
#: time between two checks of the disk while waiting for the rate limit, in seconds
_LOOK_S = 0.1


class Discovery:
    """The instances of one service, kept up to date by a thread. Thread-safe; a context manager."""

    def __init__(
        self,
        lookup: Lookup,
        settings: NetworkSettings,
        *,
        refresh_s: float | None = None,
        folder: Path | None = None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Prepare; nothing is looked up yet. Raises UsageError for a refresh of 0 or less.

        Args:
            refresh_s: seconds between look-ups, at least the spacing of `lookup`; None for its own refresh.
            folder: the folder for the list on disk; None for none.
            warn: called from any thread with a text about a bad answer; once for the same problem.
        """
        refresh_s = lookup.refresh_s if refresh_s is None else refresh_s
        if refresh_s <= 0:
            raise UsageError("the refresh must be above 0")
        self.lookup, self.refresh_s = lookup, max(refresh_s, lookup.spacing_s)
        # without the user's headers, which are meant for the service
        self._transport = Transport(replace(settings, headers={}, max_answer_bytes=_MAX_ANSWER))
        self._file = list_file(folder, lookup.endpoint, lookup.cache_key) if folder else None
        self._limiter = LookupLimiter(
            limiter_file(folder, lookup.endpoint) if folder else None, lookup.spacing_s
        )
        self._warn = warn
        self._warned = ""
        self._balance = Balance()
        self._time = 0.0  # Unix seconds of the answer with the current list
        self._asked_s = 0.0  # Retry-After of the last answer, in seconds
        self._filling = threading.Lock()
        self._stopped = threading.Event()
        self._refresher: threading.Thread | None = None

    def __enter__(self) -> Discovery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop looking up."""
        self._stopped.set()
        if self._refresher is None:
            self._transport.close()
        else:
            # the thread closes the transport at its end
            self._refresher.join(_FAREWELL_S)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The last good list, including instances of weight 0; empty before `fill`."""
        return self._balance.instances

    @property
    def age_s(self) -> float:
        """Age of the current list, in seconds."""
        return max(0.0, time.time() - self._time)

    def next(self, tried: Collection[str] = ()) -> Instance | None:
        """Return the instance for the next request, whose address is not in `tried`; None if there is none."""
        return self._balance.next(tried)

    def has_other(self, tried: Collection[str]) -> bool:
        """Return whether `next` would find an instance whose address is not in `tried`."""
        return self._balance.has_other(tried)

    def fill(self, *, within_s: float | None = None) -> None:
        """Load the list: a recent one from disk, else the answer of a look-up, else an older one from disk.

        Does nothing if there is a list already. Waits for the rate limit, or until another process has written a list.

        Raises the error of the look-up if there is no list: Unreachable, NotFound, AuthFailed, ServerError.
        """
        end = time.monotonic() + (self.lookup.spacing_s + _DEADLINE_S if within_s is None else within_s)
        with self._filling:
            if self._balance.instances:
                return
            cached, may_ask = self._await_limiter(end)
            if cached and (self._is_young(cached) or not may_ask):
                self._hold(cached.instances, cached.time)
                return
            deadline_s = max(0.001, min(end - time.monotonic(), _DEADLINE_S))
            try:
                self._ask(deadline_s, Retry.NEVER if cached else Retry.READ)
            except EasqError as error:
                if cached is None:
                    raise
                self._hold(cached.instances, cached.time)
                self._failed(error)

    def keep_fresh(self) -> None:
        """Start a thread that looks up every refresh."""
        with self._filling:
            if self._refresher is None and not self._stopped.is_set():
                self._refresher = threading.Thread(
                    target=self._run, name=f"discovery-{self.lookup.service}", daemon=True
                )
                self._refresher.start()

    def refresh(self) -> bool:
        """Look up once. Return whether the answer is good; a good answer replaces the list.

        Does nothing, and returns False, if the rate limit does not allow a look-up.
        """
        if self._limiter.take():
            return False
        self._asked_s = 0.0
        try:
            self._ask(min(_DEADLINE_S, self._pause_s * _DEADLINE_PART), Retry.NEVER)
        except EasqError as error:
            self._asked_s = error.retry_after_s or 0.0
            self._failed(error)
            return False
        return True

    @property
    def _pause_s(self) -> float:
        return max(self.refresh_s, _LEAST_PAUSE_S)

    def _run(self) -> None:
        wait_s = max(0.0, self._pause_s - self.age_s)
        while not self._stopped.wait(wait_s * random.uniform(1 - _JITTER, 1 + _JITTER)):
            cached = self._cached()
            if cached and cached.time > self._time and self._is_young(cached):
                # another process asked meanwhile
                self._hold(cached.instances, cached.time)
                wait_s = max(_LEAST_PAUSE_S, self._pause_s - self.age_s)
            else:
                self.refresh()
                wait_s = max(self._pause_s, self._asked_s)
        self._transport.close()

    def _cached(self) -> CachedList | None:
        return read_list(self._file, self.lookup.read) if self._file else None

    def _is_young(self, cached: CachedList) -> bool:
        return 0 <= time.time() - cached.time < self.refresh_s

    def _await_limiter(self, end: float) -> tuple[CachedList | None, bool]:
        """Return the list on disk, and whether a look-up is allowed. Without a list, wait for either."""
        while True:
            cached = self._cached()
            if cached and self._is_young(cached):
                return cached, False
            left_s = self._limiter.take()
            if cached or not left_s:
                return cached, not left_s
            if time.monotonic() + left_s > end:
                raise Unreachable(
                    f"{self.lookup.name} was asked just now, and is once in {self.lookup.spacing_s:g} s",
                    hint=f"there is no list of instances yet; try again in {left_s:.0f} s",
                )
            time.sleep(min(left_s, _LOOK_S))

    def _ask(self, deadline_s: float, retry: Retry) -> None:
        """Look up, and use a good answer. Raises an error for any other answer, and changes nothing then."""
        began = time.time()
        lookup = self.lookup
        found = lookup.ask(self._transport, deadline_s, retry)
        if not found.instances:
            left_out = f": {found.skipped} entries are none, the first because {found.reason}"
            raise Unreachable(
                f"{lookup.name} knows no instance of {lookup.service}{left_out if found.skipped else ''}",
                hint="is the service running, and is it in this VPC?",
            )
        self._hold(found.instances, began)
        if self._file:
            write_list(self._file, lookup.write(found.instances), began)
        if found.skipped:
            count = f"{found.skipped} of the entries" if found.skipped > 1 else "1 entry"
            self._say(f"{lookup.name} sent {count} that cannot be used: {found.reason}", about="entries")
        else:
            self._warned = ""

    def _hold(self, instances: tuple[Instance, ...], moment: float) -> None:
        self._balance.replace(instances)
        self._time = moment

    def _failed(self, error: EasqError) -> None:
        # the text of a server may differ each time; its status and the texts of easq do not
        own = error.__cause__ is None or isinstance(error.__cause__, Malformed | Unreachable)
        about = error.message if own else f"{error.kind} {error.status}"
        self._say(f"{error.message}; the last good list is used", about=about)

    def _say(self, text: str, *, about: str) -> None:
        """Warn, unless the last warning was about the same problem."""
        if about != self._warned:
            self._warned = about
            self._warn(text)
