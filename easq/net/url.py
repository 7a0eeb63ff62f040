"""URLs: validation, display without secrets, loopback and private addresses, and the choice of a proxy."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from easq.errors import ConfigError
from easq.protocol.operations import Request

_HINT = "write it as http://HOST[:PORT]/api/predict/NAME"
_WEBSOCKET_HINT = "write it as wss://HOST[:PORT]/PATH"
_PLAIN_SCHEMES = {"ws": "http", "wss": "https"}
#: characters of a request's path that are sent as they are, beside letters and digits
PATH_SAFE = "/-._~!$&'()*+,;=:@"
#: characters of a query that are sent as they are
_QUERY_SAFE = "/%:@!$&'()*+,;=?~[]"
#: the scheme of a URL, with `://`
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ENCODE_HINT = "in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40 and % as %25"
_PROXY_HINT = "set NO_PROXY for this host, or another proxy"
_ENDPOINT_HINT = "write it as http://HOST[:PORT]"
_HOST = re.compile(r"[^\s/?#\[\]@\\%:<>^|`{}\"]+")
#: names that never leave the local network: RFC 6762, RFC 8375, and names in use for it
_PRIVATE_SUFFIXES = (".local", ".internal", ".lan", ".home.arpa", ".svc")


def stream_url(url: str, *, sink: bool) -> str:
    """Return the address of a stream: `url` in ASCII, without a trailing `/`, with `/sink` for the sink.

    Raises ConfigError unless `url` is a plain http or https address.
    """
    if not url:
        raise ConfigError("no url", hint=_HINT)
    if not url.isprintable() or " " in url or "\\" in url:
        raise ConfigError("the url holds a blank, a backslash or a control character", hint=_HINT)
    _check_late_at(url)
    parts = _split(url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the url {shown(url)} holds a user or password", hint="give the token on its own (--token-file)"
        )
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"the url {shown(url)} does not begin with http:// or https://", hint=_HINT)
    if "?" in url or "#" in url:
        raise ConfigError(f"the url {shown(url)} goes on with a query or fragment", hint=_HINT)
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=~")
    if sink and not path.endswith("/sink"):
        path += "/sink"
    return f"{parts.scheme}://{_ascii_netloc(parts, url)}{path}"


def endpoint_url(endpoint: str, *, scheme: str = "http", hint: str = _ENDPOINT_HINT) -> str:
    """Return the address of a discovery service: `endpoint`, with `scheme` if it has none.

    Raises ConfigError, with `hint`, for any other text.
    """
    try:
        return stream_url(endpoint if "://" in endpoint else f"{scheme}://{endpoint}", sink=False)
    except ConfigError as error:
        raise ConfigError(error.message.replace("the url", "the endpoint", 1), hint=hint) from error


def websocket_url(url: str, *, path: str = "") -> str:
    """Return the address of a WebSocket service: `url` as ws or wss, `path` appended to its path, its query unchanged.

    Raises ConfigError for any other text.
    """
    _check_late_at(url)
    base, mark, query = url.partition("?")
    scheme, colon, rest = base.partition("://")
    if scheme.lower() in _PLAIN_SCHEMES:
        base = f"{_PLAIN_SCHEMES[scheme.lower()]}{colon}{rest}"
    try:
        checked = stream_url(base, sink=False)
    except ConfigError as error:
        text = error.message.replace("http://", "ws://").replace("https://", "wss://")
        raise ConfigError(text, hint=_WEBSOCKET_HINT) from error
    if not query.isprintable() or any(c in " \\#" for c in query):
        raise ConfigError("the query of the url holds a blank or another character that none may hold")
    if path:
        checked += quote(path, safe="/%:@!$&'()*+,;=~")
    elif rest.endswith("/"):
        checked += "/"  # some services distinguish URLs with and without it
    return f"ws{checked.removeprefix('http')}{mark}{quote(query, safe=_QUERY_SAFE)}"


def address_of(url: str) -> str:
    """Return `HOST:PORT` of `url`."""
    parts = _split(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or (443 if is_encrypted(parts.scheme) else 80)}"


def shown(url: str) -> str:
    """Return `url` as messages may show it: without user, password, query and fragment.

    A user and a password that contains `/`, `?` or `#` look like HOST:PORT and a path. So if an `@` follows such a
    HOST:PORT, all text before the `@` is hidden.
    """
    scheme, authority, rest = _cut(url)
    if _holds_late_at(authority, rest):
        return f"{scheme}****@{re.split('[?#]', rest.rpartition('@')[2], maxsplit=1)[0]}"
    path = re.split(r"[?#]", rest, maxsplit=1)[0]
    return f"{scheme}{authority.rpartition('@')[2]}{path}"


def masked(url: str) -> str:
    """Return `url` for the display of a setting: like `shown`, but with **** for each part that `shown` omits."""
    scheme, authority, rest = _cut(url)
    hidden = shown(url)
    if "@" in authority:
        hidden = f"{scheme}****@{hidden[len(scheme) :]}"
    return hidden + "".join(f"{mark}****" for mark in "?#" if mark in rest)


def _cut(url: str) -> tuple[str, str, str]:
    """Return the three parts of `url`: the scheme with `://`, the text up to the next `/`, `?` or `#`, and the rest."""
    found = _SCHEME.match(url)
    scheme = found[0] if found else ""
    authority = re.split(r"[/?#]", url[len(scheme) :], maxsplit=1)[0]
    return scheme, authority, url[len(scheme) + len(authority) :]


def _holds_late_at(authority: str, rest: str) -> bool:
    """Return whether `authority` may be a user and the beginning of a password that continues in `rest`."""
    return "@" in rest and ":" in authority and not _is_address(authority)


def is_loopback(url: str) -> bool:
    """Return whether `url` stays on this machine."""
    return _is_loopback_host(_host(url))


def is_private(url: str) -> bool:
    """Return whether `url` stays on this machine or, by its name or address, in a private network."""
    host = _host(url)
    if _is_loopback_host(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        vpc = host.endswith(".aliyuncs.com") and (".vpc." in host or host.startswith("pai-eas-vpc."))
        return vpc or "." not in host or host.endswith(_PRIVATE_SUFFIXES)
    return address.is_private or address.is_link_local


def is_websocket(url: str) -> bool:
    """Return whether the scheme of `url` is ws or wss."""
    return url.partition("://")[0].lower() in ("ws", "wss")


def is_encrypted(scheme: str) -> bool:
    """Return whether `scheme` uses TLS."""
    return scheme in ("https", "wss")


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """Return the proxy for `url` by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY in `environ`, in either case.

    Loopback is never proxied. Raises ConfigError for a proxy that is not an http or https address.
    """
    host = _host(url)
    parts = _split(url)
    scheme = "https" if is_encrypted(parts.scheme) else "http"
    port = parts.port or (443 if scheme == "https" else 80)
    exempt = _variable(environ, "no_proxy").split(",")
    if _is_loopback_host(host) or any(_matches(host, port, entry.strip().lower()) for entry in exempt):
        return None
    proxy = _variable(environ, f"{scheme}_proxy") or _variable(environ, "all_proxy")
    if not proxy:
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        parts = _split(proxy)
    except ConfigError as error:
        hint = _ENCODE_HINT if "@" in proxy else _PROXY_HINT
        raise ConfigError(error.message.replace("the url", "the proxy", 1), hint=hint) from error
    if "@" in parts.path + parts.query + parts.fragment:
        raise ConfigError("the user or password of the proxy holds one of / ? #", hint=_ENCODE_HINT)
    scheme = parts.scheme
    if scheme not in ("http", "https"):
        raise ConfigError(f"the proxy {shown(proxy)} is neither http nor https", hint=_PROXY_HINT)
    return proxy


def _split(url: str) -> SplitResult:
    """Return the parts of `url`. Raises ConfigError unless the host is a name or an address, and the port valid."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host and ":" in host:
            ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError as error:  # its message may quote a part of a password
        raise ConfigError(f"the host or port of the url {shown(url)} is malformed", hint=_HINT) from error
    if "://" not in url:
        raise ConfigError(f"the url {shown(url)} does not begin with http:// or https://", hint=_HINT)
    labels = (host or "").removesuffix(".").split(".")
    is_name = _HOST.fullmatch(host or "") and all(0 < len(label) < 64 for label in labels)
    if not host or not ("[" in parts.netloc or is_name):
        raise ConfigError(f"the url {shown(url)} names no host", hint=_HINT)
    if port == 0 or parts.netloc.endswith(":"):
        raise ConfigError(f"the url {shown(url)} has no usable port", hint=_HINT)
    return parts


