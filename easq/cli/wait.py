"""easq wait: until a condition of the queue holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from easq.cli.command import command
from easq.cli.options import sink_option
from easq.cli.param_types import DURATION, ParamType

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.wait import Comparison, QueueCondition


class ComparisonType(ParamType):
    """A comparison, `OP N`."""

    name = "op n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Comparison:
        """Return `value` as a comparison."""
        from easq.client.wait import read_comparison

        try:
            return read_comparison(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


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
    from easq.client import wait
    from easq.errors import UsageError

    conditions: list[QueueCondition] = []
    if empty:
        conditions.append(wait.length_condition(wait.Comparison("=", 0), "empty"))
    if length is not None:
        conditions.append(wait.length_condition(length))
    if result is not None:
        conditions.append(wait.result_condition(result))
    if consumers is not None:
        conditions.append(wait.consumers_condition(consumers))
    if ready:
        conditions.append(wait.ready_condition())
    if len(conditions) != 1:
        raise UsageError(
            "exactly one of --empty, --length, --result, --consumers and --ready is needed",
            hint="easq wait --help",
        )
    (condition,) = conditions
    client = app.queue(sink=True if condition.of_sink else None)
    found = wait.wait_for(client, condition, timeout, notice=app.printer.notice)
    if app.output == "json":
        app.printer.record({"condition": condition.text, "held": True, "value": found.value})
