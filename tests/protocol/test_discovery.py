"""The answer of discovery: the entries that are accepted, and those that are skipped."""

from __future__ import annotations

import json
from typing import Any

import pytest

from easq.model import Instance
from easq.protocol.discovery import MAX_INSTANCES, Malformed, read_upstreams, write_upstreams

GOOD = {"ip": "172.16.0.1", "port": 50000, "weight": 100}
#: the answer on Alibaba's page, with addresses in the place of its XX
DOCUMENTED = b"""{
  "correlative": ["mnist_saved_model_example"],
  "endpoints": {
    "items": [
      {"app": "mnist-saved-model-example", "ip": "172.16.0.1", "port": 50000, "weight": 100},
      {"app": "mnist-saved-model-example", "ip": "172.16.0.2", "port": 50000, "weight": 100}
    ]
  }
}"""


def answer(*items: Any) -> bytes:
    return json.dumps({"endpoints": {"items": items}}).encode()


def test_the_documented_answer_both_ways() -> None:
    instances = (Instance("172.16.0.1", 50000, 100), Instance("172.16.0.2", 50000, 100))
    assert read_upstreams(DOCUMENTED, loopback=False).instances == instances
    assert json.loads(write_upstreams("mnist_saved_model_example", instances)) == json.loads(DOCUMENTED)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b"<html>busy</html>",
        b'{"endpoints":null}',
        b'{"endpoints":{}}',
        b'{"endpoints":{"items":null}}',
        b'{"endpoints":{"items":{}}}',
        b'{"endpoints":[]}',
        b'{"endpoints":{"items":[{"ip":"1.2.3',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\xff\xfe\x00",
        b"9" * 10_000,
    ],
)
def test_what_is_no_list_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_upstreams(body, loopback=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": -1}, "weight -1 is not 0-1000000"),
        ({"weight": 10**18}, "weight 1000000000000000000 is not 0-1000000"),
        ({"weight": 1e18}, "weight 1e+18 is not 0-1000000"),
        ({"weight": "100"}, "weight '100' is not 0-1000000"),
        ({"weight": 1.5}, "weight 1.5 is not 0-1000000"),
        ({"weight": True}, "weight True is not 0-1000000"),
        ({"weight": 10**60}, "weight of many digits is not 0-1000000"),
        ({"port": 0}, "port 0 is not 1-65535"),
        ({"port": 70000}, "port 70000 is not 1-65535"),
        ({"port": "80"}, "port '80' is not 1-65535"),
        ({"port": None}, "port None is not 1-65535"),
        ({"port": [[]]}, "port [...] is not 1-65535"),
        ({"ip": "evil:80@x"}, "ip 'evil:80@x' is no address"),
        ({"ip": "a/b?c"}, "ip 'a/b?c' is no address"),
        ({"ip": "localhost"}, "ip 'localhost' is no address"),
        ({"ip": "010.0.0.1"}, "ip '010.0.0.1' is no address"),
        ({"ip": "10.0.0.1\r\nX: y"}, "ip '10.0.0.1\\r\\nX: y' is no address"),
        ({"ip": "\x1b]0;x\x07"}, "ip '\\x1b]0;x\\x07' is no address"),
        ({"ip": "x" * 200}, "ip '" + "x" * 39 + "... is no address"),
        ({"ip": 167772161}, "ip 167772161 is no address"),
        ({"ip": None}, "ip None is no address"),
        ({"ip": "169.254.169.254"}, "ip '169.254.169.254' is not the address of an instance"),
        ({"ip": "100.100.100.200"}, "ip '100.100.100.200' is not the address of an instance"),
        ({"ip": "0.0.0.0"}, "ip '0.0.0.0' is not the address of an instance"),
        ({"ip": "0.1.2.3"}, "ip '0.1.2.3' is not the address of an instance"),
        ({"ip": "255.255.255.255"}, "ip '255.255.255.255' is not the address of an instance"),
        ({"ip": "224.0.0.1"}, "ip '224.0.0.1' is not the address of an instance"),
        ({"ip": "::"}, "ip '::' is not the address of an instance"),
        ({"ip": "ff02::1"}, "ip 'ff02::1' is not the address of an instance"),
        ({"ip": "fe80::1"}, "ip 'fe80::1' is not the address of an instance"),
        ({"ip": "2001:db8::1%eth0"}, "ip '2001:db8::1%eth0' has a zone"),
        ({"ip": "::ffff:169.254.169.254"}, "ip '::ffff:169.254.169.254' is not the address of an instance"),
        ({"ip": "127.0.0.1"}, "ip '127.0.0.1' is this machine, which discovery is not"),
        ({"ip": "::1"}, "ip '::1' is this machine, which discovery is not"),
        ({"ip": "::ffff:127.0.0.1"}, "ip '::ffff:127.0.0.1' is this machine, which discovery is not"),
    ],
)
def test_an_invalid_entry_is_skipped_and_counted(change: dict[str, Any], reason: str) -> None:
    found = read_upstreams(answer({**GOOD, "ip": "10.0.0.9", **change}, GOOD), loopback=False)
    assert found.instances == (Instance("172.16.0.1", 50000, 100),)
    assert (found.skipped, found.reason) == (1, reason)


@pytest.mark.parametrize("item", [None, 7, "172.16.0.1:50000", [], {}])
def test_an_entry_of_another_kind_is_left_out(item: object) -> None:
    found = read_upstreams(answer(item, item, GOOD), loopback=False)
    assert (len(found.instances), found.skipped) == (1, 2)


def test_loopback_is_accepted_from_a_discovery_on_loopback() -> None:
    found = read_upstreams(
        answer({**GOOD, "ip": "127.0.0.1"}, {**GOOD, "ip": "::1"}, {**GOOD, "ip": "169.254.0.1"}),
        loopback=True,
    )
    assert [instance.address for instance in found.instances] == ["127.0.0.1:50000", "[::1]:50000"]


def test_one_address_in_several_spellings_is_one_instance_of_its_highest_weight() -> None:
    found = read_upstreams(
        answer(GOOD, {**GOOD, "weight": 7}, {**GOOD, "ip": "::ffff:172.16.0.1", "weight": 120}),
        loopback=False,
    )
    assert found == read_upstreams(answer({**GOOD, "weight": 120}), loopback=False)


def test_an_entry_without_a_weight_has_the_usual_one_and_0_is_kept() -> None:
    found = read_upstreams(
        answer({"ip": "10.0.0.1", "port": 1}, {"ip": "10.0.0.2", "port": 1, "weight": 0}), loopback=False
    )
    assert [instance.weight for instance in found.instances] == [100, 0]


def test_an_empty_list_is_a_list() -> None:
    assert read_upstreams(answer(), loopback=False).instances == ()


def test_a_hundred_thousand_entries_are_bounded() -> None:
    items = [{"ip": f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", "port": 1} for n in range(100_000)]
    found = read_upstreams(answer(*items), loopback=False)
    assert len(found.instances) == MAX_INSTANCES
    assert (found.skipped, found.reason) == (90_000, "there are more than 10000")
