"""An aiohttp server that reads the body and answers: what easq's service would be if a queue cost nothing.

`python -m tests.bench.bare` prints its port on its first line, and serves until it is killed.
"""

from __future__ import annotations

import asyncio

from aiohttp import web


async def _put(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"1")


async def _serve() -> None:
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/api/predict/{queue}", _put)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve())
