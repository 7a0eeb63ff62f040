"""One command, from the shell's return key to its prompt."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.comparison import Comparison
from tests.bench.world import World, seconds

PUT_ONE = """
import sys
from eas_prediction import QueueClient
queue = QueueClient(sys.argv[1], sys.argv[2])
queue.init()
print(queue.put("x"))
"""


def _version(world: World) -> float:
    return seconds(lambda: world.easq("--version"))


def _put_one(world: World) -> float:
    url = world.service.url("q0")
    return seconds(lambda: world.easq("put", "-d", "x", "--url", url))


def _imports(code: str) -> Callable[[World], float]:
    return lambda world: seconds(lambda: world.python(code))


def _script_put_one(world: World) -> float:
    address = f"127.0.0.1:{world.service.port}"
    world.sdk  # noqa: B018  # made before the clock runs
    return seconds(lambda: world.script(PUT_ONE, address, "q0"))


COMPARISONS = (
    Comparison(
        "`easq --version`", "`python -c 'import click'`", "s", _version, _imports("import click"),
        most=1.5, repeats=5,
    ),
    Comparison(
        "`easq put -d x`", "`python -c 'import click, httpx'`", "s", _put_one, _imports("import click, httpx"),
        most=1.0, repeats=9,
    ),
    Comparison(
        "`easq put -d x`", "a script doing one put with eas-prediction", "s", _put_one, _script_put_one,
        most=0.7, repeats=3,
    ),
)  # fmt: skip
