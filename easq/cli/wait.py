"""easq wait: until a condition of the queue holds."""

from __future__ import annotations

import math
import operator
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import click

from easq.cli.command import command
from easq.cli.options import sink_option
from easq.cli.param_types import DURATION, ParamType

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.queue import QueueClient

#: seconds between two looks: the first pause, then twice as long each time, and the longest
_PAUSE_S, _MAX_PAUSE_S = 0.1, 1.0

#: seconds without a change after which the reason for waiting is printed, once for each value
_TELL_S = 2.0

#: seconds that a queue which answered before may be out of reach
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
    """`OP N`."""

    operator: str
    number: int

    def holds(self, value: int) -> bool:
        """Whether `value` is so."""
        return _OPERATORS[self.operator](value, self.number)

    def __str__(self) -> str:
        return f"{self.operator} {self.number}"


class ComparisonType(ParamType):
    """`OP N` on the command line."""

    name = "op n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Comparison:
        """`value` as a comparison."""
        found = _COMPARISON.fullmatch(str(value))
        if found is None:
            self.fail(
                f"{value!r} is no comparison such as '>= 10': one of < <= = == != >= > and N", param, ctx
            )
        return Comparison(found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the queue found: whether the condition holds, for which value, and that in words."""

    held: bool
    value: int | str
    seen: str


@dataclass(frozen=True, slots=True)
class Condition:
    """What is waited for; `look` is given how long it may wait, and how long the exchange may take."""

    text: str
    look: Callable[[QueueClient, float, float], Look]
    of_sink: bool = False  # whatever -k says
    ready: bool = False  # out of reach is no failure


@command(
    "wait",
    examples=(
        "easq wait --ready --timeout 30s",
        "easq wait --empty --timeout 10m && easq end -y",
        "easq wait --length '< 100' && easq put -f more.txt",
        "easq wait --result ef6940e3-159c-45f3-a96d-bc0acd71275f --timeout 5m",
    ),
)
@click.option("--empty", is_flag=True, help="No item is left, ready or pending.")
@click.option(
    "--length",
    type=ComparisonType(),
    metavar="'OP N'",
    help="The number of items, pending ones included, matches.",
)
@click.option(
    "--result", metavar="REQUEST_ID", help="The sink holds the result of this request; it stays there."
)
@click.option(
    "--consumers",
    type=ComparisonType(),
    metavar="'OP N'",
    help="The number of connected consumers, in all groups, matches.",
)
@click.option("--ready", is_flag=True, help="The service answers; it may be unreachable before.")
@click.option(
    "--timeout", type=DURATION, help="Maximum wait, such as 30s; 0 checks once.  [default: unlimited]"
)
@sink_option
def wait(
    app: App,
    empty: bool,
    length: Comparison | None,
    result: str | None,
    consumers: Comparison | None,
    ready: bool,
    timeout: float | None,
) -> None:
    """Wait until the queue meets a condition.

    Exactly one of --empty, --length, --result, --consumers and --ready is needed. OP is one of < <= = == != >= >. The
    exit code is 9 if the condition was not met within --timeout, and 6 if the service never answered.
    """
    condition = _condition(empty, length, result, consumers, ready)
    client = app.queue(sink=True if condition.of_sink else None)
    found = _wait(app, client, condition, timeout)
    if app.output == "json":
        app.printer.record({"condition": condition.text, "held": True, "value": found.value})


def _condition(
    empty: bool,
    length: Comparison | None,
    result: str | None,
    consumers: Comparison | None,
    ready: bool,
) -> Condition:
    """The one that was asked for. Raises UsageError for none, and for more."""
    from easq.errors import UsageError

    asked: list[Condition] = []
    if empty:
        asked.append(Condition("empty", _length_looks(Comparison("=", 0))))
    if length is not None:
        asked.append(Condition(f"length {length}", _length_looks(length)))
    if result is not None:
        asked.append(Condition(f"result {result}", _result_looks(result), of_sink=True))
    if consumers is not None:
        asked.append(Condition(f"consumers {consumers}", _consumers_look(consumers)))
    if ready:
        asked.append(Condition("ready", _ready_look, ready=True))
    if len(asked) != 1:
        raise UsageError(
            "exactly one of --empty, --length, --result, --consumers and --ready is needed",
            hint="easq wait --help",
        )
    return asked[0]


def _length_looks(comparison: Comparison) -> Callable[[QueueClient, float, float], Look]:
    def look(client: QueueClient, _wait_s: float, deadline_s: float) -> Look:
        from easq.errors import NotAQueueService

        attributes = client.attributes(deadline_s=deadline_s)
        text = attributes.get("stream.length", "")
        if not text.isascii() or not text.isdigit():
            raise NotAQueueService(f"stream.length is {text!r}, not a number")
        told = _holders(attributes) if int(text) > comparison.number else []
        seen = "; ".join([f"the length is {int(text)}", *told])
        return Look(comparison.holds(int(text)), int(text), seen)

    return look


def _holders(attributes: Mapping[str, str]) -> list[str]:
    """Return a text for each group that holds items back, as far as the service tells."""
    from easq.protocol.durations import format_duration
    from easq.protocol.replies import HeldLine

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


def _result_looks(request_id: str) -> Callable[[QueueClient, float, float], Look]:
    def look(client: QueueClient, wait_s: float, deadline_s: float) -> Look:
        frame = client.find(request_id, timeout_s=wait_s, deadline_s=deadline_s)
        return Look(frame is not None, str(frame.index) if frame else "", "the sink does not hold it")

    return look


def _consumers_look(comparison: Comparison) -> Callable[[QueueClient, float, float], Look]:
    def look(client: QueueClient, _wait_s: float, deadline_s: float) -> Look:
        number = _running(client.attributes(deadline_s=deadline_s))
        return Look(comparison.holds(number), number, f"there are {number}")

    return look


def _running(attributes: Mapping[str, str]) -> int:
    """How many consumers are connected; the totals count those that left, too. Raises NotAQueueService."""
    from easq.errors import NotAQueueService
    from easq.protocol.replies import ConsumerLine

    try:
        lines = [
            ConsumerLine.parse(line) for key, line in attributes.items() if key.startswith("consumers.list.")
        ]
    except ValueError as error:
        raise NotAQueueService(f"the list of consumers cannot be read: {error}") from error
    return sum(line.status == "Running" for line in lines)


def _ready_look(client: QueueClient, _wait_s: float, deadline_s: float) -> Look:
    attributes = client.attributes(deadline_s=deadline_s)
    return Look(True, attributes.get("meta.state", ""), "it answers")


def _wait(app: App, client: QueueClient, condition: Condition, timeout_s: float | None) -> Look:
    """The look that found the condition to hold.

    Raises DeadlineExceeded, or Unreachable if the service never answered. Raises a refusal of the service at once, and
    a connection error if it lasts.
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

    settings = app.transport.settings
    now = time.monotonic()
    end = inf if timeout_s is None else now + timeout_s
    client = client.bounded(None if timeout_s is None else end + OVERTIME_S)
    give_up = inf if condition.ready else now + settings.connect_timeout_s
    pause_s = _PAUSE_S
    answered, hint = False, ""
    value: int | str | None = None
    tell_at = inf
    before: EasqError | None = None
    while True:
        left_s = max(end - now, 0.0)
        bound_s = min(left_s + OVERTIME_S, settings.request_timeout_s)
        try:
            found = condition.look(client, left_s, bound_s)
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
            if found.held:
                return found
            seen = found.seen
            if not condition.ready:
                give_up = time.monotonic() + _PATIENCE_S
            if found.value != value:
                value, tell_at = found.value, time.monotonic() + _TELL_S
            elif time.monotonic() >= tell_at:
                app.printer.notice(f"waiting for {condition.text}: {seen}")
                tell_at = inf
        now = time.monotonic()
        if timeout_s is not None and now >= end:
            text = f"waited {format_duration(timeout_s)} in vain for {condition.text}: {seen}"
            raise DeadlineExceeded(text) if answered else Unreachable(text, hint=hint)
        # with Retry-After, no longer than until the service would be given up
        time.sleep(min(max(pause_s, min(asked_s, max(give_up - now, 0.0))), end - now))
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        now = time.monotonic()
