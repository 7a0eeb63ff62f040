"""easq predict and easq endpoints against a served model whose instances fail."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import DEADLINE_S, Easq
from tests.conftest import OpenCloud
from tests.support.platform import CloudProcess
from tests.support.waiting import eventually


@pytest.fixture
def apart() -> Iterator[CloudProcess]:
    """Three instances in a process of their own."""
    process = CloudProcess(weights=[1, 1, 1])
    yield process
    process.stop()


@pytest.mark.parametrize("route", ["direct", "gateway"])
@pytest.mark.parametrize("fault", ["killed", "busy", "half"])
def test_a_run_of_many_requests_outlives_an_instance(
    easq: Easq, apart: CloudProcess, route: str, fault: str
) -> None:
    """One of three fails in the middle: every line has its answer, in order, and the exit code is 0."""
    lines = [f"request {n}" for n in range(200)]
    (easq.home / "requests.txt").write_text("\n".join(lines) + "\n")
    where = {
        "direct": ("--endpoint", apart.origin, "--service", "model"),
        "gateway": ("--url", apart.url),
    }[route]
    running = easq.start("predict", "--via", route, *where, "-f", "requests.txt", "-c", "4", "-q")
    eventually(lambda: sum(apart.do("counts")) > 40)
    apart.do("fail", 1, fault)
    out, err = running.communicate(timeout=DEADLINE_S)
    assert (running.returncode, err) == (0, b"")
    assert out.decode().splitlines() == lines
    assert apart.do("asked", "discovery") <= (2 if route == "direct" else 0)


@pytest.mark.parametrize(("fault", "code"), [("killed", 6), ("busy", 5), ("half", 6), ("hung", 9)])
def test_with_all_instances_down_it_ends_by_itself(
    easq: Easq, cloud: OpenCloud, fault: str, code: int
) -> None:
    """6 when none can be reached, within --timeout; 5 when all refuse, 9 when none answers; and then it works."""
    made = cloud(weights=(1, 1, 1))
    call = ("predict", "--via", "direct", "--endpoint", made.origin, "--service", "model", "-d", "x")
    assert easq(*call).out == b"x"
    for number in range(3):
        made.fail(number, fault)
    done = easq(*call, "--timeout", "1s")
    assert (done.status, done.out) == (code, b"")
    assert "3 instances" in done.err
    for number in range(3):
        made.back(number)
    assert easq(*call).out == b"x"


def test_the_list_of_instances_is_what_discovery_says(easq: Easq, cloud: OpenCloud) -> None:
    """A drained one is not in it; a dead one is, and --probe finds it."""
    made = cloud(weights=(100, 0, 50))
    made.kill(2)
    done = easq("endpoints", "--endpoint", made.origin, "model", "--probe", "-o", "json")
    found = json.loads(done.out)["instances"]
    assert [(one["address"], one["weight"], one["reachable"]) for one in found] == [
        (made.addresses[0], 100, True),
        (made.addresses[2], 50, False),
    ]


def test_a_signature_is_sent_in_place_of_the_token(easq: Easq, cloud: OpenCloud) -> None:
    """To instances by default, and the served ones know it; without the token they refuse."""
    made = cloud(token="dG9rZW4=")
    call = ("predict", "--via", "direct", "--endpoint", made.origin, "--service", "model", "-d", "x")
    for sign in ("auto", "hmac", "token"):
        done = easq(*call, "--sign", sign, "--path", "/v1/grüße", env={"EASQ_TOKEN": "dG9rZW4="})
        assert (done.status, done.out) == (0, b"x"), done.err
    assert easq(*call).status == 7
    assert easq(*call, env={"EASQ_TOKEN": "wrong"}).status == 7
    gateway = ("predict", "--via", "gateway", "--url", made.url, "-d", "x")
    for sign in ("auto", "hmac", "token"):
        assert easq(*gateway, "--sign", sign, env={"EASQ_TOKEN": "dG9rZW4="}).out == b"x"
    assert easq(*gateway).status == 7
