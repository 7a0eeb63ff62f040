"""Which instances a service has now, asked beside the requests and never by one of them.

    first request ── a young list on disk? ── yes ──> use it
                          │ no
                          └── ask ── good ──> use it, keep it on disk
                                     bad ───> the old list on disk, or an error
    from then on: one thread asks every refresh +- 10 %; a good answer replaces the list, nothing else does

Source: Alibaba's page on direct connect over a VPC: discovery is never asked per request, and what is known is
replaced by a 200 with instances and never cleared. The list does not grow invalid with age either: discovery that
is away says nothing about the instances.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from easq.balance import Balance
from easq.client.endpoint import endpoint_url, is_loopback, shown
from easq.client.kept import list_file, read_list, write_list
from easq.client.transport import Retry, Settings, Transport
from easq.errors import EasqError, NotFound, ServerError, Unreachable, UsageError
from easq.model import Instance
from easq.wire.operations import Request
from easq.wire.upstreams import Malformed, Upstreams, read_upstreams

#: the documented path, then the one that the Python SDK asks since 2026
PATHS = (
    "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/",
    "/api/v1/servicediscovery/upstreams/",
)
#: seconds between two questions, as Alibaba's page advises
REFRESH_S = 5.0
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

_SERVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Discovery:
    """The instances of one service, kept up to date. Usable from several threads at once; a context manager."""

    def __init__(
        self,
        endpoint: str,
        service: str,
        settings: Settings,
        *,
        refresh_s: float = REFRESH_S,
        folder: Path | None = None,
        warn: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Nothing is asked yet. `folder` is where the list is kept, None for nowhere; `warn` gets a line, from
        any thread, when an answer is not good, once until that changes.

        Raises ConfigError for the endpoint and UsageError for the service.
        """
        if not _SERVICE.fullmatch(service):
            raise UsageError(f"the service {service[:80]!a} is not a name: 1 to 128 of A-Z a-z 0-9 . _ -")
        if refresh_s <= 0:
            raise UsageError("the refresh must be above 0")
        self.endpoint, self.service, self.refresh_s = endpoint_url(endpoint), service, refresh_s
        # nobody's headers: discovery asks for no token and gets none
        self._transport = Transport(replace(settings, headers={}, max_answer_bytes=_MAX_ANSWER))
        self._loopback = is_loopback(self.endpoint)
        self._file = list_file(folder, self.endpoint, service) if folder else None
        self._warn = warn
        self._warned = ""
        self._paths = PATHS
        self._balance = Balance()
        self._time = 0.0  # Unix seconds of the answer that holds
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
        """There are instances: from a list on disk that is younger than the refresh, else from the service, else
        from an old list on disk. Once there are, this does nothing.

        Raises the error of the question where there is none: Unreachable, NotFound, ServerError.
        """
        with self._filling:
            if self._balance.instances:
                return
            kept = read_list(self._file, loopback=self._loopback) if self._file else None
            if kept and 0 <= time.time() - kept.time < self.refresh_s:
                self._hold(kept.instances, kept.time)
                return
            deadline_s = _DEADLINE_S if within_s is None else min(within_s, _DEADLINE_S)
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
                    target=self._run, name=f"discovery-{self.service}", daemon=True
                )
                self._refresher.start()

    def refresh(self) -> bool:
        """The service was asked once. Whether its answer is good: then it holds, else all is as it was."""
        try:
            self._ask(min(_DEADLINE_S, self._pause_s * _DEADLINE_PART), Retry.NEVER)
        except EasqError as error:
            self._failed(error)
            return False
        return True

    @property
    def _pause_s(self) -> float:
        return max(self.refresh_s, _LEAST_PAUSE_S)

    def _run(self) -> None:
        wait_s = max(0.0, self._pause_s - self.age_s)
        while not self._stopped.wait(wait_s * random.uniform(1 - _JITTER, 1 + _JITTER)):
            self.refresh()
            wait_s = self._pause_s
        self._transport.close()

    def _ask(self, deadline_s: float, retry: Retry) -> None:
        """The service was asked, and its good answer holds. Raises what was wrong with it, and nothing changed."""
        began = time.time()
        found = self._answer(time.monotonic() + deadline_s, retry)
        if not found.instances:
            left_out = f": {found.skipped} entries are none, the first because {found.reason}"
            raise Unreachable(
                f"{self._name} knows no instance of {self.service}{left_out if found.skipped else ''}",
                hint="is the service running, and is it in this VPC?",
            )
        self._hold(found.instances, began)
        if self._file:
            write_list(self._file, self.service, found.instances, began)
        if found.skipped:
            count = f"{found.skipped} of the entries" if found.skipped > 1 else "1 entry"
            self._say(f"{self._name} sent {count} that cannot be used: {found.reason}", about="entries")
        else:
            self._warned = ""

    def _answer(self, end: float, retry: Retry) -> Upstreams:
        """What the first path answers that is there."""
        try:
            return self._answer_at(self._paths[0], end, retry)
        except NotFound:
            found = self._answer_at(self._paths[1], end, retry)
            self._paths = self._paths[::-1]
            return found

    def _answer_at(self, path: str, end: float, retry: Retry) -> Upstreams:
        try:
            reply = self._transport.exchange(
                self.endpoint,
                Request("GET", path=f"{path}{self.service}"),
                None,
                deadline_s=max(0.001, end - time.monotonic()),
                retry=retry,
            )
            if reply.status != 200:
                raise Malformed(f"it has the status {reply.status}")
            return read_upstreams(reply.body, loopback=self._loopback)
        except Malformed as error:
            raise ServerError(
                f"the answer of {self._name} is no list of instances: {error}",
                hint="check the endpoint; it is http://pai-eas-vpc.REGION.aliyuncs.com",
            ) from error
        except EasqError as error:
            hint = "check the name of the service" if isinstance(error, NotFound) else error.hint
            text = f"{self._name}: {error.message}"
            raise type(error)(text, hint=hint, status=error.status) from error

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

    @property
    def _name(self) -> str:
        return f"discovery at {shown(self.endpoint)}"
