"""How much of a secret may be shown, and which variables a command may see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import quote

_HIDDEN = "****"
#: characters; a shorter secret would blot out ordinary words
MIN_SECRET = 4
#: characters; of a shorter secret the last four would be too large a part
_MIN_SHOWN_IN_PART = 20
#: characters; a longer secret is no word that a sentence holds by chance
_MAX_WORD = 12
#: the service's answers to a token; they say what is wrong also to those whose token is one of these words
_SENTENCES = re.compile(r"(the token is wrong|a token is needed|the signature is wrong)")

#: variables of easq that hold a secret or say where one is
_OWN = frozenset(("EASQ_STORAGE", "EASQ_TOKEN", "EASQ_TOKEN_FILE"))
#: variables of easq that hold an address
_ADDRESSES = frozenset(("EASQ_URL", "EASQ_ENDPOINT"))
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def mask(secret: str) -> str:
    """Return `secret` as it may be shown: the last four characters of a long one, and nothing of its length.

    Of a user and password of HTTP nothing is shown: the last four characters would be three of the password.
    """
    if len(secret) < _MIN_SHOWN_IN_PART or secret[:6].lower() == "basic ":
        return _HIDDEN
    return _HIDDEN + secret[-4:]


def hide(text: str, secrets: Iterable[str], *, words: bool = True) -> str:
    """Return `text` with every one of `secrets` masked, also where it stands percent-encoded or in JSON.

    Args:
        words: also mask a secret that is an ordinary word where it stands as a word of a sentence. False for text
            of easq's own, which would lose its meaning; there it is masked only where it stands as a value.
    """
    # the longest first: one secret may be part of another
    found = sorted({secret for secret in secrets if len(secret) >= MIN_SECRET}, key=len, reverse=True)
    if not found:
        return text
    parts = _SENTENCES.split(text)
    for at in range(0, len(parts), 2):
        for secret in found:
            if not words and _is_word(secret):
                parts[at] = _as_value(secret).sub(_HIDDEN, parts[at])
                continue
            for form in _spellings(secret):
                parts[at] = parts[at].replace(form, _HIDDEN)
    return "".join(parts)


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `environ` that a command which easq starts may see: none with a secret of easq's, and
    addresses of proxies and services without their user part.
    """
    found = {}
    for name, value in environ.items():
        if name in _OWN:
            continue
        lower = name.lower()
        if name in _ADDRESSES or (lower.endswith("_proxy") and lower != "no_proxy"):
            value = _without_user(value)
        found[name] = value
    return found


def _without_user(address: str) -> str:
    """Return `address` without what stands before its last `@`, whatever a password there holds."""
    if "@" not in address:
        return address
    scheme = _SCHEME.match(address)
    return (scheme[0] if scheme else "") + address.rpartition("@")[2]


def _is_word(secret: str) -> bool:
    return len(secret) < _MAX_WORD and secret.isascii() and secret.isalpha() and secret.islower()


def _as_value(word: str) -> re.Pattern[str]:
    """Return what matches `word` in quotes or parentheses, and as a part of an address or an assignment."""
    return re.compile(rf"(?<=['\"(=/@&:]){word}\b|\b{word}(?=['\")=/@&])")


def _spellings(secret: str) -> set[str]:
    """Return `secret` as it may stand in a text: as it is, in a URL, in JSON."""
    quoted = json.dumps(secret, ensure_ascii=False)[1:-1]
    return {secret, quote(secret, errors="replace"), quote(secret, safe="", errors="replace"), quoted}
