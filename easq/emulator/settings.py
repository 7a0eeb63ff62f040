"""Settings of a model that is served: `easq serve --model`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from easq.errors import BadRequest, UsageError
from easq.models.base import DEFAULT_TIMEOUT_S
from easq.models.open import ModelSource, open_model
from easq.protocol.discovery import MAX_WEIGHT
from easq.server.queue import check_name


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits of one call: bytes of a request or message, and seconds in all."""

    max_payload: int = 8 * 1024**2
    timeout_s: float = DEFAULT_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class ModelService:
    """A model that is served by one instance for each of `weights`. An instance of weight 0 is drained."""

    model: ModelSource
    name: str = "model"
    weights: Sequence[int] = (100,)
    limits: CallLimits = field(default_factory=CallLimits)
    open_instances: bool = False  #: direct calls of an instance need no token, as with ModelArts

    def check(self, queues: Sequence[str]) -> None:
        """Raise UsageError for settings that cannot be served beside `queues`.

        Raises ChildFailed for a command that does not exist.
        """
        open_model(self.model).check()
        try:
            check_name(self.name)
        except BadRequest as error:
            raise UsageError(f"--service: {error.message}") from error
        if self.name in queues:
            raise UsageError(
                f"{self.name} is a queue and a service: a name is one of them",
                hint="choose another with --service or --queue",
            )
        if not self.weights or not all(0 <= weight <= MAX_WEIGHT for weight in self.weights):
            shown = ",".join(map(str, self.weights))
            raise UsageError(f"--weights {shown}: one of 0 to {MAX_WEIGHT} for each instance")
