"""Settings of every connection and exchange over the network."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from easq.errors import EasqError
from easq.net.trace import Trace

#: limit of the headers of an answer, names and values together, in bytes
MAX_HEADER_BYTES = 64 * 1024
#: default limit of a whole exchange, in seconds
DEFAULT_REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class NetworkSettings:
    """Time limits, headers, TLS and proxies of requests; times in seconds."""

    connect_timeout_s: float = 5.0
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S  #: limit of a whole exchange
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  #: sent with every request
    cacert: str = ""  #: path of the CA certificates; empty for the system's
    insecure: bool = False  #: accept any certificate
    max_answer_bytes: int = 64 * 1024 * 1024
    trace: Trace | None = None  #: gets lines from which secrets are removed
    #: called in the thread of the exchange with the error after which a request will be sent again
    on_retry: Callable[[EasqError], None] | None = None
    #: where the proxies are looked up; empty for none
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False)
