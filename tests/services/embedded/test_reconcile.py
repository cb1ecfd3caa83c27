"""The machine follows the endpoints' rows: what is nobody's goes, counts are put right, and an old observer is refused."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.app.context import AppContext
from services.app.endpoints.tables import EndpointRow
from services.app.internal import AppAccess
from services.cluster.jobs.reconcile import bring_in_line
from services.cluster.jobs.tools import ClusterTools
from services.cluster.runtimes.base import Observation, StaleGeneration
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.local import LocalSite
from shared.db.engine import Database
from shared.jobs.outcomes import Permanent
from tests.services.app import rows
from tests.services.app.conftest import People
from tests.services.cluster.runtimes.local.conftest import workload

CONFIG = {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}


class Machine:
    """This machine's runtime beside the rows of the app."""

    def __init__(self, context: AppContext, runtime: LocalRuntime, folder: Path, project: UUID) -> None:
        self.cluster_id = uuid4()
        self.database = context.database
        self.runtime = runtime
        self.app = AppAccess(context)
        self.models = folder / "models"
        self.models.mkdir()
        self.project = project
        site = LocalSite(self.cluster_id, runtime, self.models, context.objects)
        self.tools = ClusterTools(self.app, context.objects, context.settings, site)

    async def endpoint(self, **values: Any) -> UUID:
        model = rows.model(modality=["llm"])
        given = {"deploy_config": CONFIG, "desired": {"replicas": 1}, **values}
        row = rows.endpoint(self.project, model.id, self.cluster_id, **given)
        await rows.insert(self.database, model, row)
        (self.models / str(row.id)).mkdir()
        return row.id

    async def serve(self, endpoint_id: UUID, **more: Any) -> None:
        await self.runtime.apply(workload(endpoint=str(endpoint_id), **more))

    async def bring_in_line(self, epoch: int = 1) -> list[Observation]:
        return await bring_in_line(self.tools, self.app, self.cluster_id, epoch)

    async def replicas(self) -> dict[UUID, int]:
        return {UUID(name): seen.replicas for name, seen in (await self.runtime.observe()).items()}


@pytest.fixture
async def machine(app_context: AppContext, runtime: LocalRuntime, people: People, tmp_path: Path) -> Machine:
    made = Machine(app_context, runtime, tmp_path, await people.project("p"))
    await rows.insert(app_context.database, rows.cluster(id=made.cluster_id, kind="local"))
    return made


async def test_what_no_row_owns_is_removed_with_its_files(machine: Machine) -> None:
    serving = await machine.endpoint()
    deleted = await machine.endpoint(phase="deleted", state="deleted")
    unknown = uuid4()
    (machine.models / str(unknown)).mkdir()
    for one in (serving, deleted, unknown):
        await machine.serve(one)
    await machine.bring_in_line()
    assert await machine.replicas() == {serving: 1}
    assert [path.name for path in machine.models.iterdir()] == [str(serving)]


@pytest.mark.parametrize("phase", ["deploying", "updating", "deleting", "failed"])
async def test_what_a_job_works_on_is_left_to_it(machine: Machine, phase: str) -> None:
    endpoint = await machine.endpoint(phase=phase, state="deploying" if phase == "deploying" else "updating")
    await machine.serve(endpoint, replicas=2)
    await machine.bring_in_line()
    assert await machine.replicas() == {endpoint: 2}
    assert list(machine.models.iterdir())


async def test_a_wrong_number_of_workers_is_put_right(machine: Machine) -> None:
    few = await machine.endpoint(desired={"replicas": 2}, generation=3)
    many = await machine.endpoint(desired={"replicas": 1}, generation=3)
    await machine.serve(few, generation=2)
    await machine.serve(many, generation=3, replicas=2)
    await machine.bring_in_line()
    assert await machine.replicas() == {few: 2, many: 1}


async def test_whoever_has_begun_a_later_change_wins(machine: Machine) -> None:
    endpoint = await machine.endpoint(desired={"replicas": 1}, generation=2)
    await machine.serve(endpoint, generation=5, replicas=2)
    await machine.bring_in_line()
    assert await machine.replicas() == {endpoint: 2}
    with pytest.raises(StaleGeneration):
        await machine.runtime.scale(str(endpoint), 1, 2)


async def test_an_endpoint_that_cannot_be_served_keeps_no_other_from_it(machine: Machine) -> None:
    lost = await machine.endpoint(digest="0" * 64)  # its files are not in the store, and nothing serves it
    wrong = await machine.endpoint(desired={"replicas": 2}, generation=2)
    await machine.serve(wrong)
    missing = await machine.bring_in_line()
    assert await machine.replicas() == {wrong: 2}
    assert [one.endpoint_id for one in missing] == [str(lost)]
    assert await machine.app.observe(machine.cluster_id, 1, [one.model_dump(mode="json") for one in missing])
    async with machine.database.transaction() as session:
        row = await session.get_one(EndpointRow, lost)
    assert row.state == "unavailable"
    assert (row.reason or "").startswith("The endpoint could not be restored on this machine: ")


async def test_an_observer_with_an_older_epoch_changes_nothing(machine: Machine, database: Database) -> None:
    assert await machine.app.observe(machine.cluster_id, 7, [])
    orphan = uuid4()
    await machine.serve(orphan)
    await machine.bring_in_line(epoch=6)
    assert await machine.replicas() == {orphan: 1}
    assert not await machine.app.observe(machine.cluster_id, 6, [])
    with pytest.raises(Permanent, match="Another observer"):
        await machine.app.endpoint_key(machine.cluster_id, 6, uuid4())
    await machine.bring_in_line(epoch=7)
    assert await machine.replicas() == {}


async def test_the_keys_of_another_clusters_endpoints_are_not_told(machine: Machine) -> None:
    other = rows.cluster(kind="local")
    model = rows.model()
    endpoint = rows.endpoint(machine.project, model.id, other.id)
    await rows.insert(machine.database, other, model, endpoint)
    with pytest.raises(Permanent, match="not there"):
        await machine.app.endpoint_key(machine.cluster_id, 1, endpoint.id)
    with pytest.raises(Permanent, match="another machine"):
        await machine.tools.site(uuid4(), other.id)
