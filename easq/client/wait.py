"""Conditions of a queue, and waiting until a condition holds."""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from easq.client.queue import QueueClient

#: pauses between observations, in seconds: the first one, and the maximum; each pause is twice the one before
_PAUSE_S, _MAX_PAUSE_S = 0.1, 1.0


#: seconds without a change after which the reason for waiting is printed, once for each value
_TELL_S = 2.0


#: maximum time for which a queue that answered before may be unreachable, in seconds
_PATIENCE_S = 60.0


_OPERATORS: Mapping[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


_COMPARISON = re.compile(r"\s*(<=?|==?|!=|>=?)\s*([0-9]{1,20})\s*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison with a number, such as `>= 10`."""

    operator: str
    number: int

    def holds(self, value: int) -> bool:
        """Whether it holds for `value`."""
        return _OPERATORS[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.operator} {self.number}"


@dataclass(frozen=True, slots=True)
class Observation:
    """The state of a queue at one moment: whether a condition holds, the value compared, and the state as text."""

    holds: bool
    value: int | str
    text: str


@dataclass(frozen=True, slots=True)
class QueueCondition:
    """A condition. Arguments of `observe`: a client, the maximum wait and the time limit of the exchange in s."""

    text: str
    observe: Callable[[QueueClient, float, float], Observation]
    of_sink: bool = False  #: whatever -k says
    may_be_unreachable: bool = False


def length_condition(comparison: Comparison, text: str = "") -> QueueCondition:
    """Return the condition on the number of items, pending ones included."""

    def observe(client: QueueClient, _wait_s: float, deadline_s: float) -> Observation:
        from easq.errors import NotAQueueService

        attributes = client.attributes(deadline_s=deadline_s)
        value = attributes.get("stream.length", "")
        if not value.isascii() or not value.isdigit():
            raise NotAQueueService(f"stream.length is {value!r}, not a number")
        told = _holders(attributes) if int(value) > comparison.number else []
        seen = "; ".join([f"the length is {int(value)}", *told])
        return Observation(comparison.holds(int(value)), int(value), seen)

    return QueueCondition(text or f"length {comparison}", observe)


def _holders(attributes: Mapping[str, str]) -> list[str]:
    """Return a text for each group that holds items, if the service lists such groups."""
    from easq.protocol.attributes import HeldLine
    from easq.protocol.durations import format_duration

    told: list[str] = []
    for key, line in attributes.items():
        if not key.startswith("groups.held."):
            continue
        try:
            held = HeldLine.parse(line)
        except ValueError:
            continue
        what = "items" if held.items is None else str(held.items)
        if held.tags:
            what += f" with {' '.join(f'{name}={value}' for name, value in held.tags.items())}"
        if held.left_s is None:
            told.append(f"group {held.id} has not committed {what}")
        else:
            left = format_duration(math.ceil(held.left_s))
            told.append(f"group {held.id} left and holds {what} for another {left}")
    return told


def result_condition(request_id: str) -> QueueCondition:
    """Return the condition that the sink holds the result of a request."""

    def observe(client: QueueClient, wait_s: float, deadline_s: float) -> Observation:
        frame = client.find(request_id, timeout_s=wait_s, deadline_s=deadline_s)
        return Observation(frame is not None, str(frame.index) if frame else "", "the sink does not hold it")

    return QueueCondition(f"result {request_id}", observe, of_sink=True)


def consumers_condition(comparison: Comparison) -> QueueCondition:
    """Return the condition on the number of connected consumers."""

    def observe(client: QueueClient, _wait_s: float, deadline_s: float) -> Observation:
        number = _running(client.attributes(deadline_s=deadline_s))
        return Observation(comparison.holds(number), number, f"there are {number}")

    return QueueCondition(f"consumers {comparison}", observe)


def _running(attributes: Mapping[str, str]) -> int:
    """Return the number of connected consumers. The totals of the service also count consumers that have left."""
    from easq.errors import NotAQueueService
    from easq.protocol.attributes import ConsumerLine

    try:
        lines = [
            ConsumerLine.parse(line) for key, line in attributes.items() if key.startswith("consumers.list.")
        ]
    except ValueError as error:
        raise NotAQueueService(f"the list of consumers cannot be read: {error}") from error
    return sum(line.status == "Running" for line in lines)


def ready_condition() -> QueueCondition:
    """Return the condition that the service answers."""

    def observe(client: QueueClient, _wait_s: float, deadline_s: float) -> Observation:
        attributes = client.attributes(deadline_s=deadline_s)
        return Observation(True, attributes.get("meta.state", ""), "it answers")

    return QueueCondition("ready", observe, may_be_unreachable=True)


def wait_for(
    client: QueueClient, condition: QueueCondition, timeout_s: float | None, *, notice: Callable[[str], None]
) -> Observation:
    """Wait until the condition holds, and return the last observation.

    `notice` is called once with the state of the queue if the state does not change for some time.

    Raises DeadlineExceeded after `timeout_s`, or Unreachable if the service never answered. Raises an error with which
    the service refuses a request at once, and a connection error if it lasts.
    """
    from easq.errors import (
        AnswerTooLarge,
        DeadlineExceeded,
        EasqError,
        NotAQueueService,
        QueueFull,
        ServerError,
        Unreachable,
    )
    from easq.net.failures import last_known
    from easq.net.retry import OVERTIME_S
    from easq.protocol.durations import format_duration

    settings = client.settings
    now = time.monotonic()
    end = inf if timeout_s is None else now + timeout_s
    client = client.bounded(None if timeout_s is None else end + OVERTIME_S)
    give_up = inf if condition.may_be_unreachable else now + settings.connect_timeout_s
    pause_s = _PAUSE_S
    answered, hint = False, ""
    value: int | str | None = None
    tell_at = inf
    before: EasqError | None = None
    while True:
        left_s = max(end - now, 0.0)
        bound_s = min(left_s + OVERTIME_S, settings.request_timeout_s)
        try:
            found = condition.observe(client, left_s, bound_s)
        except (NotAQueueService, AnswerTooLarge):
            raise
        except (Unreachable, ServerError, QueueFull) as error:
            before = last_known(error, before)
            if time.monotonic() >= give_up:
                raise before from error
            answered = answered or not isinstance(error, Unreachable)
            seen, hint, asked_s = before.message, before.hint, error.retry_after_s or 0.0
        else:
            answered, asked_s, before = True, 0.0, None
            if found.holds:
                return found
            seen = found.text
            if not condition.may_be_unreachable:
                give_up = time.monotonic() + _PATIENCE_S
            if found.value != value:
                value, tell_at = found.value, time.monotonic() + _TELL_S
            elif time.monotonic() >= tell_at:
                notice(f"waiting for {condition.text}: {seen}")
                tell_at = inf
        now = time.monotonic()
        if timeout_s is not None and now >= end:
            text = f"waited {format_duration(timeout_s)} in vain for {condition.text}: {seen}"
            raise DeadlineExceeded(text) if answered else Unreachable(text, hint=hint)
        # Retry-After must not extend the wait beyond the time at which an unreachable service is given up
        time.sleep(min(max(pause_s, min(asked_s, max(give_up - now, 0.0))), end - now))
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        now = time.monotonic()


def read_comparison(text: str) -> Comparison:
    """Parse a comparison of the form `OP N`. Raises ValueError for any other text."""
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no comparison such as '>= 10': one of < <= = == != >= > and N")
    return Comparison(found[1], int(found[2]))
