"""easq search: the position of an item in a group, and items that do not exist."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Easq
from tests.conftest import Serve
from tests.support.waiting import eventually


@pytest.fixture
def url(serve: Serve) -> str:
    """The address of an empty queue named `qservice`."""
    return serve(storage="memory:").url()


@pytest.fixture
def three(queue: Easq) -> Easq:
    """A queue of three items; the request of item N is `r-N`."""
    for number in "123":
        assert queue("put", "-q", "-d", number, "--tags", f"requestId=r-{number}").status == 0
    return queue


def text(index: int, consumer: str, pending: str, ahead: int) -> str:
    return f"index : {index}\nConsumerId : {consumer}\nIsPending : {pending}\nWaitCount : {ahead}\n"


@pytest.mark.parametrize("item", ["3", "r-3"])
def test_a_waiting_item_has_others_before_it(three: Easq, item: str) -> None:
    done = three("search", item)
    assert (done.status, done.text, done.err) == (0, text(3, "qservice.", "false", 2), "")
    assert three("info", "--field", "stream.length").text == "3\n"


def test_a_more_urgent_item_is_before_it(three: Easq) -> None:
    three("put", "-q", "-d", "now", "--priority", "1")
    assert three("search", "4").text == text(4, "qservice.", "false", 0)
    assert three("search", "1").text == text(1, "qservice.", "false", 1)


def test_the_engines_group_is_asked_unless_the_option_names_another(three: Easq) -> None:
    """An item at the engine is pending in the engine's group, even if another group is configured."""
    three("config", "set", "group", "mine")
    engine = ("--group", "qservice", "--user", "pod-1", "--window", "1")
    with three.start("watch", *engine, "--commit", "none", "-q") as watching:
        eventually(lambda: "IsPending : true" in three("search", "1").text)
        assert three("search", "r-1").text == text(1, "qservice.pod-1", "true", 0)
        assert three("search", "3", env={"EASQ_GROUP": "other"}).text == text(3, "qservice.", "false", 1)
        assert three("search", "1", "--group", "other").text == text(1, "other.", "false", 0)
        watching.terminate()
        assert watching.wait() == 143
        watching.communicate()


def test_json_is_one_object_with_the_index_as_text(three: Easq) -> None:
    done = three("search", "r-2", "-o", "json")
    assert done.text == '{"index":"2","ConsumerId":"qservice.","IsPending":false,"WaitCount":1}\n'
    assert three("search", "2", "-o", "table").text == (
        "key\tvalue\nindex\t2\nConsumerId\tqservice.\nIsPending\tfalse\nWaitCount\t1\n"
    )


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("4", "no item has the index 4"),
        ("18446744073709551615", "no item has the index 18446744073709551615"),
        ("r-4", "no item has the request id 'r-4'"),
        ("r", "no item has the request id 'r'"),
    ],
)
def test_what_is_not_there_is_not_found(three: Easq, item: str, message: str) -> None:
    hint = "easq get -l 10 shows the first items, with -k those of the sink"
    done = three("search", item)
    assert (done.status, done.out, done.err) == (8, b"", f"easq: {message}\nhint: {hint}\n")
    done = three("search", item, "-o", "json")
    assert (done.status, done.out) == (8, b"")
    assert json.loads(done.err)["error"]["message"] == message


def test_the_sink_is_searched_with_k(three: Easq) -> None:
    assert three("search", "r-1", "-k").status == 8
    three("put", "-q", "-k", "-d", "result", "--tags", "requestId=r-1")
    assert three("search", "r-1", "-k").text == text(1, "qservice.", "false", 0)


@pytest.mark.parametrize("item", ["0", "18446744073709551616", ""])
def test_what_is_neither_index_nor_request_id_is_refused(queue: Easq, item: str) -> None:
    done = queue("search", item)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(
        f"easq: {item!r} is not an index" if item else "easq: the argument INDEX|REQUEST_ID is "
    )
