"""The official Python SDK's own queue tests pass against easq, and its bytes are easq's bytes."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Serve
from tests.sdk.conftest import RunSdk, StartSdk
from tests.support.proxy import Alternating

#: those of the SDK's nine queue tests that need no inference engine behind the queue
SEVEN = [
    "test_queue_get_by_index",
    "test_queue_get_by_request_id",
    "test_queue_truncate",
    "test_watch_async",
    "test_watch_with_auto_commit",
    "test_watch_with_manual_commit",
    "test_watch_with_two_watcher",
]

#: arguments: address, queue, token, then the names of the tests; without any, all that need no engine
RUN_THEIR_TESTS = """
import json, sys, time, unittest
from eas_prediction import test_queue_client as theirs

theirs.QueueEndpoint, theirs.QueueName, theirs.QueueToken = sys.argv[1:4]
theirs.SinkQueueName = theirs.QueueName + "/sink"

class Result(unittest.TextTestResult):
    passed = []
    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed.append(test._testMethodName)

everything = unittest.defaultTestLoader.getTestCaseNames(theirs.QueueClientTestCase)
wanted = sys.argv[4:] or [name for name in everything if "inference_service" not in name]
suite = unittest.TestSuite(theirs.QueueClientTestCase(name) for name in wanted)
began = time.monotonic()
result = unittest.TextTestRunner(stream=sys.stderr, resultclass=Result, verbosity=2).run(suite)
print(json.dumps({
    "ran": result.testsRun,
    "passed": result.passed,
    "skipped": len(result.skipped),
    "failures": [text for _, text in result.failures + result.errors],
    "seconds": time.monotonic() - began,
}))
"""


@pytest.mark.parametrize(
    ("queue", "token"),
    [
        pytest.param("qservice", "", id="no token"),
        pytest.param("qservice", "dG9rZW4=", id="a token", marks=pytest.mark.long),
        pytest.param("test_group.qservice", "", id="a queue of a group", marks=pytest.mark.long),
    ],
)
def test_the_sdks_own_queue_tests_pass(serve: Serve, run_sdk: RunSdk, queue: str, token: str) -> None:
    """Exactly the seven tests that need no engine ran, in their own order and process, and every one passed."""
    service = serve("--queue", queue, token=token)
    done = run_sdk(RUN_THEIR_TESTS, f"127.0.0.1:{service.port}", queue, token)
    outcome = json.loads(done.stdout)
    del outcome["seconds"]
    assert outcome == {"ran": 7, "passed": SEVEN, "skipped": 0, "failures": []}


@pytest.mark.long
def test_they_pass_while_requests_alternate_between_two_servers(
    serve: Serve, run_sdk: RunSdk, redis_url: str
) -> None:
    """Two servers on one Redis behind a load balancer that sends each request to the other one than the last."""
    services = [serve(storage=redis_url) for _ in range(2)]
    with Alternating(*(service.port for service in services)) as balancer:
        done = run_sdk(RUN_THEIR_TESTS, f"127.0.0.1:{balancer.port}", "qservice", "")
        assert balancer.connections > 2 * len(SEVEN)
    outcome = json.loads(done.stdout)
    del outcome["seconds"]
    assert outcome == {"ran": 7, "passed": SEVEN, "skipped": 0, "failures": []}


_QUEUE = """
import json, sys, time
from eas_prediction.queue_client import QueueClient
from eas_prediction.exception import PredictException

def client(name, **identity):
    queue = QueueClient(sys.argv[1], name)
    queue.set_token(sys.argv[2] if len(sys.argv) > 2 else "")
    queue.init(**identity)
    return queue
"""


def test_an_empty_get_with_the_sdks_defaults_is_an_empty_list(serve: Serve, run_sdk: RunSdk) -> None:
    """The SDK asks for 5 s and its socket waits 5 s: the service answers before, so there is no 502 and no retry."""
    service = serve("--queue", "q", storage="memory:")
    script = """
