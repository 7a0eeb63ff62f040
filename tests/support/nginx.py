"""A private nginx in a process and a folder of its own, set up as Debian's package sets it up."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from tests.support.redis import free_port
from tests.support.tools import find_tool
from tests.support.waiting import PATIENCE_S, eventually

#: Debian's package puts it where only root's PATH looks
_FOLDERS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))

#: of Debian's nginx.conf and sites-available/default everything that bears on a proxied request; one process in the
#: foreground, with its files in a folder of its own, is what a test needs beside that
_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    access_log {folder}/access.log;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""

#: what whoever reads no manual writes
DEFAULT = """
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
    }}
}}
"""


class Nginx:
    """nginx on a free port of 127.0.0.1, before a service at `upstream`."""

    def __init__(self, folder: Path, upstream: int, server: str = DEFAULT) -> None:
        """`server` is the configuration inside `http`, in which {port} and {upstream} are replaced."""
        self.folder = folder
        self.port = free_port()
        self._config = folder / "nginx.conf"
        inside = server.format(port=self.port, upstream=upstream)
        self._config.write_text(_CONFIG.format(folder=folder, server=inside))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """It takes connections."""
        command = [find_tool("nginx", _FOLDERS), "-p", str(self.folder), "-e", str(self.folder / "error.log")]
        with (self.folder / "said.log").open("wb") as said:
            self._process = subprocess.Popen(
                [*command, "-c", str(self._config)], stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
        eventually(self._listens)

    def _listens(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"nginx has ended: {(self.folder / 'error.log').read_text()}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def url(self, queue: str = "qservice") -> str:
        """The address of a queue behind it."""
        return f"http://127.0.0.1:{self.port}/api/predict/{queue}"

    def kill(self) -> None:
        """The process is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_S)
