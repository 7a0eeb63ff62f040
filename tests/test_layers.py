"""The listing is the architecture: imports point down, the wings meet only below, each library has one home.

Everything is read from the source with `ast`; imports inside functions and behind `TYPE_CHECKING` count like others.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "easq"

_GROUND = {"errors", "model", "redact", "protocol", "net", "models"}
_CLIENT = {"config", "client", "prediction", "bench", "render", "worker"}
_SERVICE = {"storage", "server", "emulator"}

#: part of easq -> the other parts it may import; what a part does not name it does not know
MAY_IMPORT: Mapping[str, set[str]] = {
    "errors": set(),
    "model": {"errors"},
    "redact": set(),
    "protocol": {"errors", "model"},
    "models": {"errors", "model", "redact", "protocol", "net"},
    "net": {"errors", "model", "protocol", "redact"},
    "storage": {"errors", "model", "net", "protocol"},
    "server": _GROUND | {"storage"},
    "emulator": _GROUND | {"server"},
    "config": {"errors", "model", "net", "redact", "protocol"},
    "client": {"errors", "model", "net", "redact", "protocol"},
    "prediction": {"errors", "model", "net", "redact", "protocol", "client"},
    "bench": {"errors", "model", "net", "protocol", "client", "prediction"},
    "render": {"errors", "model", "redact", "protocol"},
    "worker": _GROUND | {"client"},
    "local": {"errors", "models", "storage", "server", "emulator"},
    "cli": _GROUND | _CLIENT,
    "__main__": {"cli"},
}
#: the rules of a queue, which know nothing of the network: they import of server/ only each other
QUEUE_RULES = {"queue", "queues", "subscriber", "dead_letters", "rate_limit"}
#: the one bridge between the wings: the command that runs a service. `local` runs one too, and knows no client
BRIDGE = "easq.cli.serve"
#: the interface for programs names things of both wings, and imports each when it is used; they ask it for the version
FACE = "easq"

#: library -> the modules (or packages, with a dot at the end) that may know it
HOMES: Mapping[str, tuple[str, ...]] = {
    "aiohttp": ("easq.server.", "easq.emulator.", "easq.net.aio"),
    "certifi": ("easq.net.tls",),
    "click": ("easq.cli.",),
    "google": ("easq.protocol.frames",),
    "httpcore": ("easq.net.bounded",),
    "httpx": ("easq.net.http", "easq.net.bounded"),
    "redis": ("easq.storage.redis.driver",),
    "rich": ("easq.render.printer",),
    "sqlite3": ("easq.storage.sqlite.", "easq.cli.version"),
    "tomli_w": ("easq.config.profiles",),
    "tomllib": ("easq.config.profiles",),
    "websocket": ("easq.net.websocket",),
    "yarl": ("easq.net.aio",),
}


@dataclass(frozen=True)
class Import:
    """One import: which module has it, in which line, and the full name of what it asks for."""

    module: str
    line: int
    target: str


def violations(root: Path) -> list[str]:
    """What in the package at `root` breaks a rule, one line each; empty when it is as drawn."""
    modules = {_module_name(root, path): path for path in sorted(root.rglob("*.py"))}
    imports = [found for name, path in modules.items() for found in _imports(name, path, set(modules))]
    return [
        *_wrong_direction(imports),
        *_wrong_floor(imports),
        *_wrong_home(imports),
        *_circles(imports, set(modules)),
    ]


def _module_name(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, path: Path, modules: set[str]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(module, node.lineno, full if full in modules else base)
        elif isinstance(node, ast.Call) and _is_import_call(node.func) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield Import(module, node.lineno, name.value)


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def _part(name: str) -> str:
    """The part of easq that a module belongs to; empty for `easq` itself and for what is not easq."""
    head, _, rest = name.partition(".")
    return rest.partition(".")[0] if head == "easq" else ""


def _wrong_direction(imports: list[Import]) -> Iterator[str]:
    for found in imports:
        source, target = _part(found.module), _part(found.target)
        if not target or source == target:
            continue
        if found.module == FACE or (found.module == BRIDGE and target in _SERVICE):
            continue
        if source not in MAY_IMPORT:
            yield f"{found.module}:{found.line}: {source or 'easq'} has no place in the picture"
        elif target not in MAY_IMPORT[source]:
            yield f"{found.module}:{found.line}: {source} must not import {target} ({found.target})"


def _wrong_floor(imports: list[Import]) -> Iterator[str]:
    for found in imports:
        source = found.module.removeprefix("easq.server.")
        target = found.target.removeprefix("easq.server.")
        if source in QUEUE_RULES and target != found.target and target not in QUEUE_RULES:
            yield f"{found.module}:{found.line}: the rules of a queue must not import server.{target}"
        elif source in QUEUE_RULES and found.target.partition(".")[0] == "aiohttp":
            yield f"{found.module}:{found.line}: the rules of a queue must not import aiohttp"


def _wrong_home(imports: list[Import]) -> Iterator[str]:
    for found in imports:
        library = found.target.partition(".")[0]
        if library == "easq" or (library in sys.stdlib_module_names and library not in HOMES):
            continue
        homes = HOMES.get(library)
        if homes is None:
            yield f"{found.module}:{found.line}: {library} has no home"
        elif not any(found.module == home or found.module.startswith(home) for home in homes if home):
            yield f"{found.module}:{found.line}: {library} lives in {', '.join(homes)} only"


def _circles(imports: list[Import], modules: set[str]) -> Iterator[str]:
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        if found.target in modules and found.module not in (found.target, FACE):
            graph[found.module].add(found.target)
    state: dict[str, int] = {}
    trail: list[str] = []

    def visit(module: str) -> Iterator[str]:
        state[module] = 1
        trail.append(module)
        for target in sorted(graph[module]):
            if state.get(target) == 1:
                yield "a circle: " + " -> ".join([*trail[trail.index(target) :], target])
            elif target not in state:
                yield from visit(target)
        trail.pop()
        state[module] = 2

    for module in sorted(graph):
        if module not in state:
            yield from visit(module)


def test_the_package_is_as_drawn() -> None:
    """No import of easq points up or across, no library is known outside its home, no modules form a circle."""
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("client/queue.py", "from easq.storage.base import X", "client must not import storage"),
        ("server/http.py", "def f():\n    import easq.client.queue", "server must not import client"),
        ("storage/rules/stream.py", "from ...server import queue", "storage must not import server"),
        ("server/routes.py", "from easq.emulator.gateway import X", "server must not import emulator"),
        (
            "server/rate_limit.py",
            "def f():\n    from easq.server import routes",
            "the rules of a queue must not import server.routes",
        ),
        (
            "server/subscriber.py",
            "from aiohttp import web",
            "the rules of a queue must not import aiohttp",
        ),
        ("protocol/frames.py", "from easq import storage", "protocol must not import storage"),
        ("protocol/frames.py", "import easq.server.queue", "protocol must not import server"),
        ("errors.py", "from easq.model import Frame", "errors must not import model"),
        ("model.py", "from easq.protocol import frames", "model must not import protocol"),
        ("render/rows.py", "from easq.cli import main", "render must not import cli"),
        ("cli/work.py", "from easq.server.server import Server", "cli must not import server"),
        (
            "protocol/replies.py",
            "if TYPE_CHECKING:\n    from easq.cli import app",
            "protocol must not import cli",
        ),
        ("utils.py", "from easq.errors import EasqError", "utils has no place in the picture"),
        ("cli/put.py", "import httpcore", "httpcore lives in easq.net.bounded only"),
        ("render/rows.py", "from rich.table import Table", "rich lives in easq.render.printer only"),
        ("server/server.py", "import sqlite3", "sqlite3 lives in easq.storage.sqlite."),
        ("client/queue.py", "import aiohttp", "aiohttp lives in"),
        (
            "protocol/replies.py",
            "from google.protobuf import message",
            "google lives in easq.protocol.frames only",
        ),
        ("worker/worker.py", "import importlib\nimportlib.import_module('websocket')", "websocket lives in"),
        ("client/queue.py", "import requests", "requests has no home"),
    ],
)
def test_a_forbidden_import_is_named(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    """One import that breaks a rule is found, wherever in the file it stands, and nothing else is complained of."""
    tree = _plant(tmp_path, {path: source})
    found = violations(tree)
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    "files",
    [
        {"protocol/a.py": "from easq.protocol import b", "protocol/b.py": "from easq.protocol.a import x"},
        {"protocol/a.py": "from . import b", "protocol/b.py": "def f():\n    from .a import x"},
        {
            "protocol/a.py": "from . import b",
            "protocol/b.py": "from . import c",
            "protocol/c.py": "import easq.protocol.a",
        },
    ],
)
def test_a_circle_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    """Modules that import each other in a round are found, also when one of the imports stands in a function."""
    found = violations(_plant(tmp_path, files))
    assert len(found) == 1
    assert found[0].startswith("a circle: easq.protocol.a -> easq.protocol.b")


def test_what_is_allowed_is_not_complained_of(tmp_path: Path) -> None:
    """The bridge, imports down, and libraries at home are fine."""
    files = {
        "cli/serve.py": "import click\nfrom easq.server.server import Server\nfrom easq.storage.base import Timing",
        "cli/demo.py": "from easq.cli import serve",
        "server/server.py": "import aiohttp, asyncio\nfrom easq.server import queue\nfrom easq import models",
        "net/aio.py": "from aiohttp import web\nfrom easq.protocol import frames",
        "config/profiles.py": "import tomllib, tomli_w",
        "storage/sqlite/engine.py": "import sqlite3",
    }
    assert violations(_plant(tmp_path, files)) == []


def _plant(folder: Path, files: dict[str, str]) -> Path:
    """A small easq in `folder`: every part is there and empty but for `files`."""
    root = folder / "easq"
    names = ["__init__.py", "errors.py", "model.py", "models.py"]
    packages = ["protocol", "storage", "server", "emulator", "client", "render", "config", "worker", "cli"]
    skeleton = [*names, *(f"{package}/__init__.py" for package in packages)]
    skeleton += ["protocol/frames.py", "server/queue.py", "server/routes.py", "server/server.py"]
    skeleton += ["storage/base.py", "client/queue.py", "cli/main.py", "cli/app.py"]
    for path, source in [*((name, "") for name in skeleton), *files.items()]:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")
    return root
