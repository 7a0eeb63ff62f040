"""Tokens: finds their source (option, environment, profile), and reads them from a file or a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easq.config.keys import ENVIRONMENT
from easq.errors import ConfigError
from easq.net import files

if TYPE_CHECKING:
    import subprocess

#: bytes; a token is far smaller, and a wrong path should not fill the memory
MAX_TOKEN_BYTES = 64 * 1024


#: seconds a token_cmd may take: a person may have to unlock a key first
TOKEN_CMD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class TokenSource:
    """The source of a token: the text itself, a file or a command; read when a token is needed."""

    kind: str  # "token", "token_file" or "token_cmd"
    value: str | tuple[str, ...] = field(repr=False)
    origin: str


def encoding_problem(data: bytes, position: int) -> str:
    """Return the message for a file that is not UTF-8 at the byte `position`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16: save it as UTF-8"
    return f"not UTF-8 at byte {position}"


def token_source(
    name: str, profile: Mapping[str, Any], options: Mapping[str, Any], environ: Mapping[str, str]
) -> TokenSource | None:
    """Return the first source that is given: --token-file, --token, token_cmd, environment, profile.

    A command in the profile goes before the environment: its user wants no token in variables.
    """
    for key in ("token_file", "token"):
        if options.get(key):
            return TokenSource(key, str(options[key]), f"option --{key.replace('_', '-')}")
    if profile.get("token_cmd"):
        return TokenSource("token_cmd", tuple(profile["token_cmd"]), f"profile {name}, token_cmd")
    for key in ("token_file", "token"):
        if environ.get(ENVIRONMENT[key]):
            return TokenSource(key, environ[ENVIRONMENT[key]], f"environment {ENVIRONMENT[key]}")
    for key in ("token_file", "token"):
        if profile.get(key):
            return TokenSource(key, profile[key], f"profile {name}, {key}")
    return None


def read_token(source: TokenSource | None, *, warn: Callable[[str], None] = lambda _text: None) -> str:
    """Return the token, empty without a source; call `warn` for a token file that other users may read.

    Raises ConfigError where the source gives none.
    """
    if source is None:
        return ""
    if source.kind == "token":
        token = str(source.value)
    elif source.kind == "token_file":
        token = _token_of_file(Path(os.path.expanduser(str(source.value))), source.origin, warn)
    else:
        token = _token_of_command(tuple(source.value), source.origin)
    if not token:
        raise ConfigError(f"the token is empty ({source.origin})")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"the token holds characters that no header may carry ({source.origin})")
    return token


def _token_of_file(path: Path, origin: str, warn: Callable[[str], None]) -> str:
    try:
        with open(path, "rb") as file:  # a pipe is allowed: --token-file <(pass show eas)
            data = file.read(MAX_TOKEN_BYTES + 1)
            warnings = files.exposure(path, os.fstat(file.fileno()))
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise ConfigError(f"token file {path}: {getattr(error, 'strerror', error)} ({origin})") from error
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"token file {path} is larger than {MAX_TOKEN_BYTES} bytes ({origin})")
    for text in warnings:
        warn(f"token file {text}")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"token file {path}: {encoding_problem(data, error.start)} ({origin})") from error


def _token_of_command(argv: tuple[str, ...], origin: str) -> str:
    """Return the first line that the command prints. It runs without a shell, and without our stdin, maybe payload."""
    import subprocess
    import time

    from easq.redact import child_environ

    end = time.monotonic() + TOKEN_CMD_TIMEOUT_S
    try:
        with subprocess.Popen(
            argv, env=child_environ(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            try:
                data = _read_until(process, end)
                status = process.wait(max(0.0, end - time.monotonic()))
            except BaseException:
                process.kill()
                raise
    except (OSError, ValueError) as error:  # the latter for a NUL in a word
        why = getattr(error, "strerror", error)
        raise ConfigError(f"token_cmd {argv[0]!r} cannot start: {why} ({origin})") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"token_cmd {argv[0]!r} took more than {TOKEN_CMD_TIMEOUT_S:.0f} s ({origin})"
        ) from error
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"token_cmd {argv[0]!r} printed more than {MAX_TOKEN_BYTES} bytes ({origin})")
    if status != 0:
        raise ConfigError(f"token_cmd {argv[0]!r} failed with status {status} ({origin})")
    return data.decode("utf-8-sig", "replace").strip().partition("\n")[0].strip()


def _read_until(process: subprocess.Popen[bytes], end: float) -> bytes:
    """Return what the command prints until it closes its stdout. A command that prints too much is killed."""
    import select
    import subprocess
    import time

    assert process.stdout is not None, "it is a pipe"
    data = b""
    while len(data) <= MAX_TOKEN_BYTES:
        left_s = end - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise subprocess.TimeoutExpired(process.args, TOKEN_CMD_TIMEOUT_S)
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            return data
        data += piece
    process.kill()
    return data
