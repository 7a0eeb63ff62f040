"""Look-ups of the instances of a service: requests to EAS discovery or the ModelArts management API, and their answers.

`easq.prediction.discovery` decides when a look-up is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Protocol

from easq.client.queue import sub_path
from easq.errors import AuthFailed, EasqError, NotFound, Refused, ServerError, UsageError
from easq.model import Instance
from easq.net.http import Transport
from easq.net.retry import Retry
from easq.net.url import endpoint_url, is_loopback, shown
from easq.protocol.discovery import Malformed, Upstreams, read_upstreams, write_upstreams
from easq.protocol.modelarts import read_host_endpoints, write_host_endpoints
from easq.protocol.operations import Request
from easq.protocol.replies import Reply

#: the documented path, and the path that the Python SDK uses since 2026
EAS_PATHS = (
    "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/",
    "/api/v1/servicediscovery/upstreams/",
)
#: seconds between two look-ups in EAS, as Alibaba's page advises
EAS_REFRESH_S = 5.0
#: the same in ModelArts, which allows an IAM user 20 in a minute
MODELARTS_REFRESH_S = 60.0
#: minimum seconds between two look-ups in ModelArts by all processes of a user
MODELARTS_SPACING_S = 6.0

_EAS_HINT = "check the endpoint; it is http://pai-eas-vpc.REGION.aliyuncs.com"
_MODELARTS_HINT = "check the endpoint; it is https://modelarts.REGION.myhuaweicloud.com"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Lookup(Protocol):
    """The look-up of the instances of one service, and the path of requests to them."""

    #: URL of the server, already checked
    endpoint: str
    service: str
    #: with the endpoint, the key of the list on disk
    cache_key: str
    #: name of the server, as the beginning of a message
    name: str
    #: seconds between two regular look-ups, and the minimum between any two look-ups
    refresh_s: float
    spacing_s: float

    def ask(self, transport: Transport, deadline_s: float, retry: Retry) -> Upstreams:
        """Return the current instances. Raises an error with `name` in its message."""

    def read(self, body: bytes) -> Upstreams:
        """Return the instances in an answer. Raises Malformed."""

    def write(self, instances: Sequence[Instance]) -> bytes:
        """Return an answer with `instances`."""

    def path(self, path: str) -> str:
        """Return the decoded path of a request to an instance; `path` is the one that the user gave."""


class EasLookup:
    """Look-ups at EAS discovery, for direct connect. They carry no token."""

    refresh_s, spacing_s = EAS_REFRESH_S, 0.0

    def __init__(self, endpoint: str, service: str) -> None:
        """Prepare. Raises ConfigError for the endpoint and UsageError for the service."""
        self.endpoint = endpoint_url(endpoint, hint="write it as http://pai-eas-vpc.REGION.aliyuncs.com")
        self.service = self.cache_key = _checked("service", service)
        self.name = f"discovery at {shown(self.endpoint)}"
        self._paths = EAS_PATHS

    def ask(self, transport: Transport, deadline_s: float, retry: Retry) -> Upstreams:
        end = time.monotonic() + deadline_s
        try:
            return self._ask_at(self._paths[0], transport, end, retry)
        except NotFound:
            found = self._ask_at(self._paths[1], transport, end, retry)
            self._paths = self._paths[::-1]
            return found

    def read(self, body: bytes) -> Upstreams:
        return read_upstreams(body, loopback=is_loopback(self.endpoint))

    def write(self, instances: Sequence[Instance]) -> bytes:
        return write_upstreams(self.service, instances)

    def path(self, path: str) -> str:
        return f"/api/predict/{self.service}{sub_path(path)}"

    def _ask_at(self, path: str, transport: Transport, end: float, retry: Retry) -> Upstreams:
        request = Request("GET", path=f"{path}{self.service}")
        try:
            reply = transport.exchange(
                self.endpoint, request, None, deadline_s=max(0.001, end - time.monotonic()), retry=retry
            )
            return self.read(_good(reply))
        except Malformed as error:
            raise _no_list(self.name, error, _EAS_HINT) from error
        except EasqError as error:
            hint = "check the name of the service" if isinstance(error, NotFound) else error.hint
            raise _named(self.name, error, hint) from error


class ModelArtsLookup:
    """Look-ups at the ModelArts management API, for its VPC channel. The API gets the token, the instances get none."""

    def __init__(
        self,
        endpoint: str,
        project: str,
        service: str,
        token: str,
        *,
        refresh_s: float = MODELARTS_REFRESH_S,
        spacing_s: float = MODELARTS_SPACING_S,
    ) -> None:
        """Prepare. Raises ConfigError for the endpoint and UsageError for project or service."""
        hint = "write it as https://modelarts.REGION.myhuaweicloud.com"
        self.endpoint = endpoint_url(endpoint, scheme="https", hint=hint)
        self.project, self.service = _checked("project", project), _checked("service", service)
        self.cache_key = f"{project}/{service}"
        self.name = f"ModelArts at {shown(self.endpoint)}"
        self.refresh_s, self.spacing_s = refresh_s, spacing_s
        self._token = token

    def ask(self, transport: Transport, deadline_s: float, retry: Retry) -> Upstreams:  # noqa: ARG002
        # never repeated: each request counts for the rate limit of the platform
        request = Request(
            "GET",
            (("type", "host_endpoints"),),
            {"X-Auth-Token": self._token},
            path=f"/v1/{self.project}/services/{self.service}/predict/endpoints",
        )
        try:
            reply = transport.exchange(self.endpoint, request, None, deadline_s=deadline_s, retry=Retry.NEVER)
            return self.read(_good(reply))
        except Malformed as error:
            raise _no_list(self.name, error, _MODELARTS_HINT) from error
        except EasqError as error:
            if error.status == 429:
                text = f"{self.name}: {error.message}"
                hint = f"an IAM user may look up 20 times a minute; easq does every {self.refresh_s:g} s"
                refused = Refused(text, hint=hint, status=429)
                refused.retry_after_s = error.retry_after_s
                raise refused from error
            hint = error.hint
            if isinstance(error, AuthFailed):
                hint = "check the token: an IAM token of the project, which lives 24 hours"
            elif isinstance(error, NotFound):
                hint = "check the ids of project and service"
            raise _named(self.name, error, hint) from error

    def read(self, body: bytes) -> Upstreams:
        return read_host_endpoints(body, loopback=is_loopback(self.endpoint))

    def write(self, instances: Sequence[Instance]) -> bytes:
        return write_host_endpoints(self.service, instances)

    def path(self, path: str) -> str:
        return sub_path(path)


def _checked(what: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"the {what} {name[:80]!a} is not a name: 1 to 128 of A-Z a-z 0-9 . _ -")
    return name


def _good(reply: Reply) -> bytes:
    if reply.status != 200:
        raise Malformed(f"it has the status {reply.status}")
    return reply.body


def _no_list(name: str, error: Malformed, hint: str) -> ServerError:
    return ServerError(f"the answer of {name} is no list of instances: {error}", hint=hint)


def _named(name: str, error: EasqError, hint: str) -> EasqError:
    named = type(error)(f"{name}: {error.message}", hint=hint, status=error.http_status)
    named.retry_after_s = error.retry_after_s
    return named
