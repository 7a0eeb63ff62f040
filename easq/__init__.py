"""easq: asynchronous inference on a queue, from the terminal and from Python, and an embedded, durable queue service.

    import easq

    with easq.serve() as service, easq.QueueClient(service.url) as queue:
        queue.put("data", tags={"type": "a"})
        for frame in queue.watch():
            queue.commit(frame)

`QueueClient` is a client of a queue, `Worker` calls a model with its items, `predict` sends one request to a model,
`serve` starts a service. Each name is imported when it is first used.
"""

TYPE_CHECKING = False  # type checkers assume True; importing typing would double the time of `import easq`

if TYPE_CHECKING:
    from easq.client.queue import Description, QueueClient
    from easq.client.watch import Watcher
    from easq.errors import (
        AnotherWatcher,
        AnswerTooLarge,
        AuthFailed,
        BadRequest,
        ChildFailed,
        ConfigError,
        DeadlineExceeded,
        EasqError,
        Forbidden,
        KeyReused,
        MethodNotAllowed,
        NotAcceptable,
        NotAQueueService,
        NotFound,
        PayloadTooLarge,
        QueueFull,
        Refused,
        ServerError,
        StorageError,
        StreamEnded,
        Unavailable,
        Unreachable,
        UpgradeRequired,
        UsageError,
    )
    from easq.local import Service, serve
    from easq.model import NEWEST, Ack, Consumer, Frame, SearchResult
    from easq.models.base import ModelFailed
    from easq.models.inference import Fate, Outcome
    from easq.prediction.predict import predict
    from easq.worker.worker import Worker

__version__ = "0.1.0"

#: module -> its public names; all other names of `__all__` are errors in easq.errors
_NAMES = {
    "easq.client.queue": ("Description", "QueueClient"),
    "easq.client.watch": ("Watcher",),
    "easq.local": ("Service", "serve"),
    "easq.model": ("NEWEST", "Ack", "Consumer", "Frame", "SearchResult"),
    "easq.models.base": ("ModelFailed",),
    "easq.models.inference": ("Fate", "Outcome"),
    "easq.prediction.predict": ("predict",),
    "easq.worker.worker": ("Worker",),
}

__all__ = [
    "NEWEST",
    "Ack",
    "AnotherWatcher",
    "AnswerTooLarge",
    "AuthFailed",
    "BadRequest",
    "ChildFailed",
    "ConfigError",
    "Consumer",
    "DeadlineExceeded",
    "Description",
    "EasqError",
    "Fate",
    "Forbidden",
    "Frame",
    "KeyReused",
    "MethodNotAllowed",
    "ModelFailed",
    "NotAQueueService",
    "NotAcceptable",
    "NotFound",
    "Outcome",
    "PayloadTooLarge",
    "QueueClient",
    "QueueFull",
    "Refused",
    "SearchResult",
    "ServerError",
    "Service",
    "StorageError",
    "StreamEnded",
    "Unavailable",
    "Unreachable",
    "UpgradeRequired",
    "UsageError",
    "Watcher",
    "Worker",
    "predict",
    "serve",
]


def __getattr__(name: str) -> object:
    """Import a name of `__all__` when it is first used. Raises AttributeError for any other name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = next((module for module, names in _NAMES.items() if name in names), "easq.errors")
    found = globals()[name] = getattr(import_module(module), name)
    return found


def __dir__() -> list[str]:
    """Return all names of the module, including those that are not imported yet."""
    return sorted({*globals(), *__all__})
