"""The structure of the package: no private words, few functions for one place, tests that mirror the modules.

`python -m tests.structure` prints the figures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.structure import PRIVATE_WORDS, ROOT, private_words, read_structure

REPOSITORY = ROOT.parent
#: private functions that are called at one place, of all functions
MOST_CALLED_ONCE = 0.08
#: lines of a function's body: median, and what nine of ten do not exceed
MEDIAN_LINES, MOST_LINES = 6, 18

#: file -> the names in it that have a private word, with the reason. An entry that is not needed fails
NAMES_LEFT: Mapping[str, set[str]] = {
    "easq/render/printer.py": {"box"},  # a module of rich
}
#: text -> its private words, likewise
WORDS_LEFT: Mapping[str, set[str]] = {
    "easq/render/printer.py": {"box"},  # a module of rich
    # parts of the keys of data that is stored in Redis
    "easq/storage/redis/lua/entries.lua": {"lane"},
    **{
        f"easq/storage/redis/lua/{name}.lua": {"box"}
        for name in ("consumers", "dispatch", "fetch", "groups", "stream", "take", "tick")
    },
}
#: these are plain English in a sentence: "kept on disk", "in turn", "hands over"
PLAIN = {"kept", "turn", "hands"}

#: module without a test file of its own -> the tests that try it, or the reason that there are none. The terminal is
#: tried by commands, as a user does it
TESTED_ELSEWHERE: Mapping[str, str] = {
    "__init__.py": "tests/test_exports.py",
    "__main__.py": "tests/cli/test_main.py",
    "bench/conditions.py": "tests/bench/test_queue.py tests/cli/test_bench.py",
    "bench/load.py": "tests/bench/test_queue.py tests/cli/test_bench.py",
    "cli/app.py": "tests/cli/test_main.py tests/cli/test_canary.py",
    "cli/command.py": "tests/cli/test_help.py tests/cli/test_main.py",
    "cli/commit.py": "tests/cli/test_delete.py tests/cli/test_watch.py",
    "cli/item_command.py": "tests/cli/test_watch_command.py",
    "cli/negative.py": "tests/cli/test_rear.py tests/cli/test_watch_command.py",
    "cli/options.py": "tests/cli/test_main.py tests/cli/test_help.py",
    "cli/param_types.py": "tests/cli/test_main.py tests/cli/test_help.py",
    "cli/payloads.py": "tests/cli/test_put.py tests/cli/test_predict.py",
    "cli/predict_run.py": "tests/cli/test_predict.py tests/cli/test_direct.py",
    "cli/put_report.py": "tests/cli/test_put.py",
    "cli/routes.py": "tests/cli/test_direct.py tests/cli/test_modelarts.py",
    "cli/serve_options.py": "tests/cli/test_serve.py",
    "cli/signals.py": "tests/cli/test_main.py tests/cli/test_watch.py",
    "cli/trunc.py": "tests/cli/test_delete.py",
    "cli/usage.py": "tests/cli/test_main.py",
    "cli/version.py": "tests/cli/test_main.py",
    "cli/watch_run.py": "tests/cli/test_watch.py",
    "cli/work_run.py": "tests/cli/test_work.py",
    "client/async_watch.py": "tests/worker/test_worker.py",
    "emulator/settings.py": "tests/emulator/test_emulator.py tests/emulator/test_instances.py",
    "emulator/websocket.py": "tests/emulator/test_proxy.py",
    "models/base.py": "tests/models/test_models.py",
    "models/command.py": "tests/models/test_models.py tests/models/test_children.py",
    "models/http.py": "tests/models/test_models.py",
    "models/threads.py": "tests/models/test_models.py tests/models/test_function.py",
    "net/aio_watch.py": "tests/worker/test_worker.py",
    "net/settings.py": "values without rules",
    "prediction/answers.py": "tests/cli/test_predict.py",
    "prediction/messages.py": "tests/cli/test_websocket.py",
    "server/child.py": "tests/cli/test_serve.py",
    "server/handshake.py": "tests/server/test_watch.py tests/server/test_http.py",
    "server/queues.py": "tests/server/test_engine.py tests/storage/test_many_streams.py",
    "server/request.py": "tests/server/test_connection.py tests/server/test_slow.py",
    "server/response.py": "tests/server/test_routes.py tests/server/test_http.py",
    "server/server.py": "composition: tests/server/test_routes.py tests/server/test_process.py tests/test_local.py",
    "storage/base.py": "the interface; tests/storage/test_contract.py tries each engine by it",
    "storage/embedded.py": "tests/storage/test_contract.py tests/model/test_model.py",
    "storage/engine.py": "tests/storage/test_contract.py tests/simulation/test_traffic.py",
    "storage/memory.py": "tests/storage/test_contract.py",
    "storage/redis/connection.py": "tests/storage/redis/test_client.py",
    "storage/redis/dead_letters.py": "tests/storage/test_dead_letters.py tests/storage/redis/test_engine.py",
    "storage/redis/pubsub.py": "tests/storage/redis/test_engine.py tests/reliability/test_redis_faults.py",
    "storage/redis/stream.py": "tests/storage/redis/test_engine.py tests/storage/test_contract.py",
    "storage/redis/topology.py": "tests/storage/redis/test_failover.py",
    "storage/rules/changes.py": "tests/storage/sqlite/test_engine.py",
    "storage/rules/consumers.py": "tests/storage/rules/test_stream.py tests/model/test_model.py",
    "storage/rules/dispatch.py": "tests/storage/rules/test_stream.py tests/model/test_model.py",
    "storage/rules/effects.py": "tests/storage/rules/test_stream.py",
    "storage/rules/entries.py": "tests/storage/rules/test_stream.py tests/model/test_model.py",
    "storage/rules/failures.py": "tests/storage/test_dead_letters.py tests/model/test_model.py",
    "storage/rules/groups.py": "tests/storage/rules/test_filters.py tests/storage/rules/test_retention.py",
    "storage/rules/state.py": "tests/storage/rules/test_filters.py",
    "storage/rules/statistics.py": "tests/storage/test_contract.py",
    "storage/sqlite/checkpoints.py": "tests/storage/sqlite/test_space.py tests/storage/sqlite/test_engine.py",
    "storage/sqlite/group_commit.py": "tests/storage/sqlite/test_engine.py tests/storage/sqlite/test_space.py",
    "storage/sqlite/permissions.py": "tests/storage/sqlite/test_data_file.py tests/cli/test_serve.py",
    "storage/sqlite/rows.py": "tests/storage/sqlite/test_engine.py tests/storage/sqlite/test_migration.py",
    "storage/ticker.py": "tests/server/test_watch.py",
}


def test_no_name_has_a_private_word() -> None:
    found: dict[str, set[str]] = {}
    for line in private_words():
        file, _, rest = line.partition(":")
        found.setdefault(file, set()).add(rest.rpartition(" ")[2])
    assert found == NAMES_LEFT


def test_no_text_has_a_private_word() -> None:
    """Comments, docstrings, messages, helps (docs/commands.md is made of them) and documents."""
    word = re.compile(rf"\b({'|'.join(sorted(PRIVATE_WORDS - PLAIN))})\b", re.IGNORECASE)
    paths = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".lua", ".sql"}]
    paths += [*(REPOSITORY / "docs").rglob("*.md"), *REPOSITORY.glob("*.md")]
    found = {
        path.relative_to(REPOSITORY).as_posix(): {
            hit.lower() for hit in word.findall(path.read_text("utf-8"))
        }
        for path in paths
    }
    assert {path: words for path, words in found.items() if words} == WORDS_LEFT


def test_few_private_functions_are_called_at_one_place() -> None:
    found = read_structure()
    once = found.called_once()
    assert len(once) <= MOST_CALLED_ONCE * len(found.functions), (
        f"{len(once)} of {len(found.functions)}: python -m tests.structure --list"
    )


def test_functions_are_short() -> None:
    found = read_structure()
    assert found.body_lines(0.5) <= MEDIAN_LINES
    assert found.body_lines(0.9) <= MOST_LINES


def modules() -> set[str]:
    """The modules with code in them: those of packages that only name the package have none."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py" or path.parent == ROOT
    }


def test_each_module_has_a_test_file_of_its_path_or_a_reason() -> None:
    mirrored = {
        module
        for module in modules()
        if (REPOSITORY / "tests" / module).with_name(f"test_{Path(module).name}").is_file()
    }
    assert modules() - mirrored - TESTED_ELSEWHERE.keys() == set(), "write a test file, or say what tries it"
    assert TESTED_ELSEWHERE.keys() & mirrored == set(), "they have a test file by now"
    assert TESTED_ELSEWHERE.keys() - modules() == set(), "there are no such modules"


def test_each_package_but_the_interface_holds_only_a_docstring() -> None:
    for path in ROOT.rglob("__init__.py"):
        if path.parent != ROOT:
            assert path.read_text("utf-8").count("\n") <= 10, f"{path}: code stands in modules"


@pytest.mark.parametrize("module", sorted(TESTED_ELSEWHERE))
def test_a_reason_names_tests_that_exist(module: str) -> None:
    reason = TESTED_ELSEWHERE[module]
    assert [name for name in re.findall(r"tests/\S+\.py", reason) if not (REPOSITORY / name).is_file()] == []
