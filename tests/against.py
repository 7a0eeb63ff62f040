"""`python -m tests.against --code REVISION [--tests REVISION] [pytest's arguments that choose tests]`.

Run the tests that came after a revision against the package as it was there. A test that came with a mended fault fails
there; one that passes there shows a rule that held before, or nothing. Nothing is checked out: both revisions are
unpacked into a temporary folder, which is removed at the end.

For each test file the table counts the new tests, and of these

- fails: an assertion failed, or what the test asked for raised an error,
- hangs: not done after `--timeout` seconds,
- missing: uses a module, a name or an attribute that is not there,
- signature: gives a function, a command or a fixture an argument that it does not have there,
- skipped,
- passes: each of these is listed by name.

A module or a name that is not there is replaced by an object whose use is the failure "missing", so that the other
tests of the file are judged.
"""

from __future__ import annotations

import argparse
import ast
import faulthandler
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NoReturn

import pytest

OUTCOMES = ("fails", "hangs", "missing", "signature", "skipped", "passes")
#: of a failure by what is not there: the placeholder names itself, also where Python refuses it as a class
_MISSING = re.compile(
    r"is not there in this revision|MissingName|No module named|cannot import name|"
    r"AttributeError: (?!'NoneType').* has no attribute"
)
_SIGNATURE = re.compile(
    r"unexpected keyword argument|missing \d+ required|takes .* positional argument|no such option|"
    r"fixture '.*' not found",
    re.IGNORECASE,
)
_HANGS = "not done after"
#: the settings of the plugin, in the environment of pytest
_COLLECT, _IDS, _RESULTS, _TIMEOUT, _PACKAGE, _LENIENT = (
    f"AGAINST_{name}" for name in ("COLLECT", "IDS", "RESULTS", "TIMEOUT", "PACKAGE", "LENIENT")
)


@dataclass(frozen=True)
class Result:
    """What became of one test."""

    test: str
    outcome: str
    seconds: float
    message: str

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


