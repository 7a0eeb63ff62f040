"""A private redis-server (or Sentinel) in a process and a folder of its own; never one that was there before."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

from tests.support.process import freeze, thaw
from tests.support.tools import find_tool
from tests.support.waiting import PATIENCE_S

#: below the ports that Linux gives to outgoing connections, so that none of them takes the port of a Redis that is
#: down for a moment; port + 10,000, a Cluster node's second one, is below them too
PORTS = range(15_000, 22_000)

#: what every server here is started with; appendonly and appendfsync are what docs/redis.md tells people to use
DEFAULTS: Mapping[str, str] = {
    "bind": "127.0.0.1",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": '""',
    "maxmemory-policy": "noeviction",
    "repl-diskless-sync-delay": "0",
}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, nor on the one 10,000 above."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


class RedisServer:
    """redis-server on a free port of 127.0.0.1. It can be killed, stopped for a while, and started again on its data.

    Options are those of redis.conf with `_` for `-`: `RedisServer(folder, appendfsync="everysec")`. The file is written
    once: what CONFIG REWRITE or a Sentinel puts there later is still there at the next start.
    """

    program = "redis-server"

    def __init__(self, folder: Path, **options: str) -> None:
        self.folder = folder
        self.port = 0
        self.log = folder / "redis.log"
        self.options = {**DEFAULTS, **{name.replace("_", "-"): value for name, value in options.items()}}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What `easq serve --storage` takes."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """The server answers, and has read its data."""
        assert self._process is None
        program = find_tool(self.program)
        config = self.folder / "redis.conf"
        for _ in range(5):
            if self.port == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.port = free_port()
                config.write_text(self._configuration())
            if self._launch([program, str(config)]):
                return
            assert "Address already in use" in self.log.read_text(), self.log.read_text()
            assert not any(self.folder.glob("appendonlydir/*")), "its port was taken while it was down"
            self.port = 0
        raise AssertionError(f"no port to be had: {self.log.read_text()}")

    def _configuration(self) -> str:
        lines = {"port": str(self.port), "dir": str(self.folder), "logfile": str(self.log), **self.options}
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _launch(self, command: list[str]) -> bool:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + PATIENCE_S
        while self._process.poll() is None:
            if self._is_ready():
                return True
            assert time.monotonic() < deadline, f"not ready: {self.log.read_text()}"
            time.sleep(0.01)
        self._process = None
        return False

    def _is_ready(self) -> bool:
        """Whether this very process answers: another one may have taken the port."""
        try:
            with self.client() as client:
                return int(client.info("server")["process_id"]) == self.pid
        except redis.RedisError:
            return False

    def client(self, **options: object) -> redis.Redis:
        """A connection to it that tries nothing twice; answers are bytes."""
        given = {"socket_timeout": PATIENCE_S, "retry": None, **options}
        return redis.Redis(host="127.0.0.1", port=self.port, **given)

    def ask(self, *command: str | bytes | int) -> object:
        """The answer to one command on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def client_list(self) -> list[str]:
        """Return a line about each connected client; the connection that asks is one of them."""
        with self.client() as client:
            return [str(line) for line in client.client_list()]

    def kill(self) -> None:
        """The process is gone, as by `kill -9`, also when it was stopped."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """The server has ended in order."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._process = None

    def restart(self) -> None:
        """Killed, and ready again on the same data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """The process stands still: connections stay open, nothing is answered."""
        freeze(self.pid)

    def thaw(self) -> None:
        """The process goes on."""
        thaw(self.pid)

    def role(self) -> str:
        """master or slave; empty when it does not answer."""
        return str(self._replication().get("role", ""))

    def follows(self, other: RedisServer) -> bool:
        """Whether it is a replica of the other one, has all its data, and gets what is new."""
        found = self._replication()
        return (
            found.get("role") == "slave"
            and found["master_port"] == other.port
            and found["master_link_status"] == "up"
            and found["master_sync_in_progress"] == 0
            and other._reaches_a_replica()
        )

    def _reaches_a_replica(self) -> bool:
        """Whether one has what is sent now: after a full copy it is sent nothing new for up to a second."""
        try:
            with self.client(socket_timeout=2.0) as client:
                client.publish("probe", "")
                return bool(client.wait(1, 200))
        except redis.RedisError:
            return False

    def _replication(self) -> dict[str, Any]:
        try:
            with self.client(socket_timeout=1.0) as client:
                return dict(client.info("replication"))
        except redis.RedisError:
            return {}


class Sentinel(RedisServer):
    """redis-sentinel that watches one primary under the name `easq`, and promotes its replica; with a `quorum` above 1,
    once as many agree.

    A Sentinel whose timer was late by more than 2 s, as on a loaded machine, does nothing for 30 s (TILT, which Redis 7
    has no setting for); a promotion that failed is tried again after twice `failover_ms`; an old primary that came back
    is made a replica when it has told the wrong role for 8 s. What waits for one of these waits `SETTLED_S`.

    With a `down_after_ms` below its period of a second it takes a primary that it has just promoted for down, since its
    new connection there has not been answered yet, and promotes the old one again if that is back.
    """

    program = "redis-sentinel"
    name = "easq"
    #: allows for two TILTs and some attempts, in seconds
    SETTLED_S = 180.0

    def __init__(
        self,
        folder: Path,
        primary: RedisServer,
        *,
        quorum: int = 1,
        down_after_ms: int = 2000,
        failover_ms: int = 2000,
    ) -> None:
        super().__init__(folder)
        self.options = {
            "bind": "127.0.0.1",
            "sentinel monitor": f"{self.name} 127.0.0.1 {primary.port} {quorum}",
            "sentinel down-after-milliseconds": f"{self.name} {down_after_ms}",
            "sentinel failover-timeout": f"{self.name} {failover_ms}",
        }

    @property
    def url(self) -> str:
        """What `easq serve --storage` takes to ask it where the primary is."""
        return f"redis+sentinel://127.0.0.1:{self.port}/{self.name}"

    def has_settled_on(self, primary: RedisServer) -> bool:
        """Whether it sends clients there, hears from it, and is not about to promote another one."""
        state = self._master()
        is_this_one = state["port"] == str(primary.port) and state["flags"] == "master"
        return is_this_one and state["role-reported"] == "master" and primary.role() == "master"

    def _master(self) -> dict[str, str]:
        with self.client() as client:
            return _pairs(client.execute_command("SENTINEL", "MASTER", self.name))

    def knows(self, replica: RedisServer) -> bool:
        """Whether it would promote the replica: it has found it, and heard from it that its link is up."""
        with self.client() as client:
            found = client.execute_command("SENTINEL", "REPLICAS", self.name)
        states = [_pairs(state) for state in found]
        return any(
            state["port"] == str(replica.port) and state["master-link-status"] == "ok" for state in states
        )

    def others(self) -> int:
        """How many more Sentinels it knows of."""
        return int(self._master()["num-other-sentinels"])

    def tilts(self) -> int:
        """How often it stopped acting because its timer was late."""
        return self.log.read_text().count("+tilt")


def _pairs(found: Any) -> dict[str, str]:
    """Names and values in turns, or already joined, as text."""
    texts = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {text_of(name): text_of(value) for name, value in texts}


def text_of(value: Any) -> str:
    """An answer as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
