"""Request ids: UUIDs of version 7 that no two processes share."""

from __future__ import annotations

import subprocess
import sys
import uuid

from easq.protocol.request_ids import new_request_id

_FORKS = """
import os
from easq.protocol.request_ids import new_request_id
for _ in range(3):
    pid = os.fork()
    if not pid:
        print(new_request_id(7), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
print(new_request_id(7))
"""


def test_an_id_is_a_uuid_that_begins_with_the_time() -> None:
    moment_ms = 0x0123_4567_89AB
    made = [uuid.UUID(new_request_id(moment_ms)) for _ in range(100)]
    assert {(one.version, one.variant) for one in made} == {(7, uuid.RFC_4122)}
    assert {one.int >> 80 for one in made} == {moment_ms}
    assert len(set(made)) == 100


def test_processes_that_a_program_forks_give_different_ids() -> None:
    done = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, check=True)
    assert len(set(done.stdout.split())) == 4
