"""What the cloud puts around a model: its instances, the gateway before them, and the doors that say where they are.

    {base}/NAME...                                                     the gateway: an instance by weight
    /exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/NAME            discovery of EAS direct connect
    /api/v1/servicediscovery/upstreams/NAME                            the same, as the Python SDK asks
    /v1/{project}/services/NAME/predict/endpoints?type=host_endpoints  ModelArts' look-up

Source: Alibaba's page on direct connect over a VPC, Huawei's on the VPC channel, and the official SDKs.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote

import aiohttp
from aiohttp import WSMsgType, web

from easq.emulator.instance import (
    INSTANCE_HEADER,
    CallLimits,
    ModelInstance,
    accept_socket,
    is_upgrade,
    local_ip,
    local_port,
    send_message,
)
from easq.emulator.proxy import BrokenOff, CallerGone, Proxy, StreamedBody, body_of, check_can_pass
from easq.errors import DeadlineExceeded, EasqError, MethodNotAllowed, NotFound, Unavailable, Unreachable
from easq.model import Instance
from easq.models.base import MAX_ANSWER
from easq.models.open import parse_model
from easq.net.balance import Balance
from easq.protocol.discovery import DEFAULT_WEIGHT, write_upstreams
from easq.protocol.hop_by_hop import end_to_end
from easq.protocol.modelarts import write_host_endpoints
from easq.protocol.replies import Reply
from easq.server.auth import Guard, is_unspecified
from easq.server.http import respond, target

log = logging.getLogger(__name__)

#: where discovery is asked: the documented path, and the Python SDK's since 2026
DISCOVERY_PATHS = (
    "/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/",
    "/api/v1/servicediscovery/upstreams/",
)
#: where ModelArts' management is asked
MODELARTS_PATH = re.compile(r"/v1/([^/]*)/services/([^/]*)(/.*)?")
_LOOKUP = "/predict/endpoints"
#: an instance is on this machine: one that is not reached in so many seconds is away
_CONNECT_S = 5.0
#: beyond a call's own time, so that the instance is the one that says so, in seconds
_SPARE_S = 2.0
#: an instance that gave no answer is passed over for so long, in seconds
_SUSPECT_S = 5.0
#: the gateway speaks to an instance in its own name: the token is its own, and a page's origin is checked at the door
_OURS = frozenset({"authorization", "origin", "cookie"})
#: response headers that apply to the whole origin, and so to everything else at the service's address
_ORIGIN_WIDE = frozenset(
    {"set-cookie", "clear-site-data", "strict-transport-security", "service-worker-allowed", "alt-svc"}
)
#: a model's page shares the service's origin: sandboxed, it cannot call the service as that origin
_SANDBOX = (("Content-Security-Policy", "sandbox allow-scripts"),)


@dataclass(frozen=True, slots=True)
class ModelService:
    """What `easq serve --model` is told. Each weight is an instance's; 0 is drained."""

    model: str
    name: str = "model"
    weights: Sequence[int] = (100,)
    limits: CallLimits = field(default_factory=CallLimits)
    open_instances: bool = False  #: past the gateway no token is asked for, as with ModelArts


@dataclass(slots=True)
class _Seat:
    """An instance, and how it stands in the lists."""

    instance: ModelInstance
    weight: int
    listed: bool = True


