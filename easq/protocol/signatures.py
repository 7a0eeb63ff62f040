"""The HMAC signature of a predict request: `Authorization: EAS <base64(HMAC-SHA1(token, text))>`.

Source: the official Python, Go and Java SDKs. The key is the text of the token, without decoding. The MD5 is lower-case
hex. The protocol requires SHA-1 and MD5: a signature identifies the sender, but only TLS protects the content.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import unquote


def sign(token: str, body: bytes, *, content_type: str, date: str, path: str) -> dict[str, str]:
    """Return the headers that sign a POST of `body` to `path` (`/api/predict/SERVICE...`) at the HTTP date `date`."""
    md5 = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return {
        "Authorization": authorization(token, md5, content_type, date, path),
        "Content-MD5": md5,
        "Content-Type": content_type,
        "Date": date,
    }


def authorization(token: str, content_md5: str, content_type: str, date: str, path: str) -> str:
    """Return the value of Authorization that signs these header values and `path`."""
    text = "\n".join(("POST", content_md5, content_type, date, path))
    digest = hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()
    return "EAS " + base64.b64encode(digest).decode("ascii")


def is_signed(token: str, headers: Mapping[str, str], target: str) -> bool:
    """Return whether a POST was signed with `token`.

    Header values are not normalized: the Java SDK drops leading zeros of the MD5, and two SDKs send their local time as
    GMT. Only the Java SDK signs the query. A path may be signed before or after percent-encoding.

    Args:
        target: path and query, as they were sent.
        headers: a mapping that ignores the case of names.
    """
    given = headers.get("Authorization", "").strip().encode("utf-8", "replace")
    md5, media_type, date = (headers.get(name, "") for name in ("Content-MD5", "Content-Type", "Date"))
    path = target.partition("?")[0]
    signed = {path, target, unquote(path, errors="replace"), unquote(target, errors="replace")}
    good = [authorization(token, md5, media_type, date, one).encode("utf-8", "replace") for one in signed]
    return any(hmac.compare_digest(given, one) for one in good)
