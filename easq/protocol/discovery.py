"""The answer of service discovery: the instances of a service.

    {"correlative": ["svc"],
     "endpoints": {"items": [{"app": "svc", "ip": "172.16.0.1", "port": 50000, "weight": 100}, ...]}}

Source: Alibaba's page on direct connect over a VPC. The client sends its token to these addresses. So it accepts only
plain IP addresses; it skips and counts other entries.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from easq.model import Instance

#: weight of an entry without one; EAS gives it to all instances of equal size
DEFAULT_WEIGHT = 100
#: largest weight, so that sums of weights stay small
MAX_WEIGHT = 1_000_000
#: most instances of one answer, more than any service has; further ones are skipped
MAX_INSTANCES = 10_000

#: Alibaba's metadata service, which returns credentials of a machine. The usual one, 169.254.169.254, is link-local
_METADATA = ipaddress.ip_address("100.100.100.200")
#: "this network" and the broadcast address: no machine has such an address
_NOWHERE = (ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("255.255.255.255/32"))


class Malformed(ValueError):
    """An answer that is no list of instances."""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The instances of one answer, each address once, and how many entries were skipped."""

    instances: tuple[Instance, ...]
    skipped: int = 0
    reason: str = ""  #: why the first skipped entry was skipped


def read_upstreams(body: bytes, *, loopback: bool) -> Upstreams:
    """Return the instances of an answer, which may be none. Raises Malformed unless it is a list of instances.

    Args:
        loopback: accept instances on this machine; for a discovery service on this machine.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed("it is not JSON") from error
    endpoints = document.get("endpoints") if isinstance(document, dict) else None
    items = endpoints.get("items") if isinstance(endpoints, dict) else None
    if not isinstance(items, list):
        raise Malformed("it has no list endpoints.items")
    return read_entries(items, lambda item: read_entry(item, loopback=loopback))


def write_upstreams(service: str, instances: Sequence[Instance]) -> bytes:
    """Return the answer for `instances`."""
    app = service.replace("_", "-")
    items = [{"app": app, "ip": one.ip, "port": one.port, "weight": one.weight} for one in instances]
    return json.dumps({"correlative": [service], "endpoints": {"items": items}}).encode()


def read_entries(items: Sequence[Any], read: Callable[[Any], Instance]) -> Upstreams:
    """Return the instances that `read` returns for `items`. Skip the items for which it raises ValueError."""
    found: dict[str, Instance] = {}
    skipped, reason = 0, ""
    for item in items:
        try:
            instance = read(item)
            same = found.get(instance.address)
            if same is None and len(found) >= MAX_INSTANCES:
                raise ValueError(f"there are more than {MAX_INSTANCES}")
        except ValueError as error:
            skipped, reason = skipped + 1, reason or str(error)
            continue
        if same is None or same.weight < instance.weight:
            found[instance.address] = instance
    return Upstreams(tuple(found.values()), skipped, reason)


def read_entry(item: Any, *, loopback: bool) -> Instance:
    """Return the instance in an object with ip, port and perhaps weight. Raises ValueError for any other."""
    if not isinstance(item, dict):
        raise ValueError(f"{_shown(item)} is no entry")
    ip = _read_ip(item.get("ip"), loopback=loopback)
    port, weight = item.get("port"), item.get("weight")
    if type(port) is not int or not 1 <= port <= 65535:
        raise ValueError(f"port {_shown(port)} is not 1-65535")
    if weight is None:
        weight = DEFAULT_WEIGHT
    if type(weight) is not int or not 0 <= weight <= MAX_WEIGHT:
        raise ValueError(f"weight {_shown(weight)} is not 0-{MAX_WEIGHT}")
    return Instance(ip, port, weight)


def _read_ip(text: Any, *, loopback: bool) -> str:
    """Return the address in canonical form. Raises ValueError for a host name, which could resolve to any address."""
    try:
        address = ipaddress.ip_address(text if isinstance(text, str) else "")
    except ValueError as error:
        raise ValueError(f"ip {_shown(text)} is no address") from error
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"ip {_shown(text)} has a zone")
        address = address.ipv4_mapped or address
    if address.is_loopback:
        if not loopback:
            raise ValueError(f"ip {_shown(text)} is this machine, which discovery is not")
    elif (
        address.is_unspecified or address.is_multicast or address.is_link_local or address == _METADATA
        or any(address.version == one.version and address in one for one in _NOWHERE)
    ):  # fmt: skip
        raise ValueError(f"ip {_shown(text)} is not the address of an instance")
    return str(address)


def _shown(value: Any) -> str:
    """Return the beginning of `value` in ASCII, for an error message; for a container only its kind."""
    if isinstance(value, list | dict):
        return "[...]" if isinstance(value, list) else "{...}"
    if type(value) is int and value.bit_length() > 128:
        return "of many digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
