"""easq version: the version of easq; with -v also of Python and the libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easq import __version__
from easq.cli.command import command

if TYPE_CHECKING:
    from easq.cli.app import App

#: distributions whose version matters to a bug report
_LIBRARIES = (
    "aiohttp",
    "click",
    "httpcore",
    "httpx",
    "prometheus-client",
    "protobuf",
    "redis",
    "rich",
    "tomli-w",
    "websocket-client",
    "yarl",
)
#: seconds that git may take to name the commit
_GIT_S = 5


@command("version", examples=("easq version", "easq version -v", "easq version -o json"))
def version(app: App) -> None:
    """Show the version.

    With -v, also show the commit, and the versions of Python, SQLite, OpenSSL and the libraries.
    """
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
        **_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION.removeprefix("OpenSSL "),
    }
    for name in _LIBRARIES:
        try:
            found[name] = distribution(name).version
        except PackageNotFoundError:  # an extra, or not needed by this version
            continue
    return found


def _commit() -> dict[str, str]:
    """Return the commit of easq as `commit`: that of a checkout, or the one that was installed; empty if unknown."""
    import json
    import subprocess
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path

    folder = Path(__file__).parents[2]
    if (folder / ".git").exists():
        command = ("git", "-C", str(folder), "rev-parse", "HEAD")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_S, check=True)
        except (OSError, subprocess.SubprocessError):
            return {}
        return {"commit": done.stdout.strip()}
    try:
        origin = json.loads(distribution("easq").read_text("direct_url.json") or "{}")
        return {"commit": str(origin["vcs_info"]["commit_id"])}
    except (PackageNotFoundError, ValueError, KeyError):
        return {}
