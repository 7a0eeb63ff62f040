"""docs/troubleshooting.md and the source have the same messages."""

from __future__ import annotations

from easq.errors import Exit
from tests.docs.messages import ANY, Entry, entries, raised, templates
from tests.support.documents import ROOT

PAGE = "docs/troubleshooting.md"
#: what an entry shows beside ANY has at least so many characters, or it would stand for anything
LEAST = 6
#: kinds whose messages say all, about an option or a parameter of the wire; the page has the frequent ones
EXPLAINED_BY_THEMSELVES = {"UsageError", "BadRequest", "MethodNotAllowed", "NotAcceptable"}


def page_entries() -> list[Entry]:
    return list(entries((ROOT / PAGE).read_text(encoding="utf-8")))


def test_each_message_of_the_page_is_one_of_the_source() -> None:
    missing = [entry.message for entry in page_entries() if not any(map(entry.covers, templates()))]
    assert not missing, f"not in the source, but in {PAGE}:\n" + "\n".join(missing)


def test_no_message_is_on_the_page_twice_for_one_exit_code() -> None:
    found = [(entry.exits, entry.message) for entry in page_entries()]
    assert len(found) == len(set(found))


def test_each_exit_code_of_a_failure_has_an_entry() -> None:
    assert {code for entry in page_entries() for code in entry.exits} == {int(code) for code in Exit} - {0}


def test_each_error_of_the_source_is_on_the_page() -> None:
    """By a row that shows more than `…: …`, which is for reasons of the system."""
    rows = [entry for entry in page_entries() if len(entry.message.replace(ANY, "").strip()) >= LEAST]
    missing = [
        f"{error.where} ({error.kind}, exit code {int(error.exit)}): {error.message}"
        for error in raised()
        if error.kind not in EXPLAINED_BY_THEMSELVES
        and len(error.message.replace(ANY, "")) >= LEAST
        and not any(entry.covers(error.message) for entry in rows)
    ]
    assert not missing, f"without a row in {PAGE}:\n" + "\n".join(missing)
