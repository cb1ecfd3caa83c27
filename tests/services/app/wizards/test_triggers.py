"""Many triggers at once: some are worked on, the others wait where they are in nobody's way."""

import asyncio
from typing import Any

import httpx

from services.app.context import TRIGGERS, AppContext
from tests.services.app.conftest import People

PATH = "/models/security-scan"


async def test_triggers_wait_for_a_place_and_drafts_do_not(
    client: httpx.AsyncClient, app_context: AppContext, people: People
) -> None:
    person = await people.add("admin")

    async def step(**changes: Any) -> httpx.Response:
        body = {"workflow_total_steps": 3, "step_number": 1, **changes}
        return await client.post(PATH, json=body, headers=person.headers)

    for _ in range(TRIGGERS):  # as many others are being worked on
        await app_context.triggers.acquire()
    waiting = [asyncio.create_task(step(trigger_workflow=True)) for _ in range(3)]
    assert (await step()).status_code == 200
    assert not any(task.done() for task in waiting)
    app_context.triggers.release()
    answers = await asyncio.wait_for(asyncio.gather(*waiting), 60)
    assert {answer.json()["code"] for answer in answers} == {"missing_fields"}