class Comparison:
    """The trees of both revisions, and the tests of one with the package of the other."""

    def __init__(
        self,
        folder: Path,
        repository: Path,
        package: str,
        *,
        jobs: int,
        timeout_s: float,
        lenient: bool,
    ) -> None:
        self._folder = folder
        self._repository = repository
        self._package = package
        self._jobs = jobs
        self._timeout_s = timeout_s
        self._lenient = lenient
        self._now, self._before, self._mixed = (folder / name for name in ("now", "before", "mixed"))
        plugins = folder / "plugins"
        plugins.mkdir()
        shutil.copy(__file__, plugins / "against.py")

    def unpack(self, code: str, tests: str, dropped: Sequence[str]) -> None:
        """Write the three trees; without `tests` they are what git knows of the working tree."""
        self._archive(code, self._before)
        if tests:
            self._archive(tests, self._now)
        else:
            self._copy(self._now)
        shutil.copytree(self._now, self._mixed, symlinks=True)
        shutil.rmtree(self._mixed / self._package)
        shutil.copytree(self._before / self._package, self._mixed / self._package, symlinks=True)
        for option in dropped:
            with (self._mixed / self._package / "__init__.py").open("a") as file:
                file.write(_DROP.format(option=option))

    def _archive(self, revision: str, folder: Path) -> None:
        done = subprocess.run(
            ["git", "-C", self._repository, "archive", revision], capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{revision}: {done.stderr.decode().strip()}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            archive.extractall(folder, filter="fully_trusted")

    def _copy(self, folder: Path) -> None:
        listed = subprocess.run(
            ["git", "-C", self._repository, "ls-files", "-zco", "--exclude-standard"],
            capture_output=True,
            check=True,
        )
        for name in os.fsdecode(listed.stdout).split("\0"):
            source = self._repository / name
            if name and source.is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)

    def new(self, chosen: Sequence[str], *, changed: bool) -> dict[str, list[str]]:
        """Return the ids of the tests that are not at the older revision, or are otherwise there, by file."""
        before = self._collect(self._before, chosen)
        by_file: dict[str, list[str]] = defaultdict(list)
        for test, source in self._collect(self._now, chosen).items():
            if test not in before or (changed and before[test] != source):
                by_file[test.partition("::")[0]].append(test)
        return by_file

    def _collect(self, tree: Path, chosen: Sequence[str]) -> dict[str, str]:
        """Return the ids of the tests of one tree, with a checksum of their source."""
        # what is asked for need not be there at the older revision; pytest would then collect nothing at all
        there = [word for word in chosen if (tree / word.partition("::")[0]).exists() or not _is_path(word)]
        if not any(map(_is_path, there)) and any(map(_is_path, chosen)):
            return {}
        listed = self._folder / "collected"
        listed.write_text("")
        self._pytest(tree, ["--collect-only", "-q", *there], 600.0, **{_COLLECT: str(listed)})
        return dict(json.loads(line) for line in listed.read_text().splitlines())

    def judge(self, file: str, tests: Sequence[str]) -> list[Result]:
        """Run the tests of one file with the older package."""
        found, collected, last = self._run(file, tests, self._jobs)
        for test in tests:
            if test in collected and test not in found:
                # a test took all of pytest down with it, by the memory that it used, for instance
                again, _, last = self._run(file, [test], 1)
                found |= again
        lost = found.get(file) or Result(
            file, "missing", 0.0, f"not collected: its parameters are new ({last})"
        )
        ended = Result(file, "fails", 0.0, f"pytest ended before its end: {last}")
        return [found.get(test) or replace(ended if test in collected else lost, test=test) for test in tests]

    def _run(self, file: str, tests: Sequence[str], jobs: int) -> tuple[dict[str, Result], set[str], str]:
        """Return the results of the tests, which of them were collected, and the last line of pytest."""
        ids, collected, results = (self._folder / name for name in ("ids", "collected", "results"))
        ids.write_text("".join(f"{test}\n" for test in tests))
        collected.write_text("")
        results.write_text("")
        workers = ["-n", str(jobs)] if jobs > 1 else []
        output = self._pytest(
            self._mixed,
            ["-q", "-m", "", "--continue-on-collection-errors", *workers, file],
            60.0 + 3 * self._timeout_s * len(tests),
            **{
                _COLLECT: str(collected),
                _IDS: str(ids),
                _RESULTS: str(results),
                _TIMEOUT: str(self._timeout_s),
                _PACKAGE: self._package,
                _LENIENT: "1" if self._lenient else "",
            },
        )
        found: dict[str, Result] = {}
        for line in results.read_text().splitlines():
            result = Result(**json.loads(line))
            # a test has a result for its setup, its run and its teardown: what failed first is the reason
            if result.test not in found or found[result.test].outcome == "passes":
                found[result.test] = result
        ran = {json.loads(line)[0] for line in collected.read_text().splitlines()}
        return found, ran, (output.strip().splitlines() or [""])[-1]

    def _pytest(self, tree: Path, arguments: Sequence[str], timeout_s: float, **settings: str) -> str:
        inherited = ("AGAINST_", "PYTEST_XDIST")  # of a run of these tests by xdist
        environ = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
        environ |= {"PYTHONPATH": f"{tree}{os.pathsep}{self._folder / 'plugins'}", **settings}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-o",
            f"cache_dir={self._folder / 'cache'}",
            "-p",
            "against",
            *arguments,
        ]
        with subprocess.Popen(
            command,
            cwd=tree,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process:
            try:
                return process.communicate(timeout=timeout_s)[0].decode(errors="replace")
            except subprocess.TimeoutExpired:
                return f"pytest itself was {_HANGS} {timeout_s:g} s"
            finally:
                _end_session(process.pid)


#: appended to the older package: a command line has the option and its value no more
_DROP = """
import sys as _sys
for _at, _word in reversed(list(enumerate(_sys.argv))):
    if _word == "{option}" or _word.startswith("{option}="):
        del _sys.argv[_at : _at + 1 + (_word == "{option}")]
"""


def _is_path(word: str) -> bool:
    return not word.startswith("-") and (".py" in word or "/" in word)


def _end_session(leader: int) -> None:
    """Kill what tests started and a killed worker left behind; where there is no /proc, the leader's group alone."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[3]) == leader:
                os.kill(int(stat.parent.name), signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.against",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--code", required=True, metavar="REVISION", help="where the package is taken from")
    parser.add_argument("--tests", default="", metavar="REVISION", help="default: the working tree")
    parser.add_argument("--package", default="easq", help="folder that is taken from --code (%(default)s)")
    parser.add_argument(
        "--drop-option",
        action="append",
        default=[],
        metavar="--OPTION",
        help="option with a value, of fixtures, that the older command refuses; repeatable",
    )
    parser.add_argument(
        "--changed", action="store_true", help="run also tests that were there and have changed"
    )
    parser.add_argument(
        "--ignore-new-arguments",
        action="store_true",
        help="keyword arguments that a function of the package does not have are ignored, in the tests' process",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds a test may take (%(default)s)")
    parser.add_argument(
        "-n", type=int, default=2, dest="jobs", help="processes of pytest-xdist (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file for the result of each test, written after each file")
    # `--drop-option --name` is an option as the value of another, which argparse takes with an equals sign alone
    words: list[str] = []
    for word in sys.argv[1:] if argv is None else argv:
        if words and words[-1] == "--drop-option":
            words[-1] += f"={word}"
        else:
            words.append(word)
    asked, chosen = parser.parse_known_args(words)
    repository = Path(
        subprocess.run(
            ["git", "rev-parse", "--show-toplevel"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
    )
    with tempfile.TemporaryDirectory(prefix="against-") as folder:
        comparison = Comparison(
            Path(folder),
            repository,
            asked.package,
            jobs=asked.jobs,
            timeout_s=asked.timeout,
            lenient=asked.ignore_new_arguments,
        )
        comparison.unpack(asked.code, asked.tests, asked.drop_option)
        results: list[Result] = []
        print(_row("", "new", *OUTCOMES), flush=True)
        for file, tests in comparison.new(chosen, changed=asked.changed).items():
            judged = comparison.judge(file, tests)
            results += judged
            print(_counts(file, judged), flush=True)
            if asked.json:
                asked.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    print(_counts("all", results))
    passing = [result.test for result in results if result.outcome == "passes"]
    print(
        "\nNew tests that pass on the older code:" if passing else "\nNo new test passes on the older code."
    )
    print("".join(f"  {test}\n" for test in passing), end="")


def _counts(name: str, results: Sequence[Result]) -> str:
    counts = [sum(result.outcome == outcome for result in results) for outcome in OUTCOMES]
    return _row(name, str(len(results)), *map(str, counts))


def _row(name: str, *columns: str) -> str:
    return f"{name:<44}" + "".join(f"{column:>10}" for column in columns)


# The plugin of pytest: loaded by `-p against` in a pytest that the command starts, and does nothing in any other.


class MissingName:
    """Stands for what the older package does not have; using it is a failure that names it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> MissingName:
        if name.startswith(("_", "pytest")):
            raise AttributeError(name)
        return MissingName(f"{self._name}.{name}")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise LookupError(f"{self._name} is not there in this revision")

    __enter__ = __aenter__ = __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = __call__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __floordiv__ = __call__
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = __fspath__ = __call__

    def __exit__(self, *_: object) -> None: ...


class _Lenient(importlib.machinery.SourceFileLoader):
    """Compiles functions so that they take, and ignore, keyword arguments that they do not have."""

    def get_code(self, fullname: str) -> CodeType:  # noqa: ARG002
        # never from the cache, and not into it: processes that tests start have the package as it is
        tree = ast.parse(self.get_data(self.path), self.path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
                node.name == "__init__" or not node.name.startswith("__")
            ):
                node.args.kwarg = node.args.kwarg or ast.arg("_not_there_in_this_revision")
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Do the same for data classes, whose functions are not in the source."""
        super().exec_module(module)
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == module.__name__ and is_dataclass(value):
                _ignore_new_fields(value)


def _ignore_new_fields(kind: Any) -> None:
    make, names = kind.__init__, {field.name for field in fields(kind) if field.init}
    if make.__code__.co_filename != "<string>":
        return  # written by hand

    @functools.wraps(make)
    def init(self: object, *values: Any, **named: Any) -> None:
        make(self, *values, **{name: value for name, value in named.items() if name in names})

    kind.__init__ = init


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package's modules, and what it does not have as a module of missing names."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != self._package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        if os.environ.get(_LENIENT) and spec.origin:
            spec.loader = _Lenient(fullname, spec.origin)
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self.exec_module(module)

        loader.exec_module = exec_module
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """Give the module an answer for every name that it does not have."""

        def missing(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            submodule = f"{module.__name__}.{name}"
            path = getattr(module, "__path__", None)
            if path is not None and importlib.machinery.PathFinder.find_spec(submodule, path):
                return importlib.import_module(submodule)
            return MissingName(submodule)

        if not hasattr(module, "__getattr__"):
            module.__dict__["__getattr__"] = missing


_began: dict[str, float] = {}


# at import: the tests' own conftest files are read before any hook is called
if _package := os.environ.get(_PACKAGE):
    sys.meta_path.insert(0, _Finder(_package))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the tests that are asked for, and no other."""
    if ids := os.environ.get(_IDS):
        wanted = set(Path(ids).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
        items[:] = [item for item in items if item.nodeid in wanted]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Write down what was collected, which is the same in each worker."""
    if (listed := os.environ.get(_COLLECT)) and os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        lines = []
        for item in session.items:
            source = inspect.getsource(getattr(item, "function", type(item)))
            lines.append(json.dumps((item.nodeid, hashlib.sha256(source.encode()).hexdigest())))
        Path(listed).write_text("".join(f"{line}\n" for line in lines))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Write down the file that cannot be imported."""
    if report.failed:
        _write(report.nodeid, "failed", 0.0, report.longreprtext)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note when a test began: of a worker that died nothing else says so."""
    _began[nodeid] = time.monotonic()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down a result, in the process that has those of all workers."""
    if report.when == "call" or not report.passed:
        seconds = time.monotonic() - _began.get(report.nodeid, time.monotonic())
        _write(report.nodeid, report.outcome, seconds, report.longreprtext)


def _write(test: str, outcome: str, seconds: float, text: str) -> None:
    path = os.environ.get(_RESULTS)
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if outcome == "passed":
        judged, text = "passes", ""
    elif outcome == "skipped":
        judged = "skipped"
    else:
        # the last lines that pytest marks with an E are the error itself, before them those that it came from
        errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
        shown = " | ".join(errors) or text
        timeout_s = float(os.environ[_TIMEOUT])
        crashed = "crashed while running" in text and seconds >= timeout_s
        judged = (
            "hangs"
            if _HANGS in shown or crashed
            else "missing"
            if _MISSING.search(shown)
            else "signature"
            if _SIGNATURE.search(shown)
            else "fails"
        )
        places = re.findall(r"^(tests/\S+:\d+): ", text, re.MULTILINE)
        text = f"{places[-1] + ': ' if places else ''}{shown}"
    with Path(path).open("a") as file:
        file.write(json.dumps(asdict(Result(test, judged, round(seconds, 1), text[:2000]))) + "\n")


@contextmanager
def _alarm() -> Iterator[None]:
    timeout_s = float(os.environ.get(_TIMEOUT, 0))
    if not timeout_s:
        yield
        return

    def end(*_: object) -> NoReturn:
        pytest.fail(f"{_HANGS} {timeout_s:g} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    # where the exception is swallowed, or never raised, as in a call that does not return: pytest-xdist starts another
    faulthandler.dump_traceback_later(timeout_s * 1.5, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Bound the time of the fixtures."""
    with _alarm():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Bound the time of the test."""
    with _alarm():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Bound the time of what comes after."""
    with _alarm():
        return (yield)


if __name__ == "__main__":
    main()
