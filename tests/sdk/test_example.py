"""The example of the official SDK in docs/sdks.md, as it stands there."""

from __future__ import annotations

from tests.conftest import Serve
from tests.sdk.conftest import RunSdk
from tests.support.documents import ROOT, blocks_of


def test_the_example_of_the_sdk_runs(serve: Serve, run_sdk: RunSdk) -> None:
    service = serve(storage="memory:")
    (example,) = blocks_of((ROOT / "docs" / "sdks.md").read_text(encoding="utf-8"), "python")
    assert "127.0.0.1:3030" in example
    done = run_sdk(example.replace("127.0.0.1:3030", f"127.0.0.1:{service.port}"))
    assert done.stdout == "b'[{}]'\n"
    assert service.stream().length() == 0
