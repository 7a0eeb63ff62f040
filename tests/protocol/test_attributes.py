"""The lines about consumers and groups in the attributes of a queue."""

import pytest

from easq.protocol.attributes import ConsumerLine, GroupLine

CONSUMERS = {
    "Id: imageasync.imageasync-35d72370-5f576f7c8d-2mdb4, Index: 0, Pending: 0, Status: Running, "
    "Idle: 19.997s, Window: 5, Slots: 5, AutoCommit: false": ConsumerLine(
        "imageasync.imageasync-35d72370-5f576f7c8d-2mdb4", 0, 0, "Running", 19.997, 5, 5, False
    ),
    "Id: default_group.u1, Index: 0, Pending: 0, Status: Complete, Idle: 2.091s, Window: 0, Slots: 0, "
    "AutoCommit: true": ConsumerLine("default_group.u1", 0, 0, "Complete", 2.091, 0, 0, True),
    "Id: g.u, Index: 6944957106013339648, Pending: 2, Status: Leaving, Idle: 1m2.5s, Window: 5, Slots: 3, "
    "AutoCommit: false, Tags: tags[a=b, c foo=bar]": ConsumerLine(
        "g.u", 6944957106013339648, 2, "Leaving", 62.5, 5, 3, False, {"foo": "bar", "a": "b, c"}
    ),
}


@pytest.mark.parametrize(("text", "line"), CONSUMERS.items())
def test_a_consumer_line_is_this_text_and_back(text: str, line: ConsumerLine) -> None:
    assert line.text() == text
    assert ConsumerLine.parse(text) == line


def test_a_group_line_is_this_text_and_back() -> None:
    text = "Id: imageasync, Index: 0, Pending: 0, Delivered: 1, Consumers: 1"
    line = GroupLine("imageasync", 0, 0, 1, 1)
    assert line.text() == text
    assert GroupLine.parse(text) == line


@pytest.mark.parametrize(
    "text", ["", "Id: a", "hello", "Id: a, Index: x, Pending: 0, Delivered: 1, Consumers: 1"]
)
def test_another_line_is_a_value_error(text: str) -> None:
    for parse in (ConsumerLine.parse, GroupLine.parse):
        with pytest.raises(ValueError):
            parse(text)
