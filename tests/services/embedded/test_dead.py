"""Whatever runs from the start to the end, and ends before, is named to those who ask whether the process lives."""

import asyncio
from pathlib import Path

import pytest

from tests.contract.running import Stepway

LOOPS = ["engine-claims", "engine-reaper", "engine-cancels", "observer", "publisher", "cluster-watches", "maintenance"]


@pytest.mark.parametrize("name", LOOPS)
async def test_a_loop_that_has_ended_is_told_of(tmp_path: Path, name: str) -> None:
    before = asyncio.all_tasks()
    async with Stepway(tmp_path / "data") as stepway:
        assembly, client = stepway.assembly, stepway.client.http
        assert assembly.dead() == []
        assert (await client.get("/healthz")).status_code == 200
        (loop,) = [task for task in asyncio.all_tasks() - before if task.get_name() == name]
        loop.cancel()
        await asyncio.wait({loop})
        assert assembly.dead() == [name]
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["detail"]) == (503, f"Not alive: {name}.")
    assert assembly.dead() == []  # it was told to stop
