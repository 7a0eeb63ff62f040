"""Messages to a WebSocket service one after the other, and all that it says, as it comes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.cli.items import Item, Items
    from easq.cli.routes import Answer
    from easq.errors import EasqError
    from easq.prediction.dialogue import Dialogue

#: bytes that one look at the terminal takes
_LOOK_BYTES = 65536


def follow(
    dialogue: Dialogue, items: Items, *, timeout_s: float, idle_s: float, stop: Callable[[], bool]
) -> Iterator[tuple[Item, Answer | EasqError]]:
    """Each item with its answer, and again with each further message, until none came for `idle_s`; none once
    `stop` says so.
    """
    from easq.cli.routes import Answer
    from easq.errors import EasqError
    from easq.model import Frame

    for item in items:
        if stop():
            return
        try:
            if item.error is not None:
                raise item.error
            served = dialogue.ask(item.data, timeout_s=timeout_s)
            yield item, Answer(Frame(0, data=served.data), served)
            for data in dialogue.more(idle_s):
                yield item, Answer(Frame(0, data=data))
        except EasqError as error:
            yield item, error


def converse(
    app: App, dialogue: Dialogue, *, timeout_s: float, idle_s: float, stop: Callable[[], bool]
) -> Iterator[tuple[Item, Answer | EasqError]]:
    """What the service says while a person types: each line is a message. It ends with the input, once every
    message was answered and nothing came for `idle_s`, or once `stop` says so.
    """
    from easq.cli.items import Item
    from easq.cli.routes import Answer
    from easq.errors import EasqError
    from easq.model import Frame

    dialogue.connect(timeout_s=timeout_s)
    app.printer.info("connected; each line is a message, Ctrl-D ends")
    typed = Lines(app.stdin().fileno())
    heard_at = time.monotonic()
    while not stop() and (not typed.ended or dialogue.waits or time.monotonic() - heard_at < idle_s):
        here = Item(b"", "", typed.count)
        try:
            data = dialogue.hear()
            if data is not None:
                heard_at = time.monotonic()
                yield here, Answer(Frame(0, data=data))
            for line in typed.read():
                here, heard_at = Item(line, "", typed.count), time.monotonic()
                dialogue.say(line, timeout_s=timeout_s)
        except EasqError as error:
            yield here, error


class Lines:
    """The lines that a person types, without waiting for them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._held = b""
        self.count = 0  #: lines so far, empty ones too
        self.ended = False

    def read(self) -> Iterator[bytes]:
        """The lines that were typed since, without their line feed; empty ones are left out."""
        while not self.ended and select.select((self._fd,), (), (), 0)[0]:
            data = os.read(self._fd, _LOOK_BYTES)
            self.ended = not data
            # Ctrl-D behind text sends that text without a line feed
            *lines, self._held = (self._held + (data or b"\n")).split(b"\n")
            for line in lines:
                self.count += bool(data) or bool(line)
                if line:
                    yield line
