"""One run of `easq predict`: prints its answers and counts its failures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from easq.cli.routes import chosen_route, websocket
from easq.errors import DeadlineExceeded, EasqError, Partial, Refused, ServerError, UsageError
from easq.prediction.answers import Results, message_answers, route_answers
from easq.prediction.routes import WEBSOCKET, check_options, failure_of

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.items import Item, Items
    from easq.model import Frame
    from easq.prediction.exchanges import Served
    from easq.prediction.routes import Prediction, Route, Terms


def check_given(
    app: App,
    via: str,
    tags: object,
    priority: int,
    content_type: str,
    show_instance: bool,
    binary: bool,
    idle_timeout: float | None,
) -> None:
    """Raise UsageError for a given option that the route `via` does not support."""
    given = {
        "tags": tags,
        "priority": priority,
        "content-type": content_type,
        "show-instance": show_instance,
        "binary": binary,
        "idle-timeout": idle_timeout is not None,
    }
    given |= {name: name in app.options for name in ("sign", "endpoint", "service", "project", "refresh")}
    check_options(via, [name for name, is_given in given.items() if is_given])


@dataclass
class PredictRun:
    """Prints the answers of one run and counts what failed."""

    app: App
    single: bool  #: there is one request and no more
    alone: bool  #: and one answer, whose bytes are the output
    shows_instance: bool
    answered: int = 0
    failures: list[EasqError] = field(default_factory=list)
    is_fatal: bool = False  #: a failure that every further request would have
    #: request ids whose answers are not printed yet, and whether the item is certainly in the queue
    asked: dict[str, bool] = field(default_factory=dict)

    def messages(self, items: Items | None, terms: Terms, *, binary: bool, idle_s: float) -> None:
        """Print every message of a WebSocket service; items None: a person types. Raises the first failure."""
        if items is None and self.shows_instance:
            raise UsageError(
                "--show-instance cannot be used with typed messages", hint="-d, -f, PATH, or pipe them in"
            )
        from easq.prediction.messages import item_messages, typed_messages

        app, timeout_s = self.app, terms.timeout_s
        conversation = app.at_end.enter_context(websocket(app, path=terms.path, binary=binary)())
        if items is not None:
            answers = item_messages(
                conversation, items, timeout_s=timeout_s, idle_s=idle_s, stop=self._is_over
            )
        else:
            conversation.connect(timeout_s=timeout_s)
            app.printer.info("connected; each line is a message, Ctrl-D ends")
            fd = app.stdin().fileno()
            answers = typed_messages(conversation, fd, timeout_s=timeout_s, idle_s=idle_s, stop=self._is_over)
        self._print_all([one] for one in answers)

    def requests(self, via: str, items: Items, terms: Terms, *, binary: bool, workers: int) -> None:
        """Print one answer to each request. Raises the first failure.

        After Ctrl-C, print how to fetch the results of the requests that are in the queue.
        """
        app = self.app
        try:
            if via == WEBSOCKET:
                from easq.prediction.conversation import ConversationPool

                pool = ConversationPool(websocket(app, path=terms.path, binary=binary))
                app.at_end.enter_context(pool)
                self._print_all(message_answers(pool, items, terms, workers=workers, stop=self._is_over))
            else:
                route, timed = chosen_route(app, via, terms), self.shows_instance
                answers = route_answers(route, items, workers=workers, timed=timed, stop=self._is_over)
                self._print_all(answers, route)
        except KeyboardInterrupt:
            for request_id, is_stored in list(self.asked.items()):
                where = "is in the queue" if is_stored else "may be in the queue"
                fetch = f"easq get -k --request-id {request_id}"
                app.printer.warn(f"request {request_id} {where}; fetch its result with: {fetch}")
            raise

    def _is_over(self) -> bool:
        return self.is_fatal

    def _print_all(self, batches: Iterator[Results], route: Route | None = None) -> None:
        from easq.render.rows import FRAME_COLUMNS

        if self.app.output == "table":
            self.app.printer.header(FRAME_COLUMNS)
        number = 0
        for batch in batches:
            printed: list[Frame] = []
            try:
                for item, result in batch:
                    self.app.tell_warnings()
                    self._take(number, item, result, printed)
                    number += 1
            finally:
                if printed:
                    self.app.printer.flush()
                    self._delete(printed, route)
        self._end()

    def _take(self, number: int, item: Item, result: Prediction | EasqError, printed: list[Frame]) -> None:
        if isinstance(result, EasqError):
            self._failed(result, item)
            return
        error = failure_of(result.frame)
        self._print(number, result)
        printed.append(result.frame)
        self.asked.pop(result.frame.request_id, None)
        self.answered += error is None
        if error is not None:
            self._failed(error, item)

    def _failed(self, error: EasqError, item: Item) -> None:
        self.failures.append(error)
        self.is_fatal |= not isinstance(error, Refused | ServerError | DeadlineExceeded | UsageError)
        if not self.single:
            self.app.printer.error(error, prefix=f"{item.where}: " if item.where else "")

    def _delete(self, frames: list[Frame], route: Route | None) -> None:
        """Delete the results that were printed in full, and warn of the others."""
        if route is None or route.delete is None:
            return
        whole = []
        for frame in frames:
            if self.app.output == "none" or self.app.printer.shows_whole(frame.data):
                whole.append(frame)
            else:
                stays = f"result {frame.index} was not shown in full, and stays in the sink"
                self.app.printer.warn(f"{stays}: easq get -k {frame.index} --output-dir DIR")
        route.delete(whole)

    def _end(self) -> None:
        if not self.failures:
            return
        first = self.failures[0]
        if self.single:
            raise first
        counts = f"{self.answered} answered, {len(self.failures)} failed"
        if self.answered:
            raise Partial(counts)
        raise type(first)(counts, status=first.http_status)

    def _print(self, number: int, answer: Prediction) -> None:
        """Print an answer, a line each or its bytes alone, and the instance if asked for."""
        printer, frame = self.app.printer, answer.frame
        served = answer.served if self.shows_instance else None
        if served and printer.output == "json":
            from easq.render.rows import frame_record

            printer.record({**frame_record(number, frame), "instance": _instance_record(served)})
        elif printer.output in ("json", "table", "raw"):
            printer.frame(number, frame, alone=self.alone)
        elif printer.out_is_terminal:
            from easq.render.payload import shown

            printer.write(shown(frame.data).encode() + b"\n")
        else:
            printer.write(frame.data if self.alone else frame.data + b"\n")
        if served:
            printer.flush()
            times = served.times
            connected = "" if times.connect_s is None else f"connect {times.connect_s * 1000:.1f} ms, "
            printer.remark(
                f"[INFO] {served.address} attempt {times.attempts}: {connected}"
                f"first byte {(times.first_byte_s or 0) * 1000:.1f} ms, total {times.total_s * 1000:.1f} ms"
            )


def _instance_record(served: Served) -> dict[str, object]:
    """Return the record of the instance that answered.

    `connect_ms` and `first_byte_ms` are those of the last attempt, `total_ms` of all. `connect_ms` is null if the
    connection was open before.
    """
    times = served.times
    return {
        "address": served.address,
        "attempt": times.attempts,
        "connect_ms": None if times.connect_s is None else round(times.connect_s * 1000, 3),
        "first_byte_ms": None if times.first_byte_s is None else round(times.first_byte_s * 1000, 3),
        "total_ms": round(times.total_s * 1000, 3),
    }