def _ascii_netloc(parts: SplitResult, url: str) -> str:
    if parts.netloc.isascii():
        return parts.netloc
    try:
        host = (parts.hostname or "").encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ConfigError(f"the url {shown(url)} has no usable host: {error}", hint=_HINT) from error
    return f"{host}:{parts.port}" if parts.port else host


def _host(url: str) -> str:
    return (_split(url).hostname or "").lower().rstrip(".")


def _check_late_at(url: str) -> None:
    """Raise ConfigError for an `@` after the host, which may end a password that contains `/`, `?` or `#`."""
    _, authority, rest = _cut(url)
    if _holds_late_at(authority, rest):
        raise ConfigError(
            f"the url {shown(url)} has an @ after its host",
            hint="write an @ in the path as %40, and give a token with --token-file",
        )


def _is_address(authority: str) -> bool:
    """Return whether `authority` is localhost or an IP address, with or without a port."""
    host, _, port = authority.rpartition(":")
    if not (host and port.isdecimal()):
        host = authority
    try:
        return host == "localhost" or bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _is_loopback_host(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or bool(mapped and mapped.is_loopback)


def _variable(environ: Mapping[str, str], name: str) -> str:
    # in a CGI program a request's `Proxy:` header sets HTTP_PROXY in upper case
    upper = "" if name == "http_proxy" and "REQUEST_METHOD" in environ else environ.get(name.upper(), "")
    return (environ.get(name, "") or upper).strip()


def _matches(host: str, port: int, entry: str) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass
    name, colon, digits = entry.rpartition(":")
    if colon and digits.isdecimal():
        if int(digits) != port:
            return False
        entry = name.strip("[]")
    entry = entry.removeprefix("*").strip(".")
    return host == entry or host.endswith(f".{entry}")


def request_url(url: str, request: Request) -> str:
    """Return the URL of `request`: `url` and its path and query, percent-encoded, with `+` for a blank in the query."""
    path = quote(request.path, safe=PATH_SAFE)
    query = urlencode(request.query)
    return f"{url}{path}?{query}" if query else url + path