began = time.monotonic()
found = client("q").get()
print(json.dumps([found, time.monotonic() - began]))
"""
    found, took_s = json.loads(run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}").stdout)
    assert found == []
    assert 3 < took_s < 20  # once: a retried get takes 30 s


def test_a_wrong_token_is_the_sdks_401(serve: Serve, run_sdk: RunSdk) -> None:
    service = serve("--queue", "q", storage="memory:", token="right")
    script = """
try:
    client("q").put("x")
except PredictException as error:
    print(error.code)
"""
    assert run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}", "wrong").stdout.strip() == "401"
    assert service.stream("q").length() == 0


def test_every_operation_of_the_sdk_does_what_it_says(serve: Serve, run_sdk: RunSdk) -> None:
    """put with tags and priority, get by tag, search, delete, commit and truncate, in the SDK's own words."""
    service = serve("--queue", "q", storage="memory:")
    script = """
queue = client("q", uid="u1", gid="eas")
first, _ = queue.put(b"\\x00\\xff", {"foo": "b ar/\\u00fc"})
second, request_id = queue.put("urgent", {"_priority_": "1"})
found = queue.get(tags={"foo": "b ar/\\u00fc"}, auto_delete=False, timeout="0s")
answers = {
    "indexes": [first, second],
    "by tag": [[frame.index, frame.data.hex(), frame.tags["foo"]] for frame in found],
    "search": queue.search(int(first)),
    "gone": queue.search(99),
    "deleted": queue.delete(int(first)),
    "left": [frame.index for frame in queue.get(length=10, auto_delete=False, timeout="0s")],
}
watcher = queue.watch(0, 1)
frame = next(watcher.run())
answers["watched"] = [frame.index, frame.tags["requestId"] == request_id]
answers["pending"] = queue.search(int(second))
queue.commit([frame.index])
watcher.close()
answers["length"] = queue.attributes()["stream.length"]
queue.truncate(100)
answers["next"] = queue.put("x")[0]
print(json.dumps(answers))
"""
    done = run_sdk(_QUEUE + script, f"127.0.0.1:{service.port}")
    assert json.loads(done.stdout) == {
        "indexes": ["1", "2"],
        "by tag": [[1, "00ff", "b ar/ü"]],
        "search": {"ConsumerId": "eas.", "IsPending": False, "WaitCount": 1},
        "gone": {},
        "deleted": "OK",
        "left": [2],
        "watched": [2, True],
        "pending": {"ConsumerId": "eas.u1", "IsPending": True, "WaitCount": 0},
        "length": "0",
        "next": "3",
    }


_DIRECT = """
import json, sys
from eas_prediction import QueueClient
from eas_prediction.predict_client import ENDPOINT_TYPE_DIRECT

address, token = sys.argv[1:]

def client(name):
    made = QueueClient(address, name)
    made.set_token(token)
    made.set_endpoint_type(ENDPOINT_TYPE_DIRECT)
    made.init(uid="u", gid="g")
    return made

queue, sink = client("qservice"), client("qservice/sink")
index, request_id = queue.put("[{}]", tags={"k": "v"})
watcher = queue.watch(0, 5)
frame = next(watcher.run())
watcher.close()
committed = queue.commit(frame.index).decode()
sink.put("answer", tags={"requestId": request_id})
(answer,) = sink.get(request_id=request_id)
left = queue.attributes()["stream.length"]
print(json.dumps([frame.tags["k"], frame.data.decode(), committed, answer.data.decode(), left]))
"""


@pytest.mark.parametrize("token", ["", "dG9rZW4="], ids=["no token", "a token"])
def test_the_sdk_finds_a_queue_by_discovery(serve: Serve, run_sdk: RunSdk, token: str) -> None:
    """Its direct mode, which asks where the instances of a service are: those of a queue are the service itself."""
    service = serve(storage="memory:", token=token)
    done = run_sdk(_DIRECT, f"127.0.0.1:{service.port}", token)
    assert json.loads(done.stdout.splitlines()[-1]) == ["v", "[{}]", "OK", "answer", "0"]


