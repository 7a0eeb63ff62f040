"""easq delete, trunc, commit and negative: questions, removed items, and refusals."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.conftest import Easq, finish
from tests.client.servers import answering, reply


@pytest.fixture
def five(queue: Easq) -> Easq:
    """A queue of five items, 1 to 5."""
    queue("put", "-f", "-", stdin=b"1\n2\n3\n4\n5\n")
    return queue


def left(queue: Easq) -> str:
    return queue("get", "-l", "99", "--allow-empty", "-o", "raw").text.replace("\n", " ").strip()


@pytest.mark.parametrize("args", [["delete", "3"], ["trunc", "4"], ["trunc", "--all"]])
@pytest.mark.parametrize("more", [[], ["--no-input"]])
def test_without_a_terminal_nothing_is_deleted_unless_confirmed(
    five: Easq, args: list[str], more: list[str]
) -> None:
    done = five(*args, *more)
    assert (done.status, done.out) == (2, b"")
    assert done.err == "easq: not confirmed, and no terminal to ask on\nhint: -y confirms\n"
    assert left(five) == "1 2 3 4 5"


@pytest.mark.parametrize(
    ("answer", "status", "after"),
    [
        ("y", 0, "1 2 4 5"),
        ("Y", 0, "1 2 4 5"),
        ("yes", 0, "1 2 4 5"),
        ("n", 2, "1 2 3 4 5"),
        ("NO", 2, "1 2 3 4 5"),
        ("", 2, "1 2 3 4 5"),
    ],
)
def test_the_answer_decides(five: Easq, answer: str, status: int, after: str) -> None:
    terminal = five.terminal("delete", "3")
    terminal.expect_exact("[y/N]")
    terminal.sendline(answer)
    assert finish(terminal)[0] == status
    assert left(five) == after


def test_another_word_is_asked_again_and_end_of_input_does_nothing(five: Easq) -> None:
    terminal = five.terminal("delete", "3")
    terminal.expect_exact("Deleting index(es):\r\n3 [y/N]")
    terminal.sendline("maybe")
    terminal.expect_exact("maybe\r\nDeleting index(es):\r\n3 [y/N]")
    terminal.sendeof()
    assert finish(terminal) == (2, "\neasq: no answer: end of input at the prompt\n")
    assert left(five) == "1 2 3 4 5"


def test_ctrl_c_at_the_prompt_does_nothing(five: Easq) -> None:
    terminal = five.terminal("delete", "3")
    terminal.expect_exact("[y/N]")
    terminal.sendintr()
    assert finish(terminal)[0] == 130
    assert left(five) == "1 2 3 4 5"


def test_the_question_does_not_hide_behind_a_redirected_stderr(five: Easq) -> None:
    """On a terminal with redirected stderr the user would not see the question."""
    import pty

    main, side = pty.openpty()
    with five.start("delete", "3", stdin=side) as process:
        assert process.wait() == 2
    os.close(main)
    os.close(side)
    assert left(five) == "1 2 3 4 5"


def test_many_indexes_are_named_up_to_twenty(queue: Easq) -> None:
    terminal = queue.terminal("delete", *(str(number) for number in range(1, 31)))
    named = "".join(f"{number}\r\n" for number in range(1, 21))
    terminal.expect_exact(f"Deleting index(es):\r\n{named}and 10 more [y/N]")
    terminal.sendline("n")
    assert finish(terminal)[0] == 2


def test_y_deletes_without_asking(five: Easq) -> None:
    done = five("delete", "3", "4", "3", "99", "-y")
    warning = "easq: warning: 2 of 3 deleted; not counted: items that do not exist\n"
    assert (done.status, done.text, done.err) == (0, "[OK] deleted\n", warning)
    assert left(five) == "1 2 5"
    assert five("delete", "1", "-y", "-o", "json").text == '{"deleted":["1"],"counted":1}\n'
    assert five("delete", "2", "-y").err == ""


def test_indexes_come_from_stdin(five: Easq) -> None:
    done = five("delete", "-y", "-", stdin=b"1\n 2 3\n")
    assert (done.status, left(five)) == (0, "4 5")
    assert five("delete", "-y", "-", stdin=b"\n").err == "easq: no index on stdin\n"
    done = five("delete", "-", stdin=b"4\n")
    assert (done.status, left(five)) == (2, "4 5")


@pytest.mark.parametrize("command", ["delete", "commit", "negative"])
@pytest.mark.parametrize("index", ["0", "abc", "1.5", "18446744073709551616", "1,2"])
def test_an_index_that_is_none_is_refused_and_nothing_is_done(five: Easq, command: str, index: str) -> None:
    for args, stdin in ((["1", index], b""), (["-"], f"1 {index}".encode())):
        done = five(command, *args, "-y", stdin=stdin)
        head = " (0, the head, cannot be used here)" if index == "0" else ""
        assert (done.status, done.out) == (2, b"")
        assert done.err == (
            f"easq: {index!r} is not an index, a whole number from 1 to 18446744073709551615{head}\n"
        )
    assert left(five) == "1 2 3 4 5"


def test_trunc_keeps_the_index_itself(five: Easq) -> None:
    assert five("trunc", "4", "-y").text == "[OK] truncated\n"
    assert left(five) == "4 5"
    done = five("trunc", "4", "-y")
    assert (done.text, done.err) == (
        "[OK] truncated\n",
        "easq: warning: 0 items truncated: none was below index 4\n",
    )
    assert five("trunc", "5", "-y", "-o", "json").text == '{"truncated":"5","counted":1}\n'


def test_trunc_all_empties_the_stream_and_may_be_said_again(five: Easq) -> None:
    five("put", "-k", "-d", "result")
    terminal = five.terminal("trunc", "--all")
    terminal.expect_exact("trunc stream from index: 6 [y/N]")
    terminal.sendline("y")
    assert finish(terminal) == (0, "y\n[OK] truncated\n")
    assert left(five) == ""
    assert five("trunc", "--all", "-y").status == 0
    assert five("get", "-k", "-o", "raw").text == "result"


@pytest.mark.parametrize("args", [[], ["3", "--all"]])
def test_trunc_needs_one_of_index_and_all(five: Easq, args: list[str]) -> None:
    done = five("trunc", *args, "-y")
    assert (done.status, done.err) == (2, "easq: one of INDEX and --all is needed\nhint: easq trunc --help\n")


def test_commit_says_that_items_are_done(five: Easq) -> None:
    done = five("commit", "1", "2")
    assert (done.text, done.err) == ("[OK] committed\n", "")
    assert five("commit", "-", "-o", "json", stdin=b"3 4").text == '{"committed":["3","4"],"counted":2}\n'
    assert left(five) == "5"
    done = five("commit", "77", "5", "1")
    assert (done.status, done.text) == (0, "[OK] committed\n")
    assert done.err == (
        "easq: warning: 1 of 3 committed; not counted: items that do not exist or were committed before\n"
    )


def test_negative_gives_an_item_back(five: Easq) -> None:
    watching = five.start("watch", "--commit", "none", "-o", "json", "-q")
    assert watching.stdout is not None
    assert [json.loads(watching.stdout.readline())["index"] for _ in range(5)] == list("12345")
    done = five("negative", "2", "--code", "EngineError", "--reason", "out of memory, ü")
    assert (done.status, done.text) == (0, "[OK] negative\n")
    again = json.loads(watching.stdout.readline())
    assert (again["index"], again["tags"]["deliveryCount"]) == ("2", "2")
    watching.terminate()
    assert watching.wait() == 143
    watching.communicate()
    assert five("negative", "2", "-o", "json").text == '{"negative":["2"],"counted":0}\n'
    done = five("negative", "77")
    assert (done.status, done.text) == (0, "[OK] negative\n")
    assert done.err == (
        "easq: warning: 0 of 1 negative; not counted: items that are not pending in group default_group\n"
    )


def test_a_service_that_does_not_say_how_many_counted_is_believed(easq: Easq) -> None:
    with answering(reply(200, b"OK")) as server:
        url = f"http://127.0.0.1:{server.port}/q"
        assert easq("delete", "1", "-y", "--url", url).err == ""
        assert easq("commit", "1", "--url", url, "-o", "json").text == '{"committed":["1"],"counted":null}\n'


@pytest.mark.parametrize("code", ["shutdown", "4xx", "Err500", "A" * 21, "A\nB", "Engine Error"])
def test_a_code_that_is_none_is_refused(queue: Easq, code: str) -> None:
    done = queue("negative", "1", "--code", code)
    assert (done.status, done.out) == (2, b"")
    assert "is not one\nhint: a code is words like Engine.Error or a number" in done.err
