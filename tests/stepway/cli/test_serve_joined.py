"""`stepway serve` joined to `stepway up`: two real processes, and one of them killed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stepway.client import Client
from tests.stepway.cli.conftest import Service
from tests.stepway.runner.serving import Server, until

FLOWS = """
import asyncio
from workflows import Workflow, step
from workflows.events import StartEvent, StopEvent
from stepway.runner import WorkflowServer

class Sleep(Workflow):
    @step
    async def sleep(self, ev: StartEvent) -> StopEvent:
        await asyncio.sleep(float(ev.seconds))
        return StopEvent(result="rested")

server = WorkflowServer()
server.add_workflow("sleep", Sleep(timeout=None))
"""


def test_a_served_file_is_seen_and_cancelled_and_may_be_killed(
    service: Service, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "my_server.py"
    file.write_text(FLOWS)
    key = {"X-API-Key": service.key}

    def start(server: Server, handler: str, seconds: float) -> None:
        body = {"start_event": {"seconds": seconds}, "handler_id": handler}
        answer = until(
            lambda: _unless_503(lambda: server.ask("POST", "/workflows/sleep/run-nowait", json=body, headers=key))
        )
        assert answer.status_code == 200, answer.text

    def told(handler: str, status: str) -> dict[str, Any]:
        found: dict[str, Any] = until(
            lambda: next(client.items("/workflow-runs", handler_id=handler, status=status), None)
        )
        return found

    environment = {"STEPWAY_URL": service.url, "STEPWAY_API_KEY": service.key}
    server = Server(file, "--name", "joined", log=tmp_path / "log", environment=environment)
    try:
        assert server.ask("GET", "/handlers").status_code == 401
        start(server, "short", 0)
        told("short", "completed")
        for handler in ("long", "lost"):
            start(server, handler, 600)
        client.post(f"/workflow-runs/{told('long', 'running')['id']}/cancel")
        told("long", "cancelled")
        told("lost", "running")
        server.signal(signal.SIGKILL)
        server.died()
        again = Server(file, "--name", "joined", log=tmp_path / "log", environment=environment, port=server.port)
        try:
            told("lost", "unknown")  # it was in memory
            start(again, "later", 0)
            told("later", "completed")
            [known] = client.items("/workflow-servers", name="joined")
            assert known["state"] == "online"
            again.signal(signal.SIGTERM)
            assert again.died() in (0, -signal.SIGTERM)
            assert client.get(f"/workflow-servers/{known['id']}")["state"] == "stopped"
            client.delete(f"/workflow-servers/{known['id']}")
        finally:
            again.kill()
    finally:
        server.kill()
    assert service.key not in (tmp_path / "log").read_text()


def _unless_503(ask: Callable[[], Any]) -> Any:
    """The answer, once the server knows whom to ask about keys."""
    answer = ask()
    return None if answer.status_code == 503 else answer