class Platform:
    """The doors around the instances of one service; around none, they say that there is no such service."""

    def __init__(
        self, service: ModelService | None, guard: Guard, *, base: str, queues: Collection[str] = ()
    ) -> None:
        """Prepare; `start` listens. Raises UsageError for the model.

        Args:
            queues: names of queues; discovery answers them with the service's own address.
        """
        self._queues = queues
        self._guard = guard
        self._service = service
        self._host = ""
        self._seats: list[_Seat] = []
        self._balance = Balance()
        answer_s = (service.limits if service is not None else CallLimits()).timeout_s + _SPARE_S
        self._proxy = Proxy(connect_s=_CONNECT_S, answer_s=answer_s)
        self._suspects: dict[str, float] = {}  # address -> until when, by the monotonic clock
        self._relays: set[web.WebSocketResponse] = set()
        #: requests that came in, by door: gateway, discovery, modelarts
        self.requests: Counter[str] = Counter()
        if service is not None:
            door = replace(guard, token="") if service.open_instances else guard
            for weight in service.weights:
                model = parse_model(service.model)
                made = ModelInstance(model, door, base=base, name=service.name, limits=service.limits)
                self._seats.append(_Seat(made, weight))

    @property
    def instances(self) -> list[ModelInstance]:
        """All of them, in order, whether in the lists or not."""
        return [seat.instance for seat in self._seats]

    async def start(self, host: str) -> None:
        """The instances listen on `host`, each at a port of its own. Raises ConfigError."""
        self._host = host
        for seat in self._seats:
            await seat.instance.start(host)
        self._rebalance()

    async def stop(self) -> None:
        """No instance listens, and every relayed socket was closed in order."""
        await asyncio.gather(*(socket.close(code=aiohttp.WSCloseCode.GOING_AWAY) for socket in self._relays))
        await asyncio.gather(*(seat.instance.stop() for seat in self._seats))
        await self._proxy.close()

    def set_weight(self, number: int, weight: int) -> None:
        """From now on the lists give instance `number` this part of the requests."""
        self._seats[number].weight = weight
        self._rebalance()

    def set_listed(self, number: int, listed: bool) -> None:
        """From now on instance `number` is in the lists, or not; it goes on answering."""
        self._seats[number].listed = listed
        self._rebalance()

    def places(self, reached_at: str = "") -> list[Instance]:
        """Where all instances are, in order, with their weights. On a service for all addresses of the machine that
        is `reached_at`, the one that the caller knows, or loopback.
        """
        return [Instance(self._ip(seat, reached_at), seat.instance.port, seat.weight) for seat in self._seats]

    def addresses(self, reached_at: str = "") -> list[Instance]:
        """Those of `places` that are given requests.

        A drained one is left out rather than listed with weight 0, at which the Go SDK divides by zero.
        """
        places = zip(self.places(reached_at), self._seats, strict=True)
        return [place for place, seat in places if seat.listed and seat.weight]

    def _ip(self, seat: _Seat, reached_at: str) -> str:
        ip = seat.instance.ip
        if not is_unspecified(ip):
            return ip
        return reached_at or ("::1" if ":" in ip else "127.0.0.1")

    def _rebalance(self) -> None:
        self._balance.replace(self.addresses())

    def serves(self, name: str) -> bool:
        """Whether `name` is the service's."""
        return self._service is not None and name == self._service.name

    def discover(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """Answer direct connect's discovery: with the service's instances, or, for a queue, with the address that the
        caller connected to. No token is checked: clients send none.

        Never a 200 without instances, which two official SDKs would clear their lists by: 404 is for another name,
        503 while no instance is left, so that the name is not in doubt.
        """
        if request.method != "GET":
            raise MethodNotAllowed("use GET")
        self.requests["discovery"] += 1
        name = unquote(name, errors="replace")
        if name in self._queues:
            found = [Instance(local_ip(request), local_port(request), DEFAULT_WEIGHT)]
        elif self.serves(name):
            found = self.addresses(local_ip(request))
        else:
            raise NotFound("no such service here")
        if not found:
            raise Unavailable("the service has no instance now")
        return respond(Reply(200, {"Content-Type": "application/json"}, write_upstreams(name, found)))

    def modelarts(self, request: web.BaseRequest, name: str, door: str) -> web.StreamResponse:
        """The service's instances, as ModelArts' management answers whoever has its token; errors in its form."""
        self.requests["modelarts"] += 1
        token = self._guard.token.encode()
        given = request.headers.get("X-Auth-Token", "").strip().encode(errors="replace")
        name = unquote(name, errors="replace")
        kinds = parse_qs(target(request).partition("?")[2]).get("type", [])
        if token and not hmac.compare_digest(given, token):
            return _modelarts_error(401, "ModelArts.0401", "X-Auth-Token is missing or wrong")
        if door.rstrip("/") != _LOOKUP:
            return _modelarts_error(404, "ModelArts.0404", f"only {_LOOKUP} is served of a service")
        if not self.serves(name):
            return _modelarts_error(404, "ModelArts.0404", "no such service here")
        if kinds != ["host_endpoints"]:
            return _modelarts_error(400, "ModelArts.0400", "type has to be host_endpoints")
        found = self.addresses(local_ip(request))
        if not found:
            return _modelarts_error(503, "ModelArts.0503", "the service has no instance now")
        return _modelarts(200, write_host_endpoints(name, found))

    async def gateway(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer of the instance whose turn it is. One that cannot be connected to is passed over, as is for
        some seconds one that gave no answer, or not all of it: the caller's next attempt should meet another.

        Raises AuthFailed, Unavailable without an instance, Unreachable and DeadlineExceeded.
        """
        assert self._service is not None
        self.requests["gateway"] += 1
        self._guard.check_call(request.headers, target(request), request.method)
        socket = is_upgrade(request)
        body = None
        if not socket:
            check_can_pass(request)
            limits = self._service.limits
            body = await body_of(request, limits.max_payload, patience_s=limits.timeout_s + _SPARE_S)
        tried: set[str] = set()
        failure: EasqError = Unavailable("the service has no instance now")
        while (address := self._next(tried)) is not None:
            tried.add(address.address)
            try:
                if socket:
                    return await self._relay(request, address)
                return await self._forward(request, address, body)
            except aiohttp.ClientConnectorError:
                failure = Unreachable("no instance can be reached")
            except CallerGone as error:
                if not error.answered:  # the caller gave up waiting for the instance
                    self._suspect(address)
                raise
            except BrokenOff as error:
                self._suspect(address)
                log.info("%s: %s", address.address, error)
                return error.response
            except TimeoutError as error:
                self._suspect(address)
                raise DeadlineExceeded("the instance gave no answer in time") from error
            except aiohttp.ClientError as error:
                self._suspect(address)
                raise Unreachable("the connection to the instance was lost") from error
        raise failure

    def _next(self, tried: set[str]) -> Instance | None:
        """The instance whose turn it is, of those that nothing speaks against while there is one."""
        now = time.monotonic()
        self._suspects = {address: until for address, until in self._suspects.items() if until > now}
        return self._balance.next(tried | self._suspects.keys()) or self._balance.next(tried)

    def _suspect(self, address: Instance) -> None:
        self._suspects[address.address] = time.monotonic() + _SUSPECT_S

    async def _forward(
        self, request: web.BaseRequest, address: Instance, body: bytes | StreamedBody | None
    ) -> web.StreamResponse:
        url = self._url(request, address)
        headers = self._headers(request)
        return await self._proxy.pass_on(request, url, headers, body, drop=_ORIGIN_WIDE, add=_SANDBOX)

    async def _relay(self, request: web.BaseRequest, address: Instance) -> web.StreamResponse:
        """Messages went both ways until either side closed; the other was told so, and why."""
        assert self._service is not None
        max_payload = self._service.limits.max_payload
        socket = accept_socket(request, max_payload)
        headers = {
            name: value
            for name, value in self._headers(request)
            if not name.lower().startswith("sec-websocket-")
        }
        url = self._url(request, address).replace("http", "ws", 1)
        try:
            async with asyncio.timeout(self._service.limits.timeout_s + _SPARE_S):
                instance = await self._proxy.session.ws_connect(url, headers=headers, max_msg_size=MAX_ANSWER)
        except aiohttp.WSServerHandshakeError as error:
            raise Unreachable("the instance refused the WebSocket") from error
        self._relays.add(socket)
        try:
            async with instance:
                socket.headers[INSTANCE_HEADER] = address.address
                await socket.prepare(request)
                await _pump_both(socket, instance)
        finally:
            self._relays.discard(socket)
        return socket

    def _url(self, request: web.BaseRequest, address: Instance) -> str:
        return f"http://{address.address}{target(request)}"

    def _headers(self, request: web.BaseRequest) -> list[tuple[str, str]]:
        """What the caller sent, in the gateway's own name."""
        sent = [
            (name, value)
            for name, value in end_to_end(request.headers.items())
            if name.lower() not in _OURS and not name.lower().startswith("sec-fetch-")
        ]
        return [*sent, ("Authorization", self._guard.token)] if self._guard.token else sent


async def _pump_both(socket: web.WebSocketResponse, instance: aiohttp.ClientWebSocketResponse) -> None:
    """What either says the other hears, and the first to close closes both."""
    ways = [
        asyncio.create_task(_pump(socket, instance)),
        asyncio.create_task(_pump(instance, socket)),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
    # 1006 says that there was no close frame, and must not be sent in one
    code = instance.close_code or socket.close_code or 0
    code = aiohttp.WSCloseCode.GOING_AWAY if code in (0, 1005, 1006) else code
    await socket.close(code=code)
    await instance.close(code=code)


Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pump(source: Socket, target: Socket) -> None:
    async for message in source:
        if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
            text = message.type is WSMsgType.TEXT
            await send_message(target, message.data.encode() if text else message.data, text=text)


def _modelarts(status: int, body: bytes) -> web.StreamResponse:
    headers = {"Content-Type": "application/json", "X-Request-Id": uuid.uuid4().hex}
    return respond(Reply(status, headers, body))


def _modelarts_error(status: int, code: str, message: str) -> web.StreamResponse:
    return _modelarts(status, json.dumps({"error_code": code, "error_msg": message}).encode())
