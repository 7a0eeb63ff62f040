"""Which instances a service has now, asked beside the requests and never by one of them.

    first request ── a young list on disk? ── yes ──> use it
                          │ no
                          └── ask ── good ──> use it, keep it on disk
                                     bad ───> the old list on disk, or an error
    from then on: one thread asks every refresh +- 10 %, or takes the younger list that another process left on
    disk; a good answer replaces the list, nothing else does

What is asked is the look-up's. Where it rations questions (ModelArts), all processes of a user share the turns.

Source: Alibaba's page on direct connect over a VPC: discovery is never asked per request, and what is known is
replaced by a 200 with instances and never cleared. The list does not grow invalid with age either: discovery that
is away says nothing about the instances.
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
from easq.prediction.cache import Kept, list_file, read_list, turn_file, write_list
from easq.prediction.lookup import Lookup
from easq.prediction.rate_limit import Turn
from easq.protocol.discovery import Malformed

#: seconds between two questions of one run in any case
_LEAST_PAUSE_S = 0.1
#: of the refresh, so that not all clients ask at once
_JITTER = 0.1
#: seconds, and part of the refresh, that one question takes at most
_DEADLINE_S = 4.0
_DEADLINE_PART = 0.8
#: bytes of an answer
_MAX_ANSWER = 1024 * 1024
#: seconds that closing waits for a question in flight; it ends by its deadline in any case
_FAREWELL_S = 0.2
#: seconds after which who waits for its turn to ask looks again for what another was answered
_LOOK_S = 0.1


class Discovery:
    """The instances of one service, kept up to date. Usable from several threads at once; a context manager."""

    def __init__(
        self,
        lookup: Lookup,
        settings: NetworkSettings,
        *,
        refresh_s: float | None = None,
        folder: Path | None = None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Nothing is asked yet. `refresh_s` is the look-up's own where it is None, and never below its spacing.
        `folder` is where the list is kept, None for nowhere; `warn` gets a line, from any thread, when an answer
        is not good, once until that changes.

        Raises UsageError for a refresh that is none.
        """
        refresh_s = lookup.refresh_s if refresh_s is None else refresh_s
        if refresh_s <= 0:
            raise UsageError("the refresh must be above 0")
        self.lookup, self.refresh_s = lookup, max(refresh_s, lookup.spacing_s)
        # nobody's headers: a look-up sends what it needs, and nothing that is meant for the service
        self._transport = Transport(replace(settings, headers={}, max_answer_bytes=_MAX_ANSWER))
        self._file = list_file(folder, lookup.endpoint, lookup.kept_as) if folder else None
        self._turn = Turn(turn_file(folder, lookup.endpoint) if folder else None, lookup.spacing_s)
        self._warn = warn
        self._warned = ""
        self._balance = Balance()
        self._time = 0.0  # Unix seconds of the answer that holds
        self._asked_s = 0.0  # Retry-After of the last answer, in seconds
        self._filling = threading.Lock()
        self._stopped = threading.Event()
        self._refresher: threading.Thread | None = None

    def __enter__(self) -> Discovery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No further question is asked."""
        self._stopped.set()
        if self._refresher is None:
            self._transport.close()
        else:
            # the thread closes what it uses, when it is done with it
            self._refresher.join(_FAREWELL_S)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The last good list, those of weight 0 too; empty before `fill`."""
        return self._balance.instances

    @property
    def age_s(self) -> float:
        """Seconds since the answer that holds."""
        return max(0.0, time.time() - self._time)

    def next(self, tried: Collection[str] = ()) -> Instance | None:
        """The instance to ask next, its address not among `tried`; None when there is none. Asks nobody."""
        return self._balance.next(tried)

    def fill(self, *, within_s: float | None = None) -> None:
        """There are instances: from a list on disk that is younger than the refresh, else from a look-up, else
        from an old list on disk. Once there are, this does nothing. Where look-ups are rationed, its turn, or
        what another process is answered meanwhile, is waited for.

        Raises the error of the look-up where there is none: Unreachable, NotFound, AuthFailed, ServerError.
        """
        end = time.monotonic() + (self.lookup.spacing_s + _DEADLINE_S if within_s is None else within_s)
        with self._filling:
            if self._balance.instances:
                return
            kept, is_our_turn = self._await_turn(end)
            if kept and (self._is_young(kept) or not is_our_turn):
                self._hold(kept.instances, kept.time)
                return
            deadline_s = max(0.001, min(end - time.monotonic(), _DEADLINE_S))
            try:
                self._ask(deadline_s, Retry.NEVER if kept else Retry.READ)
            except EasqError as error:
                if kept is None:
                    raise
                self._hold(kept.instances, kept.time)
                self._failed(error)

    def keep_fresh(self) -> None:
        """From here on a thread asks every refresh, first when the list that holds is as old."""
        with self._filling:
            if self._refresher is None and not self._stopped.is_set():
                self._refresher = threading.Thread(
                    target=self._run, name=f"discovery-{self.lookup.service}", daemon=True
                )
                self._refresher.start()

    def refresh(self) -> bool:
        """The service was asked once. Whether its answer is good: then it holds, else all is as it was, as it is
        where it is not our turn to ask.
        """
        if self._turn.take():
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
            kept = self._kept()
            if kept and kept.time > self._time and self._is_young(kept):
                # another process asked meanwhile
                self._hold(kept.instances, kept.time)
                wait_s = max(_LEAST_PAUSE_S, self._pause_s - self.age_s)
            else:
                self.refresh()
                wait_s = max(self._pause_s, self._asked_s)
        self._transport.close()

    def _kept(self) -> Kept | None:
        return read_list(self._file, self.lookup.read) if self._file else None

    def _is_young(self, kept: Kept) -> bool:
        return 0 <= time.time() - kept.time < self.refresh_s

    def _await_turn(self, end: float) -> tuple[Kept | None, bool]:
        """The list on disk, and whether we may ask: without one, that is waited for, or for a list."""
        while True:
            kept = self._kept()
            if kept and self._is_young(kept):
                return kept, False
            left_s = self._turn.take()
            if kept or not left_s:
                return kept, not left_s
            if time.monotonic() + left_s > end:
                raise Unreachable(
                    f"{self.lookup.name} was asked just now, and is once in {self.lookup.spacing_s:g} s",
                    hint=f"there is no list of instances yet; try again in {left_s:.0f} s",
                )
            time.sleep(min(left_s, _LOOK_S))

    def _ask(self, deadline_s: float, retry: Retry) -> None:
        """The service was asked, and its good answer holds. Raises what was wrong with it, and nothing changed."""
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
        # what a server says may differ each time, its status and our own words do not
        own = error.__cause__ is None or isinstance(error.__cause__, Malformed | Unreachable)
        about = error.message if own else f"{error.kind} {error.status}"
        self._say(f"{error.message}; the last good list is used", about=about)

    def _say(self, text: str, *, about: str) -> None:
        """A warning, unless the one before was about the same."""
        if about != self._warned:
            self._warned = about
            self._warn(text)
