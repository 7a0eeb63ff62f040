"""Masks secrets in text, and removes them from the environment of commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_HIDDEN = "****"
#: shortest secret that is masked, in characters: a shorter one would mask parts of ordinary words
MIN_SECRET = 4
#: shortest secret whose last four characters are shown: in a shorter one they would be too large a part
_MIN_SHOWN_IN_PART = 20
#: a lower-case secret below this length, in characters, may be an ordinary word
_MAX_WORD = 12
_LOWER_CASE = "[a-z]+"
#: the service's answers to a wrong token; never masked, even if the token is one of these words
_SENTENCES = "(the token is wrong|a token is needed|the signature is wrong)"

#: variables of easq that hold a secret or the path of one
_OWN = frozenset(("EASQ_STORAGE", "EASQ_TOKEN", "EASQ_TOKEN_FILE"))
#: variables of easq that hold an address, which may contain a password
_ADDRESSES = frozenset(("EASQ_URL", "EASQ_ENDPOINT"))
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*://"


def mask(secret: str) -> str:
    """Return the mask of `secret`: four asterisks, and the last four characters if it is long.

    Nothing of HTTP Basic credentials is shown: the last four characters in base64 are three of the password.
    """
    if len(secret) < _MIN_SHOWN_IN_PART or secret[:6].lower() == "basic ":
        return _HIDDEN
    return _HIDDEN + secret[-4:]


def hide(text: str, secrets: Iterable[str], *, words: bool = True) -> str:
    """Return `text` with all `secrets` masked, percent-encoded and JSON-escaped ones too.

    Secrets shorter than MIN_SECRET are not masked.

    Args:
        words: whether a secret that may be an ordinary word is masked everywhere. False, for easq's own messages:
            it is masked only as a value (quoted, or in an address or an assignment), so that sentences stay readable.
    """
    # the longest first: one secret may be part of another
    found = sorted({secret for secret in secrets if len(secret) >= MIN_SECRET}, key=len, reverse=True)
    if not found:
        return text
    import json
    from urllib.parse import quote

    parts = re.split(_SENTENCES, text)
    for at in range(0, len(parts), 2):
        for secret in found:
            if not words and len(secret) < _MAX_WORD and re.fullmatch(_LOWER_CASE, secret):
                # in quotes or parentheses, and as a part of an address or an assignment
                as_value = rf"(?<=['\"(=/@&:]){secret}\b|\b{secret}(?=['\")=/@&])"
                parts[at] = re.sub(as_value, _HIDDEN, parts[at])
                continue
            in_json = json.dumps(secret, ensure_ascii=False)[1:-1]
            quoted = (quote(secret, errors="replace"), quote(secret, safe="", errors="replace"))
            for spelling in {secret, in_json, *quoted}:
                parts[at] = parts[at].replace(spelling, _HIDDEN)
    return "".join(parts)


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a command that easq starts: `environ` without easq's secrets, and with user and
    password removed from the addresses of proxies and services.
    """
    found = {}
    for name, value in environ.items():
        if name in _OWN:
            continue
        lower = name.lower()
        if name in _ADDRESSES or (lower.endswith("_proxy") and lower != "no_proxy"):
            # everything between the scheme and the last `@`: a password may contain any character
            scheme = re.match(_SCHEME, value) if "@" in value else None
            value = (scheme[0] if scheme else "") + value.rpartition("@")[2]
        found[name] = value
    return found
