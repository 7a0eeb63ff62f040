"""The gateway of a service: passes each request on to one of its instances, by weight."""

from __future__ import annotations

import asyncio
import logging
import re

import aiohttp
from aiohttp import WSMsgType, web

from easq.emulator.instance import INSTANCE_HEADER
from easq.emulator.instances import Instances
from easq.emulator.proxy import BrokenOff, CallerGone, Proxy, body_of, check_can_pass
from easq.emulator.settings import CallLimits
from easq.emulator.websocket import accept_socket, is_upgrade, send_message
from easq.errors import DeadlineExceeded, EasqError, Unavailable, Unreachable
from easq.model import Instance
from easq.models.base import MAX_ANSWER
from easq.protocol.hop_by_hop import end_to_end
from easq.server.request import target

log = logging.getLogger(__name__)

#: time limit of connecting to an instance, in seconds; instances run on this machine
_CONNECT_S = 5.0
#: time that the gateway waits longer than an instance does, in seconds: the instance then reports the timeout itself
_SPARE_S = 2.0
#: headers of the caller that are not forwarded: the gateway sends its own token, and has checked the origin
_REPLACED = frozenset({"authorization", "origin", "cookie"})
#: response headers that apply to the whole origin, and so to everything else at the service's address
_ORIGIN_WIDE = frozenset(
    {"set-cookie", "clear-site-data", "strict-transport-security", "service-worker-allowed", "alt-svc"}
)
#: added to answers: a model's page has the service's origin, and the sandbox stops it from calling the service
_SANDBOX = (("Content-Security-Policy", "sandbox allow-scripts"),)


class Gateway:
    """Passes requests and WebSockets on to the instances of one service."""

    def __init__(self, instances: Instances, *, limits: CallLimits, token: str) -> None:
        """Prepare.

        Args:
            token: token that instances require; empty for none.
        """
        self._instances = instances
        self._limits = limits
        self._token = token
        self._proxy = Proxy(connect_s=_CONNECT_S, answer_s=self._answer_s)
        self._relays: set[web.WebSocketResponse] = set()

    @property
    def _answer_s(self) -> float:
        return self._limits.timeout_s + _SPARE_S

    async def close_relays(self) -> None:
        """Close every relayed WebSocket in order."""
        await asyncio.gather(*(socket.close(code=aiohttp.WSCloseCode.GOING_AWAY) for socket in self._relays))

    async def stop(self) -> None:
        """Abort the requests in flight."""
        await self._proxy.close()

    async def answer(self, request: web.BaseRequest, _found: re.Match[str]) -> web.StreamResponse:
        """Return the answer of the next instance. If connecting to it fails, try the one after it.

        An instance whose answer is missing or incomplete is avoided for some seconds, so that the caller's next attempt
        reaches another. Raises Unavailable if there is no instance, Unreachable and DeadlineExceeded.
        """
        is_socket = is_upgrade(request)
        body = None
        if not is_socket:
            check_can_pass(request)
            body = await body_of(request, self._limits.max_payload, patience_s=self._answer_s)
        tried: set[str] = set()
        failure: EasqError = Unavailable("the service has no instance now")
        while (address := self._instances.next(tried)) is not None:
            tried.add(address.address)
            try:
                if is_socket:
                    return await self._relay(request, address)
                url = f"http://{address.address}{target(request)}"
                headers = self._headers(request)
                return await self._proxy.pass_on(request, url, headers, body, drop=_ORIGIN_WIDE, add=_SANDBOX)
            except aiohttp.ClientConnectorError:
                failure = Unreachable("no instance can be reached")
            except CallerGone as error:
                if not error.answered:  # the caller gave up waiting for the instance
                    self._instances.suspect(address)
                raise
            except BrokenOff as error:
                self._instances.suspect(address)
                log.info("%s: %s", address.address, error)
                return error.response
            except TimeoutError as error:
                self._instances.suspect(address)
                raise DeadlineExceeded("the instance gave no answer in time") from error
            except aiohttp.ClientError as error:
                self._instances.suspect(address)
                raise Unreachable("the connection to the instance was lost") from error
        raise failure

    async def _relay(self, request: web.BaseRequest, address: Instance) -> web.StreamResponse:
        """Relay messages both ways until either side closes, and close the other side with the same code."""
        socket = accept_socket(request, self._limits.max_payload)
        headers = {
            name: value
            for name, value in self._headers(request)
            if not name.lower().startswith("sec-websocket-")
        }
        url = f"ws://{address.address}{target(request)}"
        try:
            async with asyncio.timeout(self._answer_s):
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

    def _headers(self, request: web.BaseRequest) -> list[tuple[str, str]]:
        """Return the caller's headers, with the gateway's token."""
        sent = [
            (name, value)
            for name, value in end_to_end(request.headers.items())
            if name.lower() not in _REPLACED and not name.lower().startswith("sec-fetch-")
        ]
        return [*sent, ("Authorization", self._token)] if self._token else sent


async def _pump_both(socket: web.WebSocketResponse, instance: aiohttp.ClientWebSocketResponse) -> None:
    """Pass messages both ways until either side closes, then close both."""
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
