"""easq endpoints: the instances behind direct connect."""

from __future__ import annotations

import json
import re

from tests.cli.conftest import Easq, finish
from tests.cli.direct import Service, service
from tests.client.servers import Server, free_port, listing, reply

__all__ = ["service"]  # the fixture


def test_the_instances_are_listed_with_their_shares(easq: Easq, service: Service) -> None:
    service.listed.now = listing(*service.instances, weights=[300, 100])
    done = easq("endpoints")
    first, second = (f"127.0.0.1:{instance.port}" for instance in service.instances)
    assert (done.status, done.text) == (
        0,
        f"address\tweight\tshare\n{first}\t300\t75.0%\n{second}\t100\t25.0%\n",
    )
    assert re.fullmatch(r"\[INFO\] 2 of svc, listed [0-9]+\.[0-9] s ago\n", done.err)
    assert service.requests == []


def test_the_list_in_json(easq: Easq, service: Service) -> None:
    service.listed.now = listing(*service.instances, weights=[1, 0])
    record = json.loads(easq("endpoints", "svc", "-o", "json").out)
    assert 0 <= record.pop("age_s") < 60
    assert record == {
        "endpoint": service.endpoint,
        "service": "svc",
        "instances": [
            {
                "address": f"127.0.0.1:{instance.port}",
                "weight": weight,
                "share": share,
                "reachable": None,
                "connect_ms": None,
            }
            for instance, weight, share in zip(service.instances, [1, 0], [1.0, 0.0], strict=True)
        ],
    }


def test_a_probe_says_which_can_be_reached_and_sends_nothing(easq: Easq, service: Service) -> None:
    gone = Server(lambda _server, _peer: None, port=free_port())
    service.listed.now = listing(service.instances[0], gone)
    done = easq("endpoints", "--probe", "--connect-timeout", "2s")
    assert done.status == 0
    answers = [line.split("\t")[3] for line in done.text.splitlines()]
    assert answers[0] == "reachable"
    assert re.fullmatch(r"yes, [0-9]+\.[0-9] ms", answers[1])
    assert answers[2] == "no"
    assert service.requests == []
    service.listed.now = listing(gone)
    done = easq("endpoints", "--probe", "--refresh", "1ms", "-o", "json")
    assert done.status == 6
    assert [one["reachable"] for one in json.loads(done.out)["instances"]] == [False]


def test_endpoints_and_predict_share_one_list(easq: Easq, service: Service) -> None:
    easq("endpoints", "--refresh", "1h")
    assert easq("predict", "-d", "ab", "--refresh", "1h").out == b"ba"
    easq("endpoints", "--refresh", "1h")
    assert len(service.discovery.requests) == 1


def test_an_unknown_service_is_not_found_and_two_names_are_one_too_many(easq: Easq, service: Service) -> None:
    service.listed.now = reply(404)
    done = easq("endpoints", "other")
    assert (done.status, done.out) == (8, b"")
    assert done.err.endswith("hint: check the name of the service\n")
    assert easq("endpoints", "other", "--service", "svc").status == 2


def test_what_discovery_says_cannot_drive_the_terminal(easq: Easq, service: Service) -> None:
    body = b'{"endpoints":{"items":[{"ip":"\\u001b]0;x\\u0007","port":1}]}}'
    service.listed.now = reply(200, body)
    status, text = finish(easq.terminal("endpoints"))
    assert status == 6
    assert all(c == "\n" or c.isprintable() for c in text)
