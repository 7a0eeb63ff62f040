"""easq endpoints: the instances of a service that is called directly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import command
from easq.cli.routes import service_options, via_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from easq.cli.app import App
    from easq.model import Instance


@command(
    "endpoints",
    examples=(
        "easq endpoints mnist --endpoint http://pai-eas-vpc.cn-shanghai.aliyuncs.com",
        "easq endpoints --probe",
        "easq endpoints --via modelarts --endpoint URL --project ID --service ID",
        "easq endpoints -o json | jq -r '.instances[].address'",
    ),
)
@click.argument("name", required=False, metavar="[SERVICE]")
@click.option("--probe", "probing", is_flag=True, help="Also connect to each instance; no request is sent.")
@via_option(
    "direct",
    "modelarts",
    text="Kind of the service: EAS (direct) or modelarts.  [default: that of the profile, else direct]",
)
@service_options
def endpoints(app: App, name: str | None, probing: bool) -> None:
    """List the service instances for direct calls.

    Each instance is listed with its weight and its share of the requests. The list is the one that predict uses: the
    list on disk if it is younger than --refresh, otherwise the answer of EAS discovery or of the ModelArts
    management API. With --probe, the exit code is 6 if no instance can be reached.
    """
    from easq.errors import Unreachable, UsageError
    from easq.net.balance import shares
    from easq.prediction.probe import probe

    if name:
        if app.options.get("service", name) != name:
            raise UsageError("SERVICE and --service name two services")
        app.options["service"] = name
    discovery = app.discovery
    discovery.fill()
    app.tell_warnings()
    instances, age_s = discovery.instances, discovery.age_s
    reached: Sequence[float | None] | None = None
    if probing:
        reached = probe(instances, timeout_s=app.options.get("connect_timeout", 5.0))
    if app.output == "json":
        app.printer.record(
            {
                "endpoint": discovery.lookup.endpoint,
                "service": discovery.lookup.service,
                "age_s": round(age_s, 3),
                "instances": _records(instances, shares(instances), reached),
            }
        )
    else:
        _print_table(app, instances, shares(instances), reached)
        app.printer.info(f"{len(instances)} of {discovery.lookup.service}, listed {age_s:.1f} s ago")
    if reached is not None and not any(seconds is not None for seconds in reached):
        raise Unreachable(
            f"none of {len(instances)} instances can be reached", hint="is this host in their VPC?"
        )


def _records(
    instances: Sequence[Instance], parts: Sequence[float], reached: Sequence[float | None] | None
) -> list[dict[str, object]]:
    """Return the records of the instances; without --probe, `reachable` is null."""
    found = reached or [None] * len(instances)
    return [
        {
            "address": instance.address,
            "weight": instance.weight,
            "share": round(part, 6),
            "reachable": None if reached is None else seconds is not None,
            "connect_ms": None if seconds is None else round(seconds * 1000, 3),
        }
        for instance, part, seconds in zip(instances, parts, found, strict=True)
    ]


def _print_table(
    app: App,
    instances: Sequence[Instance],
    parts: Sequence[float],
    reached: Sequence[float | None] | None,
) -> None:
    rows = [
        (instance.address, str(instance.weight), f"{part:.1%}")
        for instance, part in zip(instances, parts, strict=True)
    ]
    if reached is None:
        app.printer.table(("address", "weight", "share"), rows)
        return
    probed = ["no" if seconds is None else f"yes, {seconds * 1000:.1f} ms" for seconds in reached]
    app.printer.table(
        ("address", "weight", "share", "reachable"),
        [(*row, answer) for row, answer in zip(rows, probed, strict=True)],
    )
