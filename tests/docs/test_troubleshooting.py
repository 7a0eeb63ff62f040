"""docs/troubleshooting.md and the source have the same messages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from easq.errors import Exit
from tests.conftest import Serve
from tests.docs.messages import ANY, Entry, entries, raised, templates
from tests.support.documents import ROOT, make_home
from tests.support.redis import free_port

PAGE = "docs/troubleshooting.md"
#: what an entry shows beside ANY has at least so many characters, or it would stand for anything
LEAST = 6
#: kinds that only a client of one's own meets, by a parameter of the wire that says what is wrong with it
OF_THE_WIRE = {"BadRequest", "MethodNotAllowed", "NotAcceptable"}


def page_entries() -> list[Entry]:
    return list(entries((ROOT / PAGE).read_text(encoding="utf-8")))


def specific_entries() -> list[Entry]:
    """Without `…: …`, which is for reasons of the system."""
    return [entry for entry in page_entries() if len(entry.message.replace(ANY, "").strip()) >= LEAST]


def test_each_message_of_the_page_is_one_of_the_source() -> None:
    missing = [entry.message for entry in page_entries() if not any(map(entry.covers, templates()))]
    assert not missing, f"not in the source, but in {PAGE}:\n" + "\n".join(missing)


def test_no_message_is_on_the_page_twice_for_one_exit_code() -> None:
    found = [(entry.exits, entry.message) for entry in page_entries()]
    assert len(found) == len(set(found))


def test_each_exit_code_of_a_failure_has_an_entry() -> None:
    assert {code for entry in page_entries() for code in entry.exits} == {int(code) for code in Exit} - {0}


def test_each_error_of_the_source_is_on_the_page() -> None:
    rows = specific_entries()
    missing = [
        f"{error.where} ({error.kind}, exit code {int(error.exit)}): {error.message}"
        for error in raised()
        if error.kind not in OF_THE_WIRE
        and len(error.message.replace(ANY, "")) >= LEAST
        and not any(entry.covers(error.message) for entry in rows)
    ]
    assert not missing, f"without a row in {PAGE}:\n" + "\n".join(missing)


@pytest.mark.long
def test_commands_that_fail_print_what_the_page_has_for_their_exit_code(serve: Serve, tmp_path: Path) -> None:
    """A failure of every kind that a service and a shell can cause."""
    url = serve("--max-payload", "10B", storage="memory:", token="token").url()
    foreign = tmp_path / "foreign.db"
    foreign.write_text("something else")
    lines = tmp_path / "lines"
    lines.write_text("short\nlonger than ten\n")
    commands = {
        ("get", "--lenght", "3"): Exit.USAGE,
        ("trunc", "--all", "--url", url): Exit.USAGE,
        ("get", "--url", url): Exit.NO_DATA,
        ("put", "-q", "-d", "more than ten", "--url", url): Exit.REFUSED,
        ("info", "--url", url.rpartition("/api/")[0] + "/healthz"): Exit.SERVER,
        ("get", "--url", f"http://127.0.0.1:{free_port()}/x", "--timeout", "0s"): Exit.UNREACHABLE,
        ("info", "--url", url, "--token", "wrong"): Exit.AUTH,
        ("info", "--url", f"{url}-not"): Exit.NOT_FOUND,
        ("predict", "-d", "x", "--timeout", "0.2s", "--url", url): Exit.DEADLINE,
        ("put", "-q", "-f", str(lines), "--on-error", "continue", "--url", url): Exit.PARTIAL,
        ("watch", "--url", url, "--", "/no/such/command"): Exit.CHILD,
        ("get",): Exit.CONFIG,
        ("serve", "--storage", f"sqlite:{foreign}"): Exit.STORAGE,
    }
    environ = make_home(tmp_path) | {"EASQ_TOKEN": "token"}
    for words, code in commands.items():
        done = subprocess.run(
            ["easq", *words],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, (words, done.stderr)
        assert any(code in entry.exits and entry.covers(done.stderr) for entry in specific_entries()), (
            done.stderr
        )
