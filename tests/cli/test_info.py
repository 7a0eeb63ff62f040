"""easq info: the attributes in every form."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Easq
from tests.conftest import Serve


@pytest.fixture
def url(serve: Serve) -> str:
    """The address of an empty queue named `qservice`."""
    return serve(storage="memory:").url()


def test_fields_are_values_alone_in_the_order_asked_for(queue: Easq) -> None:
    queue("put", "-d", "x")
    done = queue("info", "--field", "stream.length", "--field", "meta.state")
    assert (done.status, done.text, done.err) == (0, "1\nNormal\n", "")


def test_a_field_that_is_not_there(queue: Easq) -> None:
    done = queue("info", "--field", "meta.nme")
    assert (done.status, done.out) == (3, b"")
    assert done.err == "easq: the queue has no attribute 'meta.nme'\nhint: easq info lists them\n"


def test_json_is_one_object_of_texts(queue: Easq) -> None:
    done = queue("info", "-o", "json")
    attributes = json.loads(done.out)
    assert done.out.count(b"\n") == 1
    assert list(attributes) == sorted(attributes)
    assert attributes["stream.length"] == "0"
    assert all(isinstance(value, str) for value in attributes.values())


def test_a_table_is_tab_separated_in_a_pipe(queue: Easq) -> None:
    lines = queue("info", "-o", "table").text.splitlines()
    assert lines[0] == "key\tvalue"
    assert "stream.length\t0" in lines


def test_nothing_but_the_status(queue: Easq) -> None:
    done = queue("info", "-o", "none")
    assert (done.status, done.out, done.err) == (0, b"", "")


def test_verbose_tells_the_exchange_on_stderr(queue: Easq) -> None:
    done = queue("info", "--field", "stream.length", "-v")
    assert done.text == "0\n"
    lines = done.err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("> GET http://127.0.0.1:")
    assert lines[0].endswith("/api/predict/qservice?_attrs_=true")
    assert lines[1].startswith("< 200, ")
    assert any(line.startswith("> X-") for line in queue("info", "-vv").err.splitlines())
