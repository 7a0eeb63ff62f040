"""The messages of easq as its source has them, to compare docs/troubleshooting.md with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import easq.errors
from easq.errors import EasqError, Exit
from tests.support.documents import ROOT

#: stands for what differs, in the page as in a template of the source
ANY = "…"
_ERRORS = {
    name: kind
    for name, kind in vars(easq.errors).items()
    if isinstance(kind, type) and issubclass(kind, EasqError)
}


@dataclass(frozen=True)
class Raised:
    """An error that is made in the source with a message of its own."""

    where: str
    kind: str
    exit: Exit
    message: str


@dataclass(frozen=True)
class Entry:
    """A row of the page, below a heading that begins with exit codes (none: warnings)."""

    exits: tuple[int, ...]
    message: str

    def covers(self, message: str) -> bool:
        """Whether a template of the source is what the row shows, or contains it."""
        at = 0
        for part in self.message.split(ANY):
            found = message.find(part.strip(), at)
            if found < 0:
                return False
            at = found + len(part.strip())
        return True


def entries(page: str) -> Iterator[Entry]:
    """Yield the messages of the tables of the page."""
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        heading = section.partition(":")[0] if section[0].isdigit() else ""
        exits = tuple(int(code) for code in re.findall(r"[0-9]+", heading))
        for message in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE):
            yield Entry(exits, message)


@cache
def templates() -> frozenset[str]:
    """Return every text of the source; what an f-string fills in is ANY."""
    return frozenset(_text(node) for tree in _trees().values() for node in ast.walk(tree) if _text(node))


@cache
def raised() -> tuple[Raised, ...]:
    """Return the errors whose message stands where they are made."""
    found = []
    for where, tree in _trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                kind, message = _ERRORS.get(node.func.id), _text(node.args[0])
                if kind is not None and message:
                    found.append(Raised(f"{where}:{node.lineno}", kind.__name__, kind.exit, message))
    return tuple(found)


@cache
def _trees() -> dict[str, ast.Module]:
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "easq").rglob("*.py"))
    }


def _text(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(_text(value) or ANY for value in values)
    return ""
