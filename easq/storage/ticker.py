"""Timers of the rules: `tick` of a stream is called when something is due there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from math import inf

from easq.storage.rules.effects import Effects
from easq.storage.rules.state import AT_ONCE
from easq.storage.rules.stream import Stream

#: seconds after which the next slice begins even if the last one is not stored yet
_PAUSE_S = 1.0


class Ticker:
    """Calls `tick` of each stream when it is due, and gives the effects to `apply`.

    `apply` returns a future that is done once the effects are stored, None if there is nothing to store. Long scans of
    the rules go on in slices: one slice in one turn of the event loop, and the next of a stream once the last one is
    stored. Slices that are made faster than they are stored would form one long transaction.
    """

    #: seconds of delay of a timer that show that the process stood still (stopped, suspended)
    stood_still_s = 1.0

    def __init__(
        self, rules: Mapping[str, Stream], apply: Callable[[str, Effects], asyncio.Future[None] | None]
    ) -> None:
        self._rules = rules
        self._apply = apply
        self._timers: dict[str, tuple[float, asyncio.Handle]] = {}  # stream -> when it is due
        self._paused: set[str] = set()  # streams whose next slice waits until the last one is stored
        self._has_ticked = False  # a stream has ticked in this turn of the event loop
        self._is_stopped = False

    def schedule(self, stream: str) -> None:
        """Start the timer of the stream, or start it anew when the stream is due earlier."""
        due = self._rules[stream].due
        known = self._timers.get(stream)
        if (
            due == inf
            or (known is not None and known[0] <= due)
            or stream in self._paused
            or self._is_stopped
        ):
            return
        if known is not None:
            known[1].cancel()
        self._timers[stream] = due, asyncio.get_running_loop().call_at(due, self._tick, stream)

    def stop(self) -> None:
        """Stop all timers for good."""
        self._is_stopped = True
        for _, handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        self._paused.clear()

    def _tick(self, stream: str) -> None:
        due, _ = self._timers.pop(stream)
        loop = asyncio.get_running_loop()
        if due == AT_ONCE:
            if self._has_ticked:  # this stream has the next turn
                self._timers[stream] = due, loop.call_soon(self._tick, stream)
                return
            self._has_ticked = True
            loop.call_soon(setattr, self, "_has_ticked", False)
        rules, now = self._rules[stream], loop.time()
        if due > AT_ONCE and now - due > self.stood_still_s:
            rules.stood_still(now)
        effects = rules.tick(now)
        self._paused.add(stream)
        stored = self._apply(stream, effects)
        if stored is None or rules.due > AT_ONCE:
            self._go_on(stream)
            return
        # on a full disk nothing is stored for a while, and other timers must not wait for that
        timer = loop.call_later(_PAUSE_S, self._go_on, stream)
        stored.add_done_callback(lambda _: self._go_on(stream, timer))

    def _go_on(self, stream: str, timer: asyncio.TimerHandle | None = None) -> None:
        """Allow the next slice of the stream."""
        if timer is not None:
            timer.cancel()
        if stream in self._paused:
            self._paused.remove(stream)
            self.schedule(stream)
