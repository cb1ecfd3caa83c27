"""The probes of the public port; those of the port beside it are in `tests.shared.telemetry.test_probes`."""

import httpx

from services.app.context import AppContext
from services.app.main import create_app


async def test_liveness_fails_for_what_has_died_and_readiness_for_what_is_missing(app_context: AppContext) -> None:
    missing: list[str] = []
    dead: list[str] = []

    async def ready() -> list[str]:
        return missing

    app = create_app(app_context, ready, lambda: dead)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/healthz")).status_code == (await client.get("/readyz")).status_code == 200
        missing.append("database")
        assert (await client.get("/healthz")).status_code == 200
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "Not ready: database.")
        dead.append("engine-claims")
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["detail"]) == (503, "Not alive: engine-claims.")