def test_a_service_that_was_killed_is_watched_on(serve: Serve, start_sdk: StartSdk) -> None:
    """The SDK's watcher reconnects by itself after the service was killed, and nothing it had not committed is lost."""
    service = serve("--queue", "q")
    service.wanted_port = service.port  # it comes back where it was, as a daemon would
    for number in range(4):
        service.stream("q").put(str(number).encode())
    script = """
queue = client("q", uid="u1")
queue.set_retry_count(0)
committed = set()
for frame in queue.watch(0, 2).run():
    try:
        queue.commit(frame.index)
    except PredictException:
        continue  # the service is away: it will deliver this one again
    committed.add(frame.data.decode())
    if len(committed) == 1:
        print("one is committed", flush=True)
        input()
    if len(committed) == 4:
        break
print(json.dumps(sorted(committed)))
"""
    with start_sdk(_QUEUE + script, f"127.0.0.1:{service.port}") as sdk:
        assert sdk.stdout is not None
        assert sdk.stdout.readline() == "one is committed\n"
        service.kill()
        service.start()
        rest, errors = sdk.communicate("\n", timeout=60)
    assert sdk.returncode == 0, errors
    assert json.loads(rest) == ["0", "1", "2", "3"]
    assert service.stream("q").length() == 0


_ORACLE = """
import json, sys
from eas_prediction.queue_types import queueservice_pb2 as theirs
import google.protobuf
from easq.model import Frame
from easq.protocol.frames import *
from easq.protocol.operations import Codec

frames = [
    Frame(index, dict(tags), bytes.fromhex(data), message)
    for index, tags, data, message in json.loads(sys.argv[1])
]
for frame in frames:
    parsed = theirs.DataFrameProto()
    parsed.ParseFromString(encode_frame(frame, Codec.PROTOBUF))
    assert Frame(parsed.index, dict(parsed.tags), parsed.data, parsed.message) == frame
    made = theirs.DataFrameProto(index=frame.index, tags=frame.tags, data=frame.data, message=frame.message)
    assert decode_frame(made.SerializeToString(), Codec.PROTOBUF) == frame
    assert made.SerializeToString(deterministic=True) == encode_frame(frame, Codec.PROTOBUF)

listing = theirs.DataFrameListProto()
listing.ParseFromString(encode_frames(frames, Codec.PROTOBUF))
assert [item.index for item in listing.index] == [frame.index for frame in frames]
assert decode_frames(listing.SerializeToString(), Codec.PROTOBUF) == frames
assert listing.SerializeToString(deterministic=True) == encode_frames(frames, Codec.PROTOBUF)

attributes = {"stream.length": "0", "meta.name": "q\\u00fc", "": "empty"}
parsed = theirs.AttributesProto()
parsed.ParseFromString(encode_attributes(attributes, Codec.PROTOBUF))
assert dict(parsed.attributes) == attributes
assert decode_attributes(parsed.SerializeToString(), Codec.PROTOBUF) == attributes
assert parsed.SerializeToString(deterministic=True) == encode_attributes(attributes, Codec.PROTOBUF)

missing = [name for name in ("httpcore", "click", "rich", "aiohttp") if name in sys.modules]
print(json.dumps([len(frames), google.protobuf.__version__, missing]))
"""


def test_easqs_bytes_are_the_sdks_bytes(run_sdk: RunSdk) -> None:
    """In one interpreter with the SDK's generated messages, each reads what the other wrote, and both write the same.

    The wire is importable there: it needs protobuf alone, and the oldest that the SDK allows.
    """
    frames = [
        [0, {}, "", ""],
        [5, {"requestId": "r-5"}, b"data5".hex(), ""],
        [1, {"b": "2", "a": "1", "": "", "ü": "\u202e中"}, bytes(range(256)).hex(), "message"],
        [2**53, {"k": "v" * 1000}, "00" * 20_000, ""],
        [2**64 - 1, {f"key{number}": str(number) for number in range(50)}, "ff", "x"],
    ]
    assert json.loads(run_sdk(_ORACLE, json.dumps(frames)).stdout) == [len(frames), "3.20.3", []]
