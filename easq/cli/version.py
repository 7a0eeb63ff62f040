"""easq version: the version of easq, and with -v those of what it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easq import __version__
from easq.cli.options import command

if TYPE_CHECKING:
    from easq.cli.app import App

#: distributions whose version matters to a bug report
_LIBRARIES = (
    "aiohttp",
    "click",
    "httpcore",
    "protobuf",
    "redis",
    "rich",
    "tomli-w",
    "websocket-client",
    "yarl",
)


@command("version", examples=("easq version", "easq version -v", "easq version -o json"))
def version(app: App) -> None:
    """Show the version; with -v also those of Python, SQLite, OpenSSL and the libraries."""
    versions = {"easq": __version__}
    if app.options.get("verbose"):
        versions |= _others()
    if app.output == "json":
        app.printer.record(versions)
    elif app.output == "table":
        app.printer.table(("name", "version"), versions.items())
    else:
        app.printer.lines(f"{name} {number}" for name, number in versions.items())


def _others() -> dict[str, str]:
    import platform
    import sqlite3
    import ssl
    from importlib.metadata import PackageNotFoundError, distribution

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION.removeprefix("OpenSSL "),
    }
    for name in _LIBRARIES:
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:  # redis is an extra
            continue
    return found
