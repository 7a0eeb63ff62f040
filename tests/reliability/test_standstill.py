"""The whole service stands still for a while, as on a laptop that sleeps or a machine that is paused."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tests.conftest import Serve
from tests.support.websocket import PING, watch


@pytest.mark.long
def test_a_stopped_service_drops_no_consumer_and_counts_no_failure(serve: Serve) -> None:
    """The client pings every 0.2 s, as an SDK does each second or two. The service is stopped for longer than the
    silence limit.
    """
    service = serve("--silent-after", "1s", "--leave-grace", "0s", "--max-delivery", "2")
    queue = service.stream()
    queue.put(b"x")
    over = threading.Event()
    with watch(queue.as_consumer("u"), _window_=1) as watching:
        assert watching.indexes(1) == [1]

        def ping() -> None:
            while not over.wait(0.2):
                watching.send(PING, b"ping")

        pinger = threading.Thread(target=ping)
        pinger.start()
        try:
            for _ in range(5):
                os.kill(service.pid, signal.SIGSTOP)
                time.sleep(1.5)
                os.kill(service.pid, signal.SIGCONT)
                time.sleep(0.3)
            (line,) = [text for key, text in queue.attributes().items() if key.startswith("consumers.list.")]
        finally:
            over.set()
            pinger.join()
    assert "Status: Running" in line
    assert "Pending: 1" in line
    assert queue.length() == 1
