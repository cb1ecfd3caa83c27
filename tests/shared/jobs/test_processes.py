"""The processes that run jobs, as they announce themselves."""

import os
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from shared.db.engine import Database
from shared.jobs.claims import Claims, Process, machine_identity, process_identity
from shared.jobs.dapr.access import LedgerAccess
from shared.jobs.dapr.ports import Replica
from shared.jobs.hub import Hub
from shared.jobs.ledger import Ledger
from shared.jobs.outcomes import Permanent

HERE, ELSEWHERE = machine_identity(), "another machine"
KINDS = {"rolled": [1]}


def process(host: str, pid: int, started: str, id: UUID | None = None, service: str = "model") -> Process:
    return Process(id or uuid4(), host, pid, started, KINDS, service)


async def alive(database: Database) -> dict[UUID, str]:
    """`{process: its service}` of those whose lease lasts."""
    async with database.statement() as connection:
        rows = await connection.execute(
            text("SELECT id, service FROM jobs.process WHERE lease_until > clock_timestamp()")
        )
        return {row.id: row.service for row in rows}


@pytest.fixture
def claims(database: Database) -> Claims:
    return Claims(database, Ledger(database, Hub(database)), uuid4(), 600.0)


async def test_a_process_of_this_machine_that_is_no_more_loses_its_lease(database: Database, claims: Claims) -> None:
    lives = process(HERE, os.getpid(), process_identity(os.getpid()))
    gone, newest = process(HERE, os.getpid(), "another start"), process(HERE, 1, process_identity(1))
    for one in (lives, gone, newest):
        assert await claims.announce(one)
    assert set(await alive(database)) == {lives.id, newest.id}


async def test_processes_of_another_machine_are_not_judged_from_here(database: Database, claims: Claims) -> None:
    """Their pids mean others here, or none."""
    both = [process(ELSEWHERE, pid, "its start") for pid in (1, os.getpid())]
    for one in both:
        assert await claims.announce(one)
    assert set(await alive(database)) == {one.id for one in both}


async def test_a_replica_keeps_its_service(database: Database) -> None:
    ledger = Ledger(database, Hub(database))
    access = LedgerAccess(database, ledger, {"rolled": "model"})
    replica = Replica(id=uuid4(), service="model", host=ELSEWHERE, pid=1, started="its start", kinds=KINDS)
    await access.join(replica)
    await access.join(replica)  # again, as after it was taken for dead
    with pytest.raises(Permanent) as refused:
        await access.join(replica.model_copy(update={"service": "cluster", "kinds": {}}))
    assert refused.value.code == "not_your_job"
    assert await alive(database) == {replica.id: "model"}
    async with database.statement() as connection:
        assert await connection.scalar(text("SELECT kinds FROM jobs.process")) == KINDS
    await access.close()
