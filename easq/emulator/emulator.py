"""The emulator of a cloud around a model: its instances, the gateway before them, and discovery, as routes.

{base}/NAME...                                                     the gateway: an instance by weight
/exported/apis/eas.alibaba-inc.k8s.io/v1/upstreams/NAME            discovery of EAS direct connect
/api/v1/servicediscovery/upstreams/NAME                            the same, as the Python SDK asks
/v1/{project}/services/NAME/predict/endpoints?type=host_endpoints  ModelArts' look-up
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from easq.emulator.discovery import EAS_PATH, MODELARTS_PATH, DiscoveryService
from easq.emulator.gateway import Gateway
from easq.emulator.instances import Instances
from easq.emulator.settings import CallLimits, ModelService
from easq.server.hooks import Hook
from easq.server.routes import Auth, PathRoute
from easq.server.server import EngineSettings, Server, ServerSettings


class Emulator:
    """The routes around the instances of one service. Without a service, discovery knows no name."""

    def __init__(self, settings: ServerSettings, service: ModelService | None) -> None:
        """Prepare; `start` listens. Raises UsageError and ChildFailed for a service that cannot be served."""
        if service is not None:
            service.check(settings.queues)
        name = "" if service is None else service.name
        self.instances = Instances.of(service, settings.guard, base=settings.base)
        self._gateway = Gateway(
            self.instances, limits=CallLimits() if service is None else service.limits, token=settings.token
        )
        discovery = DiscoveryService(name, self.instances, token=settings.token, queues=settings.queues)
        routes = [
            PathRoute("discovery", EAS_PATH, ("GET",), Auth.ANYBODY, discovery.eas),
            PathRoute(
                "modelarts",
                MODELARTS_PATH,
                ("GET",),
                Auth.CHECKED_BY_ROUTE,
                discovery.modelarts,
                shares_path=True,
            ),
        ]
        if service is not None:
            path = re.compile(f"{re.escape(settings.base)}/([^/]*)(?:/.*)?", re.DOTALL)
            gateway = self._gateway.answer
            routes.append(PathRoute("gateway", path, (), Auth.TOKEN_OR_SIGNATURE, gateway, segment=name))
        self.routes: Sequence[PathRoute] = routes

    async def start(self, host: str) -> None:
        """Listen with the instances on `host`, each at a port of its own. Raises ConfigError."""
        await self.instances.start(host)

    async def stop(self) -> None:
        """Close every relayed WebSocket in order, and stop the instances."""
        await self._gateway.close_relays()
        await self.instances.stop()
        await self._gateway.stop()


def open_service(
    settings: ServerSettings, service: ModelService | None = None, *, hooks: Sequence[Hook] = ()
) -> tuple[Server, Emulator]:
    """Return a server with the emulator's routes. With a model, every queue has one engine for each instance.

    Raises UsageError for settings that cannot be served, and ChildFailed for a command that does not exist.
    """
    if service is not None:
        users = [f"{service.name}-{number}" for number in range(len(service.weights))]
        engines = EngineSettings(service.model, users, service.limits.timeout_s)
        settings = replace(settings, engines=engines)
    settings.check()
    emulator = Emulator(settings, service)
    return Server(settings, extensions=(emulator,), hooks=hooks), emulator
