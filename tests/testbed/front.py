"""Stands in for an ingress: one address before the app and the gateway, by path, as the chart's ingress routes.

`python -m tests.testbed.front PORT APP GATEWAY`, the two as `host:port,host:port…`: requests go round those that answer.
"""

import sys
from collections.abc import AsyncIterator
from itertools import cycle

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

HOP = {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length", "date", "server"}


class Front:
    def __init__(self, app: list[str], gateway: list[str]) -> None:
        self._turns = {"app": (cycle(app), len(app)), "gateway": (cycle(gateway), len(gateway))}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._http = httpx.AsyncClient(limits=limits, timeout=httpx.Timeout(600.0, connect=2.0), trust_env=False)

    async def answer(self, request: Request) -> Response:
        path = request.url.path
        is_inference = path.startswith("/endpoints/") and "/v1/" in path
        turns, count = self._turns["gateway" if is_inference else "app"]
        body = await request.body()
        for _ in range(count + 1):
            try:
                return await self._passed(request, next(turns), body)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # that one is away: the next one
            except httpx.HTTPError as error:
                sys.stderr.write(f"{request.method} {path}: {error!r}\n")
                break
        return JSONResponse({"code": "unavailable", "detail": "No service answers."}, 502)

    async def _passed(self, request: Request, where: str, body: bytes) -> Response:
        headers = [(name, value) for name, value in request.headers.raw if name.decode().lower() not in HOP]
        url = f"http://{where}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        asked = self._http.build_request(request.method, url, headers=headers, content=body or None)
        given = await self._http.send(asked, stream=True)
        kept = [(name, value) for name, value in given.headers.multi_items() if name.lower() not in HOP]

        async def pieces() -> AsyncIterator[bytes]:
            try:
                async for piece in given.aiter_raw():
                    yield piece
            finally:
                await given.aclose()

        response = StreamingResponse(pieces(), given.status_code)
        response.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]
        return response


def main(port: str, app: str, gateway: str) -> None:
    front = Front(app.split(","), gateway.split(","))
    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    served = Starlette(routes=[Route("/{path:path}", front.answer, methods=methods)])
    uvicorn.run(served, host="127.0.0.1", port=int(port), log_config=None, access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
