"""The answer of service discovery: which instances a service has.

    {"correlative": ["svc"],
     "endpoints": {"items": [{"app": "svc", "ip": "172.16.0.1", "port": 50000, "weight": 100}, ...]}}

Source: Alibaba's page on direct connect over a VPC. Requests with a token go where this answer says, so nothing
but plain addresses is taken from it; what is not one is left out, and said.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from easq.model import Instance

#: of an entry without one, which is what the service gives to all of equal size
DEFAULT_WEIGHT = 100
#: above it is no weight but a mistake: the sums of weights stay small
MAX_WEIGHT = 1_000_000
#: more instances than any service has; what comes after them in an answer is left out
MAX_INSTANCES = 10_000

#: where a cloud's machines find their own credentials, beside the link-local 169.254.169.254
_METADATA = ipaddress.ip_address("100.100.100.200")
#: "this network" and the broadcast address: no machine has such an address
_NOWHERE = (ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("255.255.255.255/32"))


class Malformed(ValueError):
    """An answer that says nothing about instances."""


@dataclass(frozen=True, slots=True)
class Upstreams:
    """The instances of one answer, each address once; and why what else stood there was left out."""

    instances: tuple[Instance, ...]
    skipped: int = 0
    reason: str = ""  #: of the first that was skipped


def read_upstreams(body: bytes, *, loopback: bool) -> Upstreams:
    """What an answer says. `loopback`: instances may be on this machine, since discovery is.

    Raises Malformed for what is no list of instances. An empty list is one.
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
    """An answer that says `instances`."""
    app = service.replace("_", "-")
    items = [{"app": app, "ip": one.ip, "port": one.port, "weight": one.weight} for one in instances]
    return json.dumps({"correlative": [service], "endpoints": {"items": items}}).encode()


def read_entries(items: Sequence[Any], read: Callable[[Any], Instance]) -> Upstreams:
    """The instances that `read` makes of `items`; what it raises ValueError for is left out."""
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
    """The instance in an object with ip, port and perhaps weight. Raises ValueError with what is wrong."""
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
    """The address in its one spelling. Names are not taken: whoever answers for one could lead anywhere."""
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
    elif address.is_unspecified or address.is_multicast or address.is_link_local or _is_forbidden(address):
        raise ValueError(f"ip {_shown(text)} is not the address of an instance")
    return str(address)


def _is_forbidden(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address == _METADATA or any(
        address.version == network.version and address in network for network in _NOWHERE
    )


def _shown(value: Any) -> str:
    """The beginning of `value`, in ASCII; of what may be endless, the kind."""
    if isinstance(value, list | dict):
        return "[...]" if isinstance(value, list) else "{...}"
    if type(value) is int and value.bit_length() > 128:
        return "of many digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
