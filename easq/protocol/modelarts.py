"""ModelArts' management API: the addresses of a service's instances, and its errors.

    GET {endpoint}/v1/{project}/services/{service}/predict/endpoints?type=host_endpoints
    {"service_id": "...", "host_endpoints": [{"schema": "http", "ip": "192.168.205.58", "port": 31997}, ...]}

Source: Huawei's page on VPC high-speed access. It shows the answer only as a picture, with the names schema, ip and
port. So every object with an ip and a port counts as an instance, at any depth. The rules of `easq.protocol.discovery`
apply to each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from easq.model import Instance
from easq.protocol.bounds import load_json
from easq.protocol.discovery import Malformed, Upstreams, read_entries, read_entry

#: schemes of an instance's address
SCHEMES = ("http", "https")


def read_host_endpoints(body: bytes, *, loopback: bool) -> Upstreams:
    """Return the instances of an answer, all of equal weight. Raises Malformed unless it is a JSON object or list.

    Args:
        loopback: accept instances on this machine.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Malformed("it is not JSON") from error
    if not isinstance(document, dict | list):
        raise Malformed("it is neither an object nor a list")
    return read_entries(list(_addresses(document)), lambda item: _read(item, loopback=loopback))


def write_host_endpoints(service: str, instances: Sequence[Instance]) -> bytes:
    """Return the answer for `instances`."""
    found = [{"schema": one.scheme, "ip": one.ip, "port": one.port} for one in instances]
    return json.dumps({"service_id": service, "host_endpoints": found}).encode()


def error_text(body: bytes) -> str:
    """Return message and code of an error of the management API or the API gateway; empty for any other body."""
    try:
        found = load_json(body)
    except ValueError:
        return ""
    if not isinstance(found, dict) or not isinstance(found.get("error_msg"), str):
        return ""
    code = found.get("error_code")
    return f"{found['error_msg']} ({code})" if isinstance(code, str) and code else str(found["error_msg"])


def _addresses(document: Any) -> Iterator[dict[str, Any]]:
    """Return the objects with an ip and a port, in their order."""
    left = [document]
    while left:
        value = left.pop()
        if isinstance(value, dict) and "ip" in value and "port" in value:
            yield value
        elif isinstance(value, dict):
            left.extend(reversed(value.values()))
        elif isinstance(value, list):
            left.extend(reversed(value))


def _read(item: dict[str, Any], *, loopback: bool) -> Instance:
    port, scheme = item["port"], item.get("schema", item.get("scheme")) or SCHEMES[0]
    if isinstance(port, str) and port.isascii() and port.isdigit() and len(port) <= 5:
        port = int(port)
    if not isinstance(scheme, str) or scheme.lower() not in SCHEMES:
        raise ValueError(f"schema {ascii(scheme)[:40]} is neither http nor https")
    return replace(read_entry({"ip": item["ip"], "port": port}, loopback=loopback), scheme=scheme.lower())
