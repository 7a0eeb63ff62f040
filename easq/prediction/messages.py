"""Messages to a WebSocket service, from items or typed on a terminal, and all messages from the service."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

from easq.client.items import Item, Items
from easq.errors import EasqError
from easq.model import Frame
from easq.prediction.conversation import Conversation
from easq.prediction.routes import Prediction

#: bytes read from the terminal at a time
_READ_BYTES = 65536


def item_messages(
    conversation: Conversation, items: Items, *, timeout_s: float, idle_s: float, stop: Callable[[], bool]
) -> Iterator[tuple[Item, Prediction | EasqError]]:
    """Yield each item with its answer, and with every further message until none came for `idle_s`.

    No further item is sent once `stop` returns true.
    """
    for item in items:
        if stop():
            return
        try:
            if item.error is not None:
                raise item.error
            served = conversation.ask(item.data, timeout_s=timeout_s)
            yield item, Prediction(Frame(0, data=served.data), served)
            for data in conversation.more(idle_s):
                yield item, Prediction(Frame(0, data=data))
        except EasqError as error:
            yield item, error


def typed_messages(
    conversation: Conversation, fd: int, *, timeout_s: float, idle_s: float, stop: Callable[[], bool]
) -> Iterator[tuple[Item, Prediction | EasqError]]:
    """Send each line that is typed on the terminal `fd`, and yield every message from the service at once.

    After the end of the input, the iteration ends when every message has its answer and no message came for `idle_s`
    seconds. It also ends when `stop` returns True. The conversation must be connected.
    """
    typed = TypedLines(fd)
    received_at = time.monotonic()
    while not stop() and (
        not typed.ended or conversation.awaits_answers or time.monotonic() - received_at < idle_s
    ):
        place = Item(b"", "", typed.count)
        try:
            data = conversation.receive()
            if data is not None:
                received_at = time.monotonic()
                yield place, Prediction(Frame(0, data=data))
            for line in typed.read():
                place, received_at = Item(line, "", typed.count), time.monotonic()
                conversation.send(line, timeout_s=timeout_s)
        except EasqError as error:
            yield place, error


class TypedLines:
    """The lines that a user types on a terminal, read without blocking."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._partial = b""
        self.count = 0  #: lines so far, empty ones too
        self.ended = False

    def read(self) -> Iterator[bytes]:
        """Yield the lines typed since the last call, without their line feed; empty lines are left out."""
        while not self.ended and select.select((self._fd,), (), (), 0)[0]:
            data = os.read(self._fd, _READ_BYTES)
            self.ended = not data
            # Ctrl-D after text sends that text without a line feed
            *lines, self._partial = (self._partial + (data or b"\n")).split(b"\n")
            for line in lines:
                self.count += bool(data) or bool(line)
                if line:
                    yield line
