"""A replica of `tests.bench.dapr_engine`: a process that drives runs beside its sidecar, by Stepway's engine or by hand.

`python -m tests.bench.dapr_worker` reads `GIVEN`, a JSON object of `Replica`, and runs until SIGTERM.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pydantic import BaseModel, SecretStr
from starlette.applications import Starlette
from starlette.routing import Route

from services.assembly.process import configure_logs, listen, make_server, run_on_loop, stop_signals, until_started
from shared.jobs.dapr.ports import JobsPort, RunsPort
from shared.jobs.dapr.sidecar import Sidecar, SidecarAddress
from shared.jobs.dapr.worker import Worker
from shared.jobs.declare import Registry
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity
from shared.rpc.server import Served, routes
from tests.bench.dapr_by_hand import ByHand
from tests.bench.dapr_jobs import BY_HAND, JOBS

GIVEN = "STEPWAY_BENCH_REPLICA"
PATIENCE = 60.0


class Replica(BaseModel):
    service: str
    port: int
    http_port: int
    grpc_port: int
    token: str
    app_token: str
    prefix: str
    key: str


async def main() -> int:
    given = Replica.model_validate_json(os.environ[GIVEN])
    address = SidecarAddress(given.http_port, given.grpc_port, given.token, prefix=given.prefix)
    identity = Identity(given.service, key=SecretStr(given.key))
    sidecar = Sidecar(address, identity)
    stop = stop_signals()
    how = _by_hand(sidecar) if given.service == BY_HAND else _by_stepway(given, sidecar, identity)
    async with how as (served, start):
        server = make_server(Starlette(routes=served))
        serving = asyncio.create_task(server.serve(sockets=[listen("127.0.0.1", given.port)]))
        await until_started(server, serving)
        await sidecar.wait_ready()
        await start()
        await stop.wait()
    server.should_exit = server.force_exit = True
    await serving
    await sidecar.aclose()
    return 0


@asynccontextmanager
async def _by_stepway(given: Replica, sidecar: Sidecar, identity: Identity) -> AsyncIterator[tuple[list[Route], Any]]:
    registry = Registry()
    registry.add([JOBS[given.service]], None)
    jobs: JobsPort = remote(JobsPort, APP, sidecar, patience=PATIENCE)
    worker = Worker(given.service, registry, sidecar, jobs)
    yield routes([Served(RunsPort, worker, frozenset({APP}))], identity, SecretStr(given.app_token)), worker.start
    await worker.close()


@asynccontextmanager
async def _by_hand(sidecar: Sidecar) -> AsyncIterator[tuple[list[Route], Any]]:
    hand = ByHand(sidecar)

    async def start() -> None:
        await asyncio.to_thread(hand.start)

    yield hand.routes, start
    await asyncio.to_thread(hand.close)


if __name__ == "__main__":
    configure_logs()
    sys.exit(run_on_loop(main))
