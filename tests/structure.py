"""`python -m tests.structure`: figures of the package's structure, read from its source.

- Lines, and modules: of all Python files in easq/.
- Function bodies: lines from the first statement behind the docstring to the last one; median and 90th percentile.
- Private functions called once: functions and methods whose name begins with one underscore (not two) and stands at
  exactly one other place in easq/, as a name or an attribute, of all functions and methods. A function that is passed
  on at one place counts like one that is called there.
- Fan-out: how many modules of easq a module imports, imports inside functions included.
- Private words: names of files, classes, functions, variables and arguments that have a word in `PRIVATE_WORDS`,
  where words are parted by underscores and capital letters.

`--list` names each function that is called once.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "easq"

#: words that only this project used for what has a standard term
PRIVATE_WORDS = frozenset(
    {
        "hands",
        "turn",
        "kept",
        "talk",
        "tally",
        "ear",
        "attendance",
        "burial",
        "doomed",
        "box",
        "handout",
        "lane",
    }
)


@dataclass(frozen=True)
class Function:
    """One function or method."""

    module: str
    name: str
    line: int
    body_lines: int

    @property
    def private(self) -> bool:
        """Whether its name begins with exactly one underscore."""
        return self.name.startswith("_") and not self.name.startswith("__")


@dataclass
class Structure:
    """What the source of a package shows."""

    lines: int = 0
    modules: int = 0
    functions: list[Function] = field(default_factory=list)
    names: Counter[str] = field(
        default_factory=Counter
    )  #: how often each name is used, definitions not counted
    fan_out: dict[str, int] = field(default_factory=dict)

    def called_once(self) -> list[Function]:
        """Return the private functions whose name is used at one place."""
        return [one for one in self.functions if one.private and self.names[one.name] == 1]

    def body_lines(self, share: float) -> int:
        """Return the length below which `share` of all function bodies are."""
        return sorted(one.body_lines for one in self.functions)[int(len(self.functions) * share)]


def read_structure(root: Path = ROOT) -> Structure:
    """Read the package at `root`."""
    found = Structure()
    paths = {_module(root, path): path for path in sorted(root.rglob("*.py"))}
    for module, path in paths.items():
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, str(path))
        found.lines += text.count("\n")
        found.modules += 1
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                found.functions.append(Function(module, node.name, node.lineno, lines))
            elif isinstance(node, ast.Name):
                found.names[node.id] += 1
            elif isinstance(node, ast.Attribute):
                found.names[node.attr] += 1
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
        found.fan_out[module] = len((imported & paths.keys()) - {module, "easq"})
    return found


def private_words(root: Path = ROOT) -> Iterator[str]:
    """Yield `file:line: name` for each name that has a private word, and `file` for each such file or folder."""
    for path in sorted(root.rglob("*")):
        if path.suffix not in {".py", ".lua", ".sql"} and not path.is_dir():
            continue
        where = path.relative_to(root.parent).as_posix()
        if _words(path.stem) & PRIVATE_WORDS:
            yield where
        if path.suffix == ".py":
            source = io.StringIO(path.read_text(encoding="utf-8"))
            for token in tokenize.generate_tokens(source.readline):
                if token.type == tokenize.NAME and _words(token.string) & PRIVATE_WORDS:
                    yield f"{where}:{token.start[0]}: {token.string}"


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def _module(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.structure", description=__doc__)
    parser.add_argument("--list", action="store_true", help="name each private function that is called once")
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a package; easq by default")
    asked = parser.parse_args()
    found = read_structure(asked.root)
    once = found.called_once()
    widest = max(found.fan_out, key=lambda module: found.fan_out[module])
    print(f"lines                          {found.lines}")
    print(f"modules                        {found.modules}")
    print(f"functions                      {len(found.functions)}")
    print(f"function body, median and p90  {found.body_lines(0.5)} and {found.body_lines(0.9)} lines")
    print(
        f"private, called once           {len(once)}, {len(once) / len(found.functions):.1%} of all functions"
    )
    print(f"largest fan-out                {found.fan_out[widest]}, {widest}")
    print(f"names with a private word      {sum(1 for _ in private_words(asked.root))}")
    if asked.list:
        for one in sorted(once, key=lambda one: (one.module, one.line)):
            print(f"{one.module}:{one.line}: {one.name} ({one.body_lines} lines)")
        for line in private_words(asked.root):
            print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
