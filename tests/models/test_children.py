"""No command outlives easq, however it ends, and as PID 1 it reaps what is not its own; with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from easq.models.children import Children
from tests.cli.conftest import Easq, easq, names, queue, url
from tests.conftest import Serve
from tests.support.waiting import eventually

__all__ = ["easq", "names", "queue", "url"]  # fixtures are used by name

#: a command that does not end, and has a child that does not either; it writes down both, a little after it began
ENDLESS = "sleep 1000 & sleep 0.2; echo $$ $! >> pids; wait"


def runs(pid: int) -> bool:
    """Whether the process is there and no zombie: nobody may reap what we are not the parent of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def written(folder: Path, count: int) -> list[int]:
    """The `count` numbers of processes that commands wrote down in `folder`."""
    file = folder / "pids"
    eventually(lambda: file.exists() and len(file.read_text().split()) == count)
    return [int(word) for word in file.read_text().split()]


@pytest.fixture
def children() -> Iterator[Children]:
    """Those of a process of its own, as it were."""
    made = Children()
    yield made
    if made._guard is not None:
        made._guard.kill()


@pytest.mark.parametrize("by", ["watch", "work"])
def test_a_command_is_killed_with_easq_and_with_all_its_group(queue: Easq, by: str) -> None:
    queue("put", "-q", "-d", "x")
    with queue.start(by, "-q", "--", "sh", "-c", ENDLESS) as process:
        pids = written(queue.home, 2)
        assert all(map(runs, pids))
        process.kill()
        eventually(lambda: not any(map(runs, pids)))


def test_the_model_of_a_service_is_killed_with_it(easq: Easq, serve: Serve, tmp_path: Path) -> None:
    script = tmp_path / "model.sh"
    script.write_text(f"cd {tmp_path}; {ENDLESS}")
    service = serve("--model", f"exec:sh {script}", storage="memory:")
    for number in (1, 2):
        easq("put", "-q", "-d", "x", "--url", service.url())
        written(tmp_path, 2 * number)
    pids = written(tmp_path, 4)
    service.kill()
    eventually(lambda: not any(map(runs, pids)))


def test_what_a_command_leaves_in_the_background_lives_on(queue: Easq) -> None:
    """It had its time, and was not waited for."""
    queue("put", "-q", "-d", "x")
    leave = "sleep 1000 >/dev/null 2>&1 & echo $! >> pids"
    with queue.start("watch", "-q", "--", "sh", "-c", leave) as process:
        (pid,) = written(queue.home, 1)
        eventually(lambda: queue("info", "--field", "stream.length").text == "0\n")
        process.kill()
        process.wait()
    try:
        with subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE) as later:
            later.communicate(b"\n")  # the guard had the time of a process to do harm
        assert runs(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_guard_that_is_killed_or_stands_still_is_replaced(children: Children, number: int) -> None:
    """The new one knows the commands from before, and the old one does no harm, and holds nobody up."""
    first = children.start(["sleep", "1000"])
    old = children._guard
    assert old is not None
    old.send_signal(number)
    for pid in range(100_000, 120_000):  # a pipe holds some thousands of them
        with children._lock:
            children._tell(f"- {pid}\n")
    second = children.start(["sleep", "1000"])
    assert children._guard is not None
    assert children._guard.pid != old.pid
    assert first.poll() is None
    children._guard.stdin.close()  # type: ignore[union-attr]
    assert (first.wait(), second.wait()) == (-signal.SIGKILL, -signal.SIGKILL)
    children._guard.wait()


def test_without_a_guard_commands_run_all_the_same(
    children: Children, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once."""

    def fail() -> None:
        raise OSError("no shell")

    monkeypatch.setattr("easq.models.children._begin_guard", fail)
    for _ in range(2):
        process = children.start(["true"])
        assert process.wait() == 0
        children.ended(process.pid)
    assert [record.getMessage() for record in caplog.records] == [
        "commands will outlive easq if it is killed: no guard process: no shell"
    ]


#: what runs as the parent of all orphans below it, as PID 1 is of all
_REAPER = """
import ctypes, sys, threading, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
from easq.models.children import children
from easq.models.command import Exec
from easq.models.base import Call, ModelFailed

reaped, over = 0, False
def reap():
    global reaped
    while not over:
        reaped += children.reap()

thread = threading.Thread(target=reap)
thread.start()
said = set()
def call():
    for _ in range(20):
        try:
            Exec(["sh", "-c", "(true &) ; exit 7"]).run(Call(b""))
        except ModelFailed as error:
            said.add(str(error))
callers = [threading.Thread(target=call) for _ in range(4)]
[caller.start() for caller in callers]
[caller.join() for caller in callers]
end = time.monotonic() + 20
while reaped < 80 and time.monotonic() < end:
    time.sleep(0.01)
over = True
thread.join()
print(said, reaped, children.reap())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")
def test_orphans_are_reaped_and_no_command_loses_its_status() -> None:
    """80 commands that fail with 7 and leave an orphan each, while another thread reaps without pause."""
    done = subprocess.run([sys.executable, "-c", _REAPER], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{'exit status 7'} 80 0\n", "")


def test_as_pid_1_easq_leaves_no_zombies(easq: Easq) -> None:
    """In a name space of its own, where it is PID 1; the command has the orphans, and counts the zombies."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody have a name space of processes")
    count = (
        "for i in 1 2 3 4 5; do (true &); done; for i in $(seq 100); do"
        " n=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ' Z 1 '); [ $n = 0 ] && exit 7; sleep 0.1; done; echo $n"
    )
    done = subprocess.run(
        [*unshare, *easq.argv(["serve", "--storage", "memory:", "--", "sh", "-c", f"sleep 0.3; {count}"])],
        env=easq.environ,
        cwd=easq.home,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
