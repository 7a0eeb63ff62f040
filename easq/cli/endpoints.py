"""easq endpoints: the instances behind direct connect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.options import command
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
@click.option("--probe", "probing", is_flag=True, help="Also connect to each; nothing is sent.")
@via_option(
    "direct", "modelarts", text="How it is called; a profile's other ways are direct.  [default: direct]"
)
@service_options
def endpoints(app: App, name: str | None, probing: bool) -> None:
    """List the instances of a service that is called directly.

    Each with its weight and the share of requests that it gets. The list is that of predict: one on disk
    that is younger than --refresh, or else what EAS discovery, or ModelArts' management, says now. With
    --probe, exits 6 where none of them can be reached.
    """
    from easq.errors import Unreachable, UsageError
    from easq.net.balance import shares
    from easq.predict.probe import probe

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
    """The records of the instances; `reachable` is null where nobody tried."""
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
