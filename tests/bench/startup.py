"""Processor time of one command, user and system, from its start to its exit."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.comparison import Comparison
from tests.bench.world import World, processor_seconds

PUT_ONE = """
import sys
from eas_prediction import QueueClient
queue = QueueClient(sys.argv[1], sys.argv[2])
queue.init()
print(queue.put("x"))
"""


def _easq(*args: str, **environ: str) -> Callable[[World], float]:
    return lambda world: processor_seconds(lambda: world.easq(*args, **environ))


def _put_one(world: World) -> float:
    url = world.service.url("q0")
    return processor_seconds(lambda: world.easq("put", "-d", "x", "--url", url))


def _python(code: str) -> Callable[[World], float]:
    return lambda world: processor_seconds(lambda: world.python(code))


def _script_put_one(world: World) -> float:
    address = f"127.0.0.1:{world.service.port}"
    world.sdk  # noqa: B018  # made before it is measured
    return processor_seconds(lambda: world.script(PUT_ONE, address, "q0"))


_COMPLETE = {"_EASQ_COMPLETE": "bash_complete", "COMP_WORDS": "easq pu", "COMP_CWORD": "1"}

COMPARISONS = (
    Comparison(
        "`import easq`", "`python -c pass`", "s", _python("import easq"), _python("pass"),
        most=1.3, repeats=7,
    ),
    *(
        Comparison(name, "`python -c 'import click'`", "s", run, _python("import click"), most=1.4, repeats=7)
        for name, run in (
            ("`easq --version`", _easq("--version")),
            ("`easq --help`", _easq("--help")),
            ("completion of `easq pu`", _easq(**_COMPLETE)),
        )
    ),
    Comparison(
        "`easq put -d x`", "`python -c 'import click, httpx'`", "s", _put_one, _python("import click, httpx"),
        most=1.0, repeats=9,
    ),
    Comparison(
        "`easq put -d x`", "a script doing one put with eas-prediction", "s", _put_one, _script_put_one,
        most=0.7, repeats=7,
    ),
)  # fmt: skip
