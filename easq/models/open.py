"""Opens a model from a text such as `exec:CMD`, from a command, or from a function."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TypeAlias

from easq.errors import UsageError
from easq.models.base import DEFAULT_TIMEOUT_S, Answer, BlockingModel, Call, Model
from easq.models.command import Exec
from easq.models.function import Function, ModelFunction
from easq.models.http import Http
from easq.models.threads import THREADS, Threaded

#: a text as `parse_model` takes it, a command and its arguments, or a function
ModelSource: TypeAlias = str | Sequence[str] | ModelFunction

_HINT = "write it as echo, exec:COMMAND or http://HOST:PORT/PATH"


def open_model(source: ModelSource | Model | BlockingModel, *, threads: int = THREADS) -> Model:
    """Return the model for `source`. A model whose calls block runs them in up to `threads` threads.

    Raises UsageError for any other value.
    """
    if isinstance(source, str):
        return parse_model(source)
    if isinstance(source, BlockingModel):
        return Threaded(source, threads=threads)
    if callable(source):
        return Function(source, threads=threads)
    if isinstance(source, Sequence):
        if not source or not all(isinstance(word, str) for word in source) or not source[0]:
            raise UsageError("the model's command is not a list of words", hint="give [COMMAND, ARG, ...]")
        return Threaded(Exec(source), threads=threads)
    if not isinstance(source, Model):
        raise UsageError(f"a model is a function, a command or a text, and not {type(source).__name__}")
    return source


def parse_model(text: str) -> Model:
    """Return the model that `text` names.

    It is `echo`, `exec:CMD ARG...` (split as a shell would, run without one), or `http:URL`, also as the plain URL.
    Raises UsageError for any other text.
    """
    kind, colon, rest = text.partition(":")
    if text == "echo":
        return Echo()
    if kind == "exec" and colon:
        try:
            argv = shlex.split(rest)
        except ValueError as error:
            raise UsageError(f"model {text!r}: {str(error).lower()}", hint=_HINT) from error
        if not argv or not argv[0]:
            raise UsageError(f"model {text!r}: no command", hint="write it as exec:COMMAND ARG...")
        return Threaded(Exec(argv))
    if kind in ("http", "https") and colon:
        return Http(text if rest.startswith("//") else rest)
    raise UsageError(f"model {text!r}: not known", hint=_HINT)


class Echo:
    """Answers each call with its own data and content type."""

    def check(self) -> None:
        """Do nothing: this model needs no command."""

    async def answer(self, call: Call, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Answer:  # noqa: ARG002
        """Return the data of the call."""
        return Answer(call.data, headers=(("Content-Type", call.content_type),) if call.content_type else ())

    def cancel(self) -> None:
        """Do nothing: no call takes time."""

    async def close(self) -> None:
        """Do nothing: nothing is open."""
