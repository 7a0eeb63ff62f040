"""`python -m tests.docs.site FOLDER`: check a built site: each link leads somewhere, and no page names another host.

Read are all HTML files (links, pictures, scripts, styles: each attribute that holds an address) and the addresses in
style sheets. Exit status 1 and a line for each complaint where there are some.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: attributes that hold addresses
_ADDRESSES = {"href", "src", "srcset", "action", "data", "poster", "formaction"}


@dataclass
class Page(HTMLParser):
    """The addresses and anchors of one HTML file."""

    addresses: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value is None:
                continue
            if name in _ADDRESSES:
                self.addresses.append(value)
            elif name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def complaints(site: Path) -> Iterator[str]:
    """Yield one line for each address of another host, and for each link that leads nowhere."""
    pages = {path: read_page(path) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no page"
    for path, page in pages.items():
        where = path.relative_to(site)
        for address in page.addresses:
            parts = urlsplit(address)
            if parts.scheme in ("data", "mailto") or address.startswith("javascript:"):
                continue
            if parts.scheme or parts.netloc:
                yield f"{where}: {address} is of another host"
                continue
            start = site if parts.path.startswith("/") else path.parent
            target = start / unquote(parts.path).lstrip("/") if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{where}: {address} is not there"
            elif parts.fragment and target.suffix == ".html":
                anchors = pages[target.resolve()] if target.resolve() in pages else read_page(target)
                if unquote(parts.fragment) not in anchors.anchors:
                    yield f"{where}: {address}: {target.name} has no such place"
    for style in sorted(site.rglob("*.css")):
        for address in re.findall(
            r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)", style.read_text(encoding="utf-8")
        ):
            yield f"{style.relative_to(site)}: {address} is of another host"


def main() -> None:
    """Check the site that the command line names."""
    found = list(complaints(Path(sys.argv[1]).resolve()))
    for line in found:
        print(line, file=sys.stderr)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
