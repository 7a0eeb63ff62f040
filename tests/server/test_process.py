"""Settings of the whole process: the command changes them, an import or a service in a program does not."""

from __future__ import annotations

import json
import subprocess
import sys

_SHOW = """
import asyncio, gc, json, resource, signal, sys, threading

resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def state():
    return [
        gc.get_threshold(),
        gc.get_freeze_count() > 0,
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        [str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE)],
        sys.excepthook is sys.__excepthook__,
        threading.active_count(),
    ]

states = [state()]
import easq.emulator.emulator
from easq.server.process import tune_process
from easq.server.server import ServerSettings
states.append(state())

async def run():
    server, _ = easq.emulator.emulator.open_service(ServerSettings(port=0))
    await server.start()
    states.append(state())
    await server.stop()

asyncio.run(run(), debug=False)
states.append(state())
tune_process()
states.append(state())
print(json.dumps(states))
"""


def test_only_the_command_changes_settings_of_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", _SHOW], capture_output=True, text=True, check=True)
    before, imported, running, stopped, tuned = json.loads(done.stdout)
    assert imported == before
    running[3], stopped[3] = before[3], stopped[3]  # asyncio.run has SIGINT for itself meanwhile
    assert running == stopped == before
    assert tuned[0] == [5000, 10, 10]
    assert tuned[1] is True
    assert tuned[2] > before[2]
