"""Limits of a command's memory: an answer of 60 MB takes a few times its size, whatever its content claims."""

from __future__ import annotations

import sys

import pytest

from tests.cli.conftest import Easq
from tests.client.servers import answering, reply

JSON, PROTOBUF = "application/json", "application/vnd.google.protobuf"
BYTES = 60_000_000
#: MB in all: Python and easq itself, the answer, and what is made of it
MOST = 200
#: runs easq, and says on the last line of stderr the most that it ever had, in kB
PROGRAM = """
import sys
from easq.cli.main import run
status = run(sys.argv[1:])
with open("/proc/self/status") as file:
    print(next(line for line in file if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""


def tags() -> bytes:
    """One frame whose tags are all names without a value."""
    entries = b"".join(b"\x12\x08\x0a\x06%06x" % number for number in range(BYTES // 30))
    size = len(entries)
    return (
        b"\x0a"
        + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21])
        + entries
    )


@pytest.mark.skipif(sys.platform != "linux", reason="the most memory of a process is read from /proc")
@pytest.mark.parametrize(
    ("body", "media_type", "said"),
    [
        (b"[" + b"{}," * (BYTES // 3) + b"{}]", JSON, "more than 250000 values of JSON"),
        (b"\x0a\x00" * (BYTES // 2), PROTOBUF, "more than 10 frames"),
        (tags(), PROTOBUF, "more than 8192 fields in one message"),
    ],
    ids=["objects", "frames", "tags"],
)
def test_a_bomb_is_refused_before_it_goes_off(easq: Easq, body: bytes, media_type: str, said: str) -> None:
    with answering(reply(200, body, Content_Type=media_type)) as server:
        argv = [sys.executable, "-c", PROGRAM, "get", "-l", "10", "--url", server.url]
        with easq.start(argv=argv) as process:
            out, err = process.communicate()
    *told, most = err.decode().strip().splitlines()
    assert (process.returncode, out) == (5, b"")
    assert said in told[0]
    assert int(most.split()[1]) < MOST * 1000
