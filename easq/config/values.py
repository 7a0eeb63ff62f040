"""Values of a profile: checked before they are saved, and masked before they are shown."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easq.config.keys import TOKEN_KEYS, value_problem
from easq.config.profiles import Config, Resolved, Value
from easq.config.tokens import TokenSource, read_token
from easq.errors import ConfigError, UsageError


def values_to_save(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` as a profile holds them; None for the other ways to give a token, which they replace.

    Raises UsageError or ConfigError for values that could not be used.
    """
    check_addresses(values)
    if "token" in values:
        read_token(TokenSource("token", values["token"], "to be saved"))
    for key, value in values.items():
        if problem := value_problem(key, value):
            raise UsageError(problem)
        words = [value] if isinstance(value, str) else value
        if isinstance(words, list) and any("\ud800" <= char <= "\udfff" for word in words for char in word):
            raise UsageError(f"{key} is not UTF-8: {value!a}")
    saved = dict(values)
    if "token_file" in values:
        saved["token_file"] = _token_file(values["token_file"])
    given = [key for key in TOKEN_KEYS if key in values]
    return saved | {key: None for key in TOKEN_KEYS if given and key not in given}


def check_addresses(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a url or endpoint among `values` that is not an address."""
    from easq.net.url import endpoint_url, is_websocket, stream_url, websocket_url

    url, endpoint = values.get("url"), values.get("endpoint")
    if isinstance(url, str) and is_websocket(url):
        websocket_url(url)
    elif isinstance(url, str):
        stream_url(url, sink=False)
    if isinstance(endpoint, str):
        endpoint_url(endpoint)


def address_problems(config: Config) -> list[str]:
    """Return the problems of the addresses in all profiles, one line each."""
    found = []
    for name, values in config.profiles.items():
        for key in ("url", "endpoint"):
            try:
                check_addresses({key: values[key]} if key in values else {})
            except ConfigError as error:
                found.append(f"{config.path}: profiles.{name}: {error.message}")
    return found


def shown_values(settings: Resolved, *, reveal: bool) -> dict[str, Value]:
    """Return the settings in effect; unless `reveal`, the token and passwords in addresses are masked."""
    from easq.net.url import masked
    from easq.redact import mask

    values = {"profile": settings.profile, **settings.values}
    if not reveal:
        for key in ("url", "endpoint"):
            if key in values:
                values[key] = Value(masked(values[key].value), values[key].origin)
    source = settings.token
    if source is None:
        return values
    if reveal:
        text = read_token(source)
    elif source.kind == "token":
        text = mask(str(source.value))
    elif source.kind == "token_file":
        text = f"in file {source.value}"
    else:
        text = f"from command {source.value[0]}"
    return {**values, "token": Value(text, source.origin)}


def _token_file(name: str) -> str:
    """Return the name of a token file as it is saved: absolute, without `..`, a leading `~` unchanged.

    Raises ConfigError for a file without a token.
    """
    path = Path(os.path.expanduser(name)).absolute()
    if path.exists() and not path.is_file():
        raise ConfigError(
            f"token file {name} is not a regular file",
            hint="use token_cmd for a token that can be read only once",
        )
    read_token(TokenSource("token_file", str(path), "to be saved"))
    if name.startswith("~"):
        return name
    if ".." not in path.parts:
        return str(path)  # symbolic links stay: their targets may change
    behind = len(path.parts) - path.parts[::-1].index("..")
    return str(Path(*path.parts[:behind]).resolve().joinpath(*path.parts[behind:]))
