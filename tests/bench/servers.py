"""`python -m tests.bench.servers`: durable puts a second, one process on a file, and one to three on one Redis.

wrk puts items of SIZE bytes over 64 connections, spread evenly over the servers, one contender after the other in each
round, the order changing by round. The table goes to stdout, what is going on to stderr. Needs wrk and redis-server.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.process import Service
from tests.support.redis import RedisServer

#: bytes of an item, and connections in all
SIZE, CONNECTIONS = 256, 64
#: items in Redis while its memory is measured
MEASURED = 100_000


class Contender:
    """Servers that are measured together: `count` of them on one storage."""

    def __init__(self, name: str, servers: Sequence[Service]) -> None:
        self.name = name
        self.servers = servers
        self.rates: list[float] = []
        self.p99_ms: list[float] = []

    def measure(self, seconds: int) -> None:
        """One more figure: puts a second over all servers, and the slowest server's p99."""
        for server in self.servers:
            server.stream().truncate(2**53 - 1)
        share = CONNECTIONS // len(self.servers)
        runs = [_wrk(server, share, seconds) for server in self.servers]
        found = [_figures(run) for run in runs]
        self.rates.append(sum(rate for rate, _ in found))
        self.p99_ms.append(max(p99 for _, p99 in found))

    def row(self) -> str:
        low, middle, high = min(self.rates), statistics.median(self.rates), max(self.rates)
        return f"| {self.name} | {middle:,.0f} ({low:,.0f}-{high:,.0f}) | {statistics.median(self.p99_ms):.0f} ms |"


def _wrk(server: Service, connections: int, seconds: int) -> subprocess.Popen[str]:
    script = server.folder / "put.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = string.rep("x", {SIZE})\n'
        'wrk.headers["Content-Type"] = "application/octet-stream"\n'
    )
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        "-s",
        str(script),
        server.url(),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _figures(run: subprocess.Popen[str]) -> tuple[float, float]:
    said, _ = run.communicate(timeout=120)
    if "Non-2xx" in said or run.returncode:
        raise SystemExit(f"wrk: {said}")
    rate = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    p99 = re.search(r"99%\s+([0-9.]+)(us|ms|s)", said)
    if rate is None or p99 is None:
        raise SystemExit(f"wrk: {said}")
    return float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]


def bytes_an_item(redis: RedisServer, server: Service) -> float:
    """What an item of SIZE bytes takes in Redis, all that belongs to it included."""
    stream = server.stream()
    stream.truncate(2**53 - 1)
    before = _used(redis)
    while stream.length() < MEASURED:
        run = _wrk(server, CONNECTIONS, 2)
        run.communicate(timeout=60)
    found = (_used(redis) - before) / stream.length()
    stream.truncate(2**53 - 1)
    return found


def _used(redis: RedisServer) -> int:
    with redis.client() as client:
        return int(client.info("memory")["used_memory"])


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.servers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    asked = parser.parse_args()
    began = time.strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        redis = RedisServer(folder / "redis")
        redis.start()
        services = [_service(folder / "file", f"sqlite:{folder / 'easq.db'}")]
        services += [_service(folder / f"s{number}", redis.url) for number in range(3)]
        try:
            file, *servers = services
            contenders = [Contender("one server, SQLite, fsync", [file])]
            for count, name in enumerate(("one server", "two servers", "three servers"), 1):
                contenders.append(Contender(f"{name}, one Redis, appendfsync always", servers[:count]))
            for number in range(asked.rounds):
                for contender in contenders if number % 2 == 0 else contenders[::-1]:
                    contender.measure(asked.seconds)
                    print(
                        f"round {number + 1}: {contender.name}: {contender.rates[-1]:,.0f}/s", file=sys.stderr
                    )
            memory = bytes_an_item(redis, servers[0])
        finally:
            for service in services:
                service.kill()
            redis.kill()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{began}, {machine}, {asked.rounds} rounds of {asked.seconds} s, load {os.getloadavg()[0]:.1f}\n")
    print(f"| | puts/s of {SIZE} B, median (spread) | p99 |")
    print("|---|---|---|")
    for contender in contenders:
        print(contender.row())
    print(f"\n{memory:,.0f} bytes of Redis' memory for an item of {SIZE} bytes")


def _service(folder: Path, storage: str) -> Service:
    folder.mkdir()
    service = Service(folder, storage, ("--max-length", "10000000"), "")
    service.is_forked = False
    service.start()
    return service


if __name__ == "__main__":
    main()
