"""Answers of the real service, recorded on the vendor's pages, and answers of servers that are no queue service.

The whole output is compared, on a terminal and before a pipe, so that every line of the vendor's sample session but
the ones that vary (a duration) stands here in full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import parse_qs

import pytest

from easq.model import Frame
from easq.protocol.frames import encode_frame, encode_frames
from easq.protocol.operations import Codec
from tests.cli.conftest import Easq, finish
from tests.client.servers import Peer, Server

PROTOBUF = "application/vnd.google.protobuf"

#: attributes of the second generation, as `eascmd stream info` shows them
SECOND_GENERATION = """\
consumers.list.[0] : Id: imageasync.imageasync-35d72370-5f576f7c8d-2mdb4, Index: 0, Pending: 0, Status: Running, \
Idle: 19.997s, Window: 5, Slots: 5, AutoCommit: false
consumers.stats.total : 1
consumers.status.total : 1
groups.list.[0] : Id: imageasync, Index: 0, Pending: 0, Delivered: 1, Consumers: 1
meta.header.group : X-EAS-QueueService-Gid
meta.header.priority : X-EAS-QueueService-Priority
meta.header.user : X-EAS-QueueService-Uid
meta.maxPayloadBytes : 8192
meta.name : imageasync-queue-38895e88
meta.state : Normal
stream.approxMaxLength : 230399
stream.firstEntry : 0
stream.lastEntry : 0
stream.length : 0
"""
#: attributes of the first generation, as HTTP gave them
FIRST_GENERATION = (
    '{"meta.backend":"redis","meta.header.groupIdentifyHeader":"X-EAS-QueueService-Redis-Gid",'
    '"meta.header.userIdentifyHeader":"X-EAS-QueueService-Redis-Uid","meta.maxPayloadBytes":"57600",'
    '"stream.approxMaxLength":"8192","stream.firstEntry":"6946744471463657472",'
    '"stream.lastEntry":"6946744570403094528","stream.length":"2"}'
)

TEXT = "text/plain; charset=utf-8"
#: index, request id, ts@sink, ts@source, data
GOT = (
    (1, "e47b76e2-2648-40fe-9197-a268015cbd1f", "", "1685802680575", b"data1"),
    (2, "51d13952-6ba3-4d52-b548-e58837675c7a", "", "1685807531686", b"data2"),
    (3, "ef6940e3-159c-45f3-a96d-bc0acd71275f", "", "1685807531701", b"OK"),
    (4, "2a5645b6-9ee5-4026-bdee-fab31e435934", "", "1685807531715", b"data4"),
    (5, "64ba6aaf-49b0-45c7-8d79-6cf6dc1065d0", "", "1685807531730", b"data5"),
)
GOT_TEXT = """\
[OK] [0 - 1] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=e47b76e2-2648-40fe-9197-a268015cbd1f \
ts@source=1685802680575] data1
[OK] [1 - 2] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=51d13952-6ba3-4d52-b548-e58837675c7a \
ts@source=1685807531686] data2
[OK] [2 - 3] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=ef6940e3-159c-45f3-a96d-bc0acd71275f \
ts@source=1685807531701] OK
[OK] [3 - 4] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=2a5645b6-9ee5-4026-bdee-fab31e435934 \
ts@source=1685807531715] data4
[OK] [4 - 5] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=64ba6aaf-49b0-45c7-8d79-6cf6dc1065d0 \
ts@source=1685807531730] data5
"""
WATCHED = (
    (4, "2a5645b6-9ee5-4026-bdee-fab31e435934", "1685807531718", "1685807531715", b"data4"),
    (5, "64ba6aaf-49b0-45c7-8d79-6cf6dc1065d0", "1685807531733", "1685807531730", b"data5"),
)
WATCHED_LINES = (
    "[OK] [0 - 4] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=2a5645b6-9ee5-4026-bdee-fab31e435934"
    " ts@sink=1685807531718 ts@source=1685807531715] data4",
    "[OK] [1 - 5] tags[Header:Content-Type=text/plain; charset=utf-8 requestId=64ba6aaf-49b0-45c7-8d79-6cf6dc1065d0"
    " ts@sink=1685807531733 ts@source=1685807531730] data5",
)


def frame(index: int, request_id: str, sink: str, source: str, data: bytes) -> Frame:
    tags = {"Header:Content-Type": TEXT, "requestId": request_id, "ts@source": source}
    return Frame(index, {**tags, "ts@sink": sink} if sink else tags, data)


class Recorded:
    """A service that answers each operation with the recorded answer, and stores the requests."""

    def __init__(self) -> None:
        self.attributes = json.dumps(dict(line.split(" : ", 1) for line in SECOND_GENERATION.splitlines()))
        self.put: tuple[bytes, Mapping[str, str]] = (b"1", {"X-Eas-Queueservice-Request-Id": "r"})
        self.asked: list[tuple[str, str, bytes]] = []

    def __call__(self, _server: Server, peer: Peer) -> None:
        while True:
            head, body = peer.read_request()
            if not head:
                return
            method, target, _ = head.split("\r\n")[0].split(" ")
            query = parse_qs(target.partition("?")[2])
            if "upgrade: websocket" in head.lower():
                self._watch(peer, head)
                return
            self.asked.append((method, target.partition("?")[2], body))
            if method == "POST":
                peer.answer(body=self.put[0], **self.put[1])
            elif method != "GET":
                peer.answer(body=b"OK")
            elif "_attrs_" in query:
                peer.answer(body=self.attributes.encode(), Content_Type="application/json")
            else:
                wanted = query.get("requestId", [""])[0]
                frames = [frame(*one) for one in GOT if wanted in ("", one[1])]
                peer.answer(body=encode_frames(frames, Codec.PROTOBUF), Content_Type=PROTOBUF)

    def _watch(self, peer: Peer, head: str) -> None:
        peer.buffer = head.encode() + b"\r\n\r\n" + peer.buffer
        peer.upgrade()
        for one in WATCHED:
            peer.send_frame(encode_frame(frame(*one), Codec.PROTOBUF))
        peer.serve_pings()


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def far(easq: Easq, recorded: Recorded) -> Iterator[Easq]:
    """easq whose current profile is the recorded service."""
    with Server(recorded) as server:
        easq("config", "--url", f"http://127.0.0.1:{server.port}/api/predict/qservice")
        yield easq


def test_info_of_the_second_generation(far: Easq) -> None:
    expected = f"[OK] Attributes: \n{SECOND_GENERATION}"
    assert far("info").text == expected
    assert finish(far.terminal("info")) == (0, expected)


def test_info_of_the_first_generation_keeps_63_bit_indexes(far: Easq, recorded: Recorded) -> None:
    recorded.attributes = FIRST_GENERATION
    pairs = json.loads(FIRST_GENERATION)
    assert far("info").text == "[OK] Attributes: \n" + "".join(f"{k} : {pairs[k]}\n" for k in sorted(pairs))
    assert json.loads(far("info", "-o", "json").out) == pairs
    fields = far("info", "--field", "stream.firstEntry", "--field", "stream.lastEntry")
    assert fields.text == "6946744471463657472\n6946744570403094528\n"


def test_an_index_of_the_first_generation_stays_exact(far: Easq, recorded: Recorded) -> None:
    """In text, in JSON, and on its way back into delete, commit, get and trunc."""
    recorded.put = (
        b"6944957106013339648",
        {"X-Eas-Queueservice-Request-Id": "4033eb55-e783-4922-9777-68d6a1383c76"},
    )
    assert far("put", "-q", "-d", "[{}]").text == "[OK] 6944957106013339648\n"
    record = json.loads(far("put", "-q", "-d", "[{}]", "-o", "json").out)
    assert record["index"] == "6944957106013339648"
    assert record["request_id"] == "4033eb55-e783-4922-9777-68d6a1383c76"
    recorded.asked.clear()
    for command in (("delete", "-y"), ("commit",), ("get", "-l", "9"), ("trunc", "-y"), ("negative",)):
        assert far(command[0], "6944957106013339648", *command[1:]).status == 0
    assert len(recorded.asked) == 5
    assert all("6944957106013339648" in query for _, query, _ in recorded.asked)


def test_put_and_its_totals(far: Easq, recorded: Recorded) -> None:
    recorded.put = (b"1033", {"X-Eas-Queueservice-Request-Id": "4e034bnvb-e783-4272-9333-68x6a1v8dc6x"})
    done = far("put", "-d", "[{}]")
    assert (done.status, done.text) == (0, "[OK] 1033\n")
    lines = done.err.splitlines()
    assert lines.pop(1).startswith("Total time cost: ")
    assert lines == ["[INFO] Put data done.", "Total size: 4.00 B", "Total: 1, success: 1, failed: 0"]


def test_get_shows_the_session_of_the_page(far: Easq) -> None:
    assert far("get", "-l10", "--timeout=100ms").text == GOT_TEXT
    assert finish(far.terminal("get", "-l", "10", "--timeout=100ms")) == (0, GOT_TEXT)
    one = far("get", "--tags", "requestId=ef6940e3-159c-45f3-a96d-bc0acd71275f")
    assert one.text == GOT_TEXT.splitlines(keepends=True)[2].replace("[2 - 3]", "[0 - 3]")


def test_delete_and_trunc_need_a_yes(far: Easq, recorded: Recorded) -> None:
    """Piped, nothing is sent without -y; on a terminal the session reads as on the page."""
    for command in (("delete", "3"), ("trunc", "4")):
        done = far(*command)
        assert (done.status, done.out) == (2, b"")
        assert done.err.endswith("easq: not confirmed, and no terminal to ask on\nhint: -y confirms\n")
    assert recorded.asked == []
    deleting = far.terminal("delete", "3")
    deleting.expect_exact("Deleting index(es):\r\n3 [y/N]")
    assert deleting.before == b""
    deleting.sendline("y")
    assert finish(deleting) == (0, "y\n[OK] deleted\n")
    truncating = far.terminal("trunc", "4")
    truncating.expect_exact("trunc stream from index: 4 [y/N]")
    assert truncating.before == b""
    truncating.sendline("y")
    assert finish(truncating) == (0, "y\n[OK] truncated\n")
    assert [(method, query) for method, query, _ in recorded.asked] == [
        ("DELETE", "_indexes_=3"),
        ("DELETE", "_index_=4&_trunc_=true"),
    ]


def test_watch_commits_and_negatives_what_is_answered(far: Easq, recorded: Recorded) -> None:
    terminal = far.terminal("watch", "-n", "2")
    terminal.expect_exact(
        "[INFO] Start to watch: index: 0, indexOnly: false, autoCommit: false, window: 10\r\n"
    )
    assert terminal.before == b""
    terminal.expect_exact(f"{WATCHED_LINES[0]}\r\ncommit: 4 ? [Y/n]")
    assert terminal.before == b""
    terminal.sendline("")
    terminal.expect_exact(f"{WATCHED_LINES[1]}\r\ncommit: 5 ? [Y/n]")
    assert terminal.before == b"\r\n"
    terminal.sendline("n")
    terminal.expect_exact("negative: 5 ? [Y/n]")
    assert terminal.before == b"n\r\n"
    terminal.sendline("y")
    assert finish(terminal) == (0, "y\n")
    assert [(method, query) for method, query, _ in recorded.asked] == [
        ("PUT", "_indexes_=4"),
        ("PUT", "_indexes_=5&_negative_=true"),
    ]


def test_watch_piped_shows_the_same_items(far: Easq) -> None:
    done = far("watch", "--auto-commit", "-n", "2")
    assert done.status == 0
    assert done.text == "".join(f"{line}\n" for line in WATCHED_LINES)
    assert done.err == "[INFO] Start to watch: index: 0, indexOnly: false, autoCommit: true, window: 10\n"


# -- what is no queue service ------------------------------------------------------------------------------------------

HTML = b"<!DOCTYPE html><html><body>Welcome to nginx!</body></html>"
HUGE = b"{" + b",".join(b'"k%d":"%s"' % (n, b"v" * 1000) for n in range(10_000)) + b"}"


def always(body: bytes, content_type: str) -> Callable[[Server, Peer], None]:
    def handler(_server: Server, peer: Peer) -> None:
        while peer.read_request()[0]:
            peer.answer(body=body, Content_Type=content_type)

    return handler


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(HTML, "text/html", id="HTML"),
        pytest.param(b"", "text/plain", id="empty"),
        pytest.param(b'{"stream.length":"1","meta', "application/json", id="half JSON"),
        pytest.param(HUGE, "application/json", id="10 MB of attributes"),
        pytest.param(b"\x00\xff\xfe", "application/octet-stream", id="bytes"),
    ],
)
@pytest.mark.parametrize("command", [("info",), ("put", "-d", "x"), ("get",), ("get", "-l", "3")])
def test_a_server_that_is_no_queue_service(
    easq: Easq, body: bytes, content_type: str, command: tuple[str, ...]
) -> None:
    """Exit code 5 and one line of error. An empty answer to a get is how some services report no data."""
    with Server(always(body, content_type)) as server:
        done = easq(*command, "--url", f"http://127.0.0.1:{server.port}/api/predict/q")
    if not body and command[0] == "get":
        assert (done.status, done.out) == (3, b"")
        return
    assert (done.status, done.out) == (5, b"")
    error, *rest = [line for line in done.err.splitlines() if not line.startswith(("[INFO]", "Total"))]
    assert error.startswith("easq: ")
    assert len(error) < 600
    assert all(line.startswith("hint: ") for line in rest)
    assert "Traceback" not in done.err
