"""easq: asynchronous inference on a queue, from the terminal, and an embedded, durable queue service."""

__version__ = "0.1.0"
