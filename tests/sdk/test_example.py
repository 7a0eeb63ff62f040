"""The programs of the official SDK in docs/sdks.md, as they stand there."""

from __future__ import annotations

import pytest

from tests.conftest import Serve
from tests.sdk.conftest import RunSdk
from tests.support.documents import ROOT, blocks_of


@pytest.mark.parametrize(
    ("number", "port", "options", "printed"),
    [
        (0, 3030, (), "b'[{}]'\n"),
        (1, 3030, (), "b'work'\n"),
        (2, 3031, ("--model", "echo"), "b'[{}]'\n"),
    ],
)
def test_the_examples_of_the_sdk_run(
    serve: Serve, run_sdk: RunSdk, number: int, port: int, options: tuple[str, ...], printed: str
) -> None:
    """Each prints the payload, and leaves nothing in the queue."""
    service = serve(*options, storage="memory:")
    examples = blocks_of((ROOT / "docs" / "sdks.md").read_text(encoding="utf-8"), "python")
    assert len(examples) == 3
    example = examples[number]
    assert f"127.0.0.1:{port}" in example
    done = run_sdk(example.replace(f"127.0.0.1:{port}", f"127.0.0.1:{service.port}"))
    assert done.stdout == printed
    assert service.stream().length() == 0
