"""The answer of ModelArts' management, known only from a picture: any shape with ip and port is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easq.model import Instance
from easq.protocol.discovery import Malformed
from easq.protocol.modelarts import error_text, read_host_endpoints, write_host_endpoints

ONE, TWO = {"ip": "192.168.205.58", "port": 31997}, {"ip": "192.168.205.59", "port": 31998}
FOUND = (Instance("192.168.205.58", 31997, 100), Instance("192.168.205.59", 31998, 100))


@pytest.mark.parametrize(
    "document",
    [
        [ONE, TWO],
        {"endpoints": [ONE, TWO]},
        {"service_id": "s", "host_endpoints": [{"schema": "http", **ONE}, {"scheme": "HTTP", **TWO}]},
        {"service_id": "s", "predict": {"a": {"b": [ONE]}, "c": TWO}},
        {"node_a": {**ONE, "weight": 7}, "node_b": {**TWO, "port": "31998"}},
        {"list": [[[ONE], {"more": [TWO, ONE]}]], "count": 2, "next": None},
    ],
)
def test_instances_are_found_wherever_they_stand(document: Any) -> None:
    assert read_host_endpoints(json.dumps(document).encode(), loopback=False).instances == FOUND


def test_what_was_written_is_read_with_its_scheme() -> None:
    instances = (Instance("10.0.0.1", 80, 100), Instance("2001:db8::1", 443, 100, "https"))
    body = write_host_endpoints("s", instances)
    assert json.loads(body) == {
        "service_id": "s",
        "host_endpoints": [
            {"schema": "http", "ip": "10.0.0.1", "port": 80},
            {"schema": "https", "ip": "2001:db8::1", "port": 443},
        ],
    }
    assert read_host_endpoints(body, loopback=False).instances == instances
    assert instances[1].url == "https://[2001:db8::1]:443"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"ip": "169.254.169.254", "port": 80}, "is not the address of an instance"),
        ({"ip": "100.100.100.200", "port": 80}, "is not the address of an instance"),
        ({"ip": "0.0.0.0", "port": 80}, "is not the address of an instance"),
        ({"ip": "224.0.0.1", "port": 80}, "is not the address of an instance"),
        ({"ip": "127.0.0.1", "port": 80}, "is this machine"),
        ({"ip": "evil:80@x", "port": 80}, "is no address"),
        ({"ip": "a/b?c", "port": 80}, "is no address"),
        ({"ip": ["10.0.0.1"], "port": 80}, "is no address"),
        ({"ip": "10.0.0.1", "port": 0}, "port 0 is not 1-65535"),
        ({"ip": "10.0.0.1", "port": "70000"}, "port 70000 is not 1-65535"),
        ({"ip": "10.0.0.1", "port": "80/x"}, "port '80/x' is not 1-65535"),
        ({"ip": "10.0.0.1", "port": "\u0663"}, "is not 1-65535"),
        ({"ip": "10.0.0.1", "port": True}, "is not 1-65535"),
        ({"ip": "10.0.0.1", "port": 80, "schema": "ftp"}, "schema 'ftp' is neither http nor https"),
        ({"ip": "10.0.0.1", "port": 80, "schema": ["http"]}, "is neither http nor https"),
        ({"ip": "10.0.0.1", "port": 80, "schema": "http://evil/?"}, "is neither http nor https"),
    ],
)
def test_an_invalid_address_is_skipped_and_counted(entry: dict[str, Any], reason: str) -> None:
    found = read_host_endpoints(json.dumps([entry, ONE]).encode(), loopback=False)
    assert (found.instances, found.skipped) == (FOUND[:1], 1)
    assert reason in found.reason


@pytest.mark.parametrize("body", [b"", b"null", b"7", b'"x"', b"<html>", b"[" * 100_000, b"{", b"\xff\xfe"])
def test_what_is_no_document_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_host_endpoints(body, loopback=True)


def test_a_deep_document_without_instances_has_none() -> None:
    assert read_host_endpoints(b'{"a":' * 500 + b"{}" + b"}" * 500, loopback=True).instances == ()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error_code":"ModelArts.50004000","error_msg":"Bad"}', "Bad (ModelArts.50004000)"),
        (b'{"error_msg":"Incorrect IAM authentication"}', "Incorrect IAM authentication"),
        (b'{"error_code":"x"}', ""),
        (b'{"error_msg":7}', ""),
        (b"[]", ""),
        (b"<html>", ""),
    ],
)
def test_what_an_error_says(body: bytes, text: str) -> None:
    assert error_text(body) == text
