"""The keys of a profile, the types of their values, and checks of the values."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from easq.errors import ConfigError
from easq.protocol.durations import parse_duration

#: the keys of a profile, in the order in which they are shown
KEYS = (
    "url",
    "token",
    "token_file",
    "token_cmd",
    "group",
    "user",
    "via",
    "endpoint",
    "service",
    "project",
    "refresh",
    "sign",
)

#: the three ways to give a token; a profile holds one of them
TOKEN_KEYS = ("token", "token_file", "token_cmd")

#: key -> environment variable; the option is the key with dashes
ENVIRONMENT = {
    "url": "EASQ_URL",
    "token": "EASQ_TOKEN",
    "token_file": "EASQ_TOKEN_FILE",
    "group": "EASQ_GROUP",
    "user": "EASQ_USER",
    "endpoint": "EASQ_ENDPOINT",
    "service": "EASQ_SERVICE",
}

#: the consumer group and user of eascmd
BUILT_IN = {"group": "default_group", "user": "default_user"}

#: the routes of a prediction
VIAS = ("queue", "gateway", "direct", "modelarts", "websocket")
#: the forms in which a token is sent
SIGNS = ("auto", "token", "hmac", "none")

#: characters; a wrong value of this length or longer is not shown, since it may be a token
_MIN_UNSHOWN = 12

#: names of profiles, groups and users
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


#: least similarity (difflib's ratio) of a name that is suggested: `ptu` and `put` are 0.67, `remove` and `demo` 0.6
_NEAR = 0.65


def check_key(key: str) -> None:
    """Raise ConfigError for a key that a profile cannot have."""
    if key not in KEYS:
        raise ConfigError(
            f"unknown {named('key', key)}{did_you_mean(key, KEYS)}", hint=f"the keys are {', '.join(KEYS)}"
        )


def check_profile_name(name: str) -> None:
    """Raise ConfigError for a name that a profile cannot have."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"profile name {name!r} is not 1-128 of A-Z a-z 0-9 . _ -")


def type_problem(key: str, value: object) -> str:
    """Return the problem with the type of `value`, or an empty string. It never contains a token."""
    if key not in KEYS:
        return ""
    if key == "token_cmd":
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            return ""
        return 'token_cmd must be a list of texts, ["pass", "show", "x"]'
    if isinstance(value, str):
        return ""
    return f"{key} must be text, not {type(value).__name__}"


def value_problem(key: str, value: object) -> str:
    """Return the problem with `value`, or an empty string. Addresses and tokens are not checked."""
    check = _CHECKS.get(key)
    return check(key, value) if check and isinstance(value, str) else ""


def values_problems(values: Mapping[str, object]) -> list[str]:
    """Return the problems of a profile with `values`, one line each."""
    found = [problem for key, value in values.items() if (problem := type_problem(key, value))]
    given = [key for key in TOKEN_KEYS if key in values]
    if len(given) > 1:
        found.append(f"{' and '.join(given)} are both given")
    return found + [problem for key, value in values.items() if (problem := value_problem(key, value))]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` with the name in `known` nearest to `word`, or an empty string if none is near.

    Leading dashes are not compared: with them any two options would look similar.
    """
    import difflib

    names = {name.lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-"), names, n=1, cutoff=_NEAR)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""


def named(key: str, value: str) -> str:
    """Return `key` followed by `value`, for a message.

    A long value is left out: it may be a token that was given for the wrong key.
    """
    return f"{key} {value!r}" if len(value) < _MIN_UNSHOWN else key


def _name_problem(key: str, value: str) -> str:
    return "" if NAME.fullmatch(value) else f"{named(key, value)} is not 1-128 of A-Z a-z 0-9 . _ -"


def _choice_problem(key: str, value: str) -> str:
    known = VIAS if key == "via" else SIGNS
    if value in known:
        return ""
    return f"{named(key, value)} is not one of {', '.join(known)}{did_you_mean(value, known)}"


def _duration_problem(key: str, value: str) -> str:
    try:
        return "" if parse_duration(value) > 0 else f"the {key} must be above 0"
    except ValueError as error:
        return (
            f"{key}: {error}" if len(value) < _MIN_UNSHOWN else f"{key} is not a duration such as 30s or 5m"
        )


_CHECKS: Mapping[str, Callable[[str, str], str]] = {
    "group": _name_problem,
    "user": _name_problem,
    "service": _name_problem,
    "project": _name_problem,
    "via": _choice_problem,
    "sign": _choice_problem,
    "refresh": _duration_problem,
}
