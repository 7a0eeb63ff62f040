"""The answers to many requests, in the order of the requests, over HTTP routes or WebSockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from easq.client.items import Item, Items
from easq.errors import EasqError
from easq.model import Frame
from easq.prediction.in_order import in_order
from easq.prediction.routes import Prediction, Route, Terms

if TYPE_CHECKING:
    from easq.prediction.conversation import ConversationPool

#: items of one batch, each with its answer or its error
Results: TypeAlias = Sequence[tuple[Item, Prediction | EasqError]]


def route_answers(
    route: Route, items: Items, *, workers: int, timed: bool, stop: Callable[[], bool]
) -> Iterator[Results]:
    """Yield the answers over `route`, with `workers` requests in flight.

    Args:
        timed: measure the time to connect and to answer of each request.
        stop: if it returns True, no further request begins.
    """
    if workers == 1 or items.single:
        transport = route.transport

        def ask(item: Item) -> Prediction:
            return transport.run(route.steps(item, None))

        yield from ([one] for one in in_order(iter(items), ask, workers=1, stop=stop))
        return
    from easq.net.pipeline import Pipeline, Task

    pipeline = Pipeline(route.transport.settings, workers=workers, timed=timed)
    tasks = (Task(item, item.error or item, len(item.data)) for item in items)
    for batch in pipeline.run(tasks, route.steps):
        results: list[tuple[Item, Prediction | EasqError]] = []
        for outcome in batch:
            result = outcome.error or outcome.result
            assert result is not None, "an exchange ends in an answer or an error"
            results.append((outcome.what, result))
        yield results
        if stop():
            pipeline.stop()


def message_answers(
    pool: ConversationPool, items: Items, terms: Terms, *, workers: int, stop: Callable[[], bool]
) -> Iterator[Results]:
    """Yield the answers of a WebSocket service, over `workers` connections with one message each in flight."""

    def ask(item: Item) -> Prediction:
        served = pool.ask(item.data, timeout_s=terms.timeout_s)
        return Prediction(Frame(0, data=served.data), served)

    yield from ([one] for one in in_order(iter(items), ask, workers=workers, stop=stop))
