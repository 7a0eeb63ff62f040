"""The engines of `easq serve --model`: in each instance one for each queue, between its input and its sink."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from easq.cli.app import App
    from easq.client.queue import QueueClient
    from easq.runner.model import Model
    from easq.worker import Worker

log = logging.getLogger(__name__)

#: an engine that ended by itself begins anew after so many seconds
_AGAIN_S = 1.0
#: what is under way when the service stops may take so long, in seconds
_GRACE_S = 5.0


class Engines:
    """Work on the queues of a running service, as its instances' engines do in the cloud, from `start` to `stop`.

    They call the service's own address, so what they do is durable in the order in which any engine's is.
    """

    def __init__(
        self,
        app: App,
        model: Model,
        queues: Sequence[tuple[str, str]],
        *,
        users: Sequence[str],
        token: str,
        item_timeout_s: float,
    ) -> None:
        """`queues` are the addresses of each input and its sink, `users` the names of the engines of each."""
        from easq.client.queue import QueueClient
        from easq.model import Consumer
        from easq.wire.operations import Caller

        self._model = model
        self._item_timeout_s = item_timeout_s
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._workers: set[Worker] = set()

        def client(url: str) -> QueueClient:
            return QueueClient(url, Caller(Consumer(), token), app.instances)

        self._threads = [
            threading.Thread(
                target=self._keep, args=(client(input), client(sink), user), name=f"easq-{user}", daemon=True
            )
            for input, sink in queues
            for user in users
        ]

    def start(self) -> None:
        """The engines begin, each in a thread of its own."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Nothing is under way any more: what was not done within the grace was handed back. Blocks; not for the
        event loop that serves the queues.
        """
        with self._lock:
            self._stopping.set()
            workers = list(self._workers)
        for worker in workers:
            worker.stop(_GRACE_S)
        for thread in self._threads:
            thread.join(2 * _GRACE_S)
        self._model.close()

    def _keep(self, input: QueueClient, sink: QueueClient, user: str) -> None:
        """There is an engine, until all stop: one that ended, as at the end of the stream, begins anew."""
        from easq.errors import EasqError, StreamEnded
        from easq.worker import Worker

        while not self._stopping.is_set():
            worker = Worker(
                input, sink, self._model, user=user, item_timeout_s=self._item_timeout_s, on_notice=log.info
            )
            try:
                worker.start()
                with self._lock:
                    self._workers.add(worker)
                    if self._stopping.is_set():
                        worker.stop(0.0)
                worker.wait()
                if worker.failed is not None:
                    log.warning("the engine %s ended: %s", user, worker.failed)
            except StreamEnded:
                pass  # it may be opened again
            except EasqError as error:
                log.warning("the engine %s does not start: %s", user, error.message)
            finally:
                with self._lock:
                    self._workers.discard(worker)
            self._stopping.wait(_AGAIN_S)
