"""The check of a built site finds what it is there to find."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.site import complaints


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ('<a href="other.html#there">x</a><a href="#here">y</a><img src="data:image/png;base64,AA">', None),
        ('<script src="https://unpkg.com/x.js"></script>', "of another host"),
        ('<link rel="stylesheet" href="//fonts.example/x.css">', "of another host"),
        ('<img src="pictures/none.svg">', "is not there"),
        ('<a href="other.html#nowhere">x</a>', "has no such place"),
        ('<a href="#nowhere">x</a>', "has no such place"),
    ],
)
def test_a_page_that_breaks_a_rule_is_named(tmp_path: Path, page: str, complaint: str | None) -> None:
    (tmp_path / "other.html").write_text('<h1 id="there">there</h1>')
    (tmp_path / "index.html").write_text(f'<h1 id="here">here</h1>{page}')
    found = list(complaints(tmp_path))
    assert [line.partition(": ")[0] for line in found] == ([] if complaint is None else ["index.html"])
    assert complaint is None or found[0].endswith(complaint)


def test_a_style_sheet_that_loads_from_elsewhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<h1>here</h1>")
    (tmp_path / "x.css").write_text("@font-face { src: url(https://fonts.example/a.woff2) }")
    assert list(complaints(tmp_path)) == ["x.css: https://fonts.example/a.woff2 is of another host"]


def test_an_empty_folder_is_no_site(tmp_path: Path) -> None:
    assert list(complaints(tmp_path)) != []
