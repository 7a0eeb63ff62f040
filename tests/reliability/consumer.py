"""A consumer in its own process, which tests kill or stop: `python -m tests.reliability.consumer PORT USER WINDOW`.

It prints the index of each item it gets, and `commit INDEX` on its stdin makes it commit one.
"""

from __future__ import annotations

import contextlib
import sys
import threading

from tests.support.http import Stream
from tests.support.protobuf import read_item
from tests.support.websocket import BINARY, PING, watch


def main(port: int, user: str, window: int) -> None:
    stream = Stream(port, "/api/predict/qservice").as_consumer(user)
    with watch(stream, _window_=window) as watching:
        watching.connection.socket.settimeout(None)

        def ping() -> None:
            with contextlib.suppress(OSError):
                while not over.wait(0.3):
                    watching.send(PING, b"ping")

        def obey() -> None:
            for line in sys.stdin:
                answer = stream.commit(int(line.split()[1]))
                print("committed", answer.header("X-Easq-Committed"), flush=True)

        over = threading.Event()
        threads = [threading.Thread(target=body, daemon=True) for body in (ping, obey)]
        for thread in threads:
            thread.start()
        try:
            while True:
                frame = watching.read()
                if frame.opcode == BINARY:
                    print(read_item(frame.payload).index, flush=True)
        except (EOFError, OSError):
            pass  # the service has given this consumer up; what it is told to commit it still commits
        over.set()
        threads[1].join()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
