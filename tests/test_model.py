"""The values: frames, consumers, instances, tags."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from easq.model import Ack, Consumer, Frame, Instance, tag_problem


def test_a_frame_knows_its_request_id() -> None:
    assert Frame(1, {"requestId": "r"}, b"x").request_id == "r"
    assert Frame(1).request_id == ""


def test_values_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Ack(1, "r").index = 2  # type: ignore[misc]


def test_a_consumer_is_listed_by_group_and_user() -> None:
    assert Consumer().id == "default_group.default_user"
    assert Consumer("g", "u").id == "g.u"


@pytest.mark.parametrize(
    ("instance", "url"),
    [
        (Instance("10.0.0.1", 80, 100), "http://10.0.0.1:80"),
        (Instance("fd00::1", 8443, 0, "https"), "https://[fd00::1]:8443"),
    ],
)
def test_an_instance_has_a_url(instance: Instance, url: str) -> None:
    assert instance.url == url


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("a", "b", ""),
        ("a", "", ""),
        ("a", None, "has no '='"),
        ("", "b", "nothing stands before"),
        ("_index_", "1", "the wire's own"),
        ("a", "b\nc", "line break"),
        ("a\0", "b", "NUL"),
        ("a", "\ud800", "UTF-8"),
    ],
)
def test_what_is_wrong_with_a_tag(name: str, value: str | None, problem: str) -> None:
    found = tag_problem(name, value)
    assert problem in found
    assert bool(problem) == bool(found)
