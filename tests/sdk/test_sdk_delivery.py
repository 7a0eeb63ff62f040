"""The official SDK's consumers: acknowledged twice, gone without a goodbye, two of them in one group."""

from __future__ import annotations

import json
from contextlib import ExitStack

from tests.conftest import Serve
from tests.sdk.conftest import RunSdk, StartSdk
from tests.sdk.test_official_sdk import _QUEUE
from tests.support.waiting import eventually


def test_committing_twice_is_no_error(serve: Serve, run_sdk: RunSdk) -> None:
    """As after a reconnect, when what was committed already is committed once more; index 0 and unknown ones too."""
    service = serve("--queue", "q")
    script = """
queue = client("q", uid="u1")
for n in range(3):
    queue.put(str(n))
watcher = queue.watch(0, 3)
frames = watcher.run()
seen = [next(frames).index for _ in range(3)]
answers = [queue.commit(index) for index in seen for _ in range(2)] + [queue.commit([0, 77] + seen)]
answers = [answer.decode() if isinstance(answer, bytes) else answer for answer in answers]
watcher.close()
print(json.dumps([seen, answers, queue.attributes()["stream.length"]]))
"""
    seen, answers, length = json.loads(run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}").stdout)
    assert seen == [1, 2, 3]
    assert answers == ["OK"] * 7
    assert length == "0"


def test_a_watcher_that_left_without_a_close_frame_comes_back_to_its_items(
    serve: Serve, run_sdk: RunSdk
) -> None:
    """The same uid watches again at once and has its uncommitted items again, in order, marked as redelivered; each
    alone, since it may be the one that its process died of.
    """
    service = serve("--queue", "q", "--leave-grace", "60s")
    script = """
queue = client("q", uid="u1")
for n in range(4):
    queue.put(str(n))
first = queue.watch(0, 3)
frames = first.run()
seen = [next(frames).index for _ in range(3)]
queue.commit(seen[0])
first.close()
second = queue.watch(0, 3)
frames = second.run()
again = []
for _ in range(3):
    again.append(next(frames))
    queue.commit(again[-1].index)
print(json.dumps([seen, [[frame.index, frame.tags.get("deliveryCount")] for frame in again]]))
second.close()
"""
    seen, again = json.loads(run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}").stdout)
    assert seen == [1, 2, 3]
    # item 4 was handed out when item 1 was committed; whether it was read before the first watch ended is chance
    assert again[:2] == [[2, "2"], [3, "2"]]
    assert again[2][0] == 4


def test_two_processes_of_one_group_share_the_items(serve: Serve, start_sdk: StartSdk) -> None:
    """Each item goes to one of them, none to both, and together they have them all."""
    service = serve("--queue", "q")
    script = """
queue = client("q", uid=sys.argv[2], gid="workers")
seen = []
for frame in queue.watch(0, 5).run():
    if frame.data == b"stop":
        queue.commit(frame.index)
        break
    seen.append(frame.index)
    queue.commit(frame.index)
print(json.dumps(seen), flush=True)
os._exit(0)
"""
    stream = service.stream("q")
    with ExitStack() as stack:
        processes = [
            stack.enter_context(start_sdk("import os\n" + _QUEUE + script, f"127.0.0.1:{service.port}", uid))
            for uid in ("u1", "u2")
        ]
        eventually(lambda: stream.attributes()["consumers.stats.total"] == "2")
        for number in range(200):
            stream.put(str(number).encode())
        eventually(lambda: stream.length() == 0)
        shares = []
        for _ in processes:
            # an idle window is the emptier one: whoever has not stopped yet gets the next word to stop
            stream.put(b"stop")
            eventually(lambda: stream.length() == 0)
        for process in processes:
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            shares.append(json.loads(out))
    assert sorted(shares[0] + shares[1]) == list(range(1, 201))
    assert all(shares), shares


def test_priority_given_as_a_tag_goes_first(serve: Serve, run_sdk: RunSdk) -> None:
    """The SDK has no argument for the priority: its users write it among the tags."""
    service = serve("--queue", "q")
    script = """
queue = client("q", uid="u1")
queue.put("a")
queue.put("b", tags={"_priority_": "1", "kind": "urgent"})
watcher = queue.watch(0, 1)
frames = watcher.run()
seen = []
for _ in range(2):
    frame = next(frames)
    seen.append([frame.data.decode(), sorted(set(frame.tags) & {"_priority_", "kind"})])
    queue.commit(frame.index)
watcher.close()
print(json.dumps(seen))
"""
    done = run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}")
    assert json.loads(done.stdout) == [["b", ["kind"]], ["a", []]]
