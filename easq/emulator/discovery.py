"""Discovery: returns the addresses of a service's instances in the formats of EAS and ModelArts.

Source: Alibaba's page on direct connect over a VPC, Huawei's on the VPC channel, and the official SDKs.
"""

from __future__ import annotations

import hmac
import json
import re
import uuid
from collections.abc import Collection
from urllib.parse import parse_qs, unquote

from aiohttp import web

from easq.emulator.instances import Instances
from easq.errors import NotFound, Unavailable
from easq.model import Instance
from easq.protocol.discovery import DEFAULT_WEIGHT, write_upstreams
from easq.protocol.modelarts import write_host_endpoints
from easq.protocol.replies import Reply
from easq.server.request import local_address, target
from easq.server.response import respond

#: paths of discovery of EAS: the documented one, and the path of the Python SDK since 2026. The group is the service
EAS_PATH = re.compile(
    "(?:/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/|/api/v1/servicediscovery/upstreams/)(.*)",
    re.DOTALL,
)
#: path of ModelArts' management API. The groups are the service and the operation
MODELARTS_PATH = re.compile(r"/v1/[^/]*/services/([^/]*)(/.*)?")
_LOOKUP = "/predict/endpoints"


class DiscoveryService:
    """Returns the addresses of the instances of one service. Without a service, every name is unknown."""

    def __init__(self, name: str, instances: Instances, *, token: str, queues: Collection[str]) -> None:
        """Prepare.

        Args:
            name: name of the service; empty for none.
            token: token that ModelArts' look-up requires; empty for none.
            queues: names of queues. For these, EAS's discovery returns the address of this service.
        """
        self._name = name
        self._instances = instances
        self._token = token
        self._queues = queues

    async def eas(self, request: web.BaseRequest, found: re.Match[str]) -> web.StreamResponse:
        """Return the instances of the service, or, for a queue, the address that the caller has connected to.

        No token is checked, since clients send none. An empty list is never returned: two official SDKs would clear
        their own lists. Instead, this raises NotFound for an unknown name, and Unavailable while there is no instance.
        """
        name = unquote(found[1], errors="replace")
        if name in self._queues:
            instances = [Instance(*local_address(request), DEFAULT_WEIGHT)]
        elif self._name and name == self._name:
            instances = self._instances.addresses(local_address(request)[0])
        else:
            raise NotFound("no such service here")
        if not instances:
            raise Unavailable("the service has no instance now")
        return respond(Reply(200, {"Content-Type": "application/json"}, write_upstreams(name, instances)))

    async def modelarts(self, request: web.BaseRequest, found: re.Match[str]) -> web.StreamResponse:
        """Return the instances, or an error, in the format of ModelArts' management API. The token is required."""
        given = request.headers.get("X-Auth-Token", "").strip().encode(errors="replace")
        name = unquote(found[1], errors="replace")
        if self._token and not hmac.compare_digest(given, self._token.encode()):
            return _modelarts_error(401, "ModelArts.0401", "X-Auth-Token is missing or wrong")
        if (found[2] or "").rstrip("/") != _LOOKUP:
            return _modelarts_error(404, "ModelArts.0404", f"only {_LOOKUP} is served of a service")
        if not self._name or name != self._name:
            return _modelarts_error(404, "ModelArts.0404", "no such service here")
        if parse_qs(target(request).partition("?")[2]).get("type", []) != ["host_endpoints"]:
            return _modelarts_error(400, "ModelArts.0400", "type has to be host_endpoints")
        instances = self._instances.addresses(local_address(request)[0])
        if not instances:
            return _modelarts_error(503, "ModelArts.0503", "the service has no instance now")
        return _modelarts(200, write_host_endpoints(name, instances))


def _modelarts(status: int, body: bytes) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "X-Request-Id": uuid.uuid4().hex}
    return respond(Reply(status, headers, body))


def _modelarts_error(status: int, code: str, message: str) -> web.StreamResponse:
    return _modelarts(status, json.dumps({"error_code": code, "error_msg": message}).encode())
