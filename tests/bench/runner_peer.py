"""The public server's half of `tests.bench.runner`: run as a program under an interpreter that has llama-agents-server.

`runner_peer.py PORT IDLE_SECONDS [DATABASE_URL]` serves the flows of `runner_flows` as ours does: uvicorn on uvloop and
httptools, no log of requests, waiting runs released after the same seconds. Without a URL runs live in memory.
"""

import asyncio
import sys

import runner_flows  # type: ignore[import-not-found]  # this file's folder is where programs look first
import uvloop
from llama_agents.server import WorkflowServer


async def main(port: int, idle: float, url: str | None) -> None:
    store = None
    if url is not None:
        from llama_agents.server._store.postgres_workflow_store import PostgresWorkflowStore

        store = PostgresWorkflowStore(url)
        await store.start()  # uvicorn starts the rest
    server = WorkflowServer(workflow_store=store, idle_timeout=idle)
    for name in ("one", "many", "person", "long"):
        server.add_workflow(name, getattr(runner_flows, name))
    settings = {"loop": "uvloop", "http": "httptools", "access_log": False, "log_level": "warning"}
    await server.serve("127.0.0.1", port, settings)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
