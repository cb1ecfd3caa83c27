"""The trigger of a cluster's registration asks the cluster who it is: the same one again is refused, naming the first.

A real API server answers; what cannot be asked in time, or answers something else, is left to the job.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import yaml
from sqlalchemy import text
from sqlalchemy.pool import AsyncAdaptedQueuePool

from services.app.clusters.reach import Reached
from services.app.context import AppContext
from services.app.internal import AppAccess
from services.cluster.jobs.tools import ClusterTools
from services.cluster.reach import Reach
from services.cluster.runtimes.local.runtime import LocalRuntime
from services.cluster.sites.local import LocalSite
from shared.jobs.tables import JobRow
from tests.services.app import rows
from tests.services.app.conftest import People, Person
from tests.testbed.certificates import as_yaml, authority, encoded, kubeconfig
from tests.testbed.kube import ApiServer, api_server
from tests.testbed.tls_server import Request, http, serving, silent

__all__ = ["api_server"]

Json = dict[str, Any]
PATH = "/clusters/clusters"
NAMESPACE = "/api/v1/namespaces/kube-system"
NOWHERE = as_yaml(kubeconfig(cluster={"server": "https://127.0.0.1:9"}))


class Counted(Reached):
    """Keeps who is asked, and that nothing of the database is held meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None

    async def identity(self, kubeconfig: bytes) -> str | None:
        self.asked.append(yaml.safe_load(kubeconfig)["clusters"][0]["cluster"]["server"])
        pool = self._context.database.engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)
        async with asyncio.timeout(60):
            while pool.checkedout():  # what goes on beside the request ends; its own would not
                await asyncio.sleep(0.01)
        if self.meanwhile is not None:
            await self.meanwhile()
        return await super().identity(kubeconfig)


class Registrations:
    def __init__(
        self, client: httpx.AsyncClient, context: AppContext, operator: Person, reach: Counted, tools: ClusterTools
    ) -> None:
        self.client, self.context, self.operator = client, context, operator
        self.reach, self.tools = reach, tools

    async def send(
        self,
        file: bytes | None,
        *,
        trigger: bool = True,
        person: Person | None = None,
        key: str | None = None,
        **fields: str,
    ) -> httpx.Response:
        sent = {"step_number": "1", **({} if "workflow_id" in fields else {"workflow_total_steps": "3"}), **fields}
        sent |= {"trigger_workflow": "true"} if trigger else {}
        form: dict[str, Any] = {name: (None, value) for name, value in sent.items()}
        if file is not None:
            form["configuration_file"] = ("kubeconfig.yaml", file)
        headers = {**(person or self.operator).headers, **({"Idempotency-Key": key} if key else {})}
        return await self.client.post(PATH, files=form, headers=headers)

    async def known(self, uid: str, name: str = "first") -> UUID:
        row = rows.cluster(name=name, uid=uid)
        await rows.insert(self.context.database, row)
        return row.id

    async def counts(self) -> tuple[int, int]:
        statement = "SELECT (SELECT count(*) FROM platform.cluster), (SELECT count(*) FROM jobs.job)"
        async with self.context.database.statement() as connection:
            found = (await connection.execute(text(statement))).one()
        return found[0], found[1]

    async def goes_on(self, file: bytes) -> Json:
        """The job was made, as if nobody had been asked."""
        answer = await self.send(file, name=uuid4().hex)
        assert answer.status_code == 200, answer.text
        found: Json = answer.json()
        assert found["job"]["kind"] == "register_cluster"
        return found


@pytest.fixture
async def registrations(
    client: httpx.AsyncClient, app_context: AppContext, runtime: LocalRuntime, people: People, tmp_path: Path
) -> Registrations:
    app_context.settings = app_context.settings.model_copy(update={"allow_loopback_clusters": True})
    machine = LocalSite(uuid4(), runtime, tmp_path / "models", app_context.objects)
    app_context.clusters = reach = Counted()
    tools = ClusterTools(AppAccess(app_context), app_context.objects, app_context.settings, machine)
    reach.use(app_context, Reach(tools))
    return Registrations(client, app_context, await people.add("operator"), reach, tools)


def uid_of(server: ApiServer) -> str:
    return str(server.admin.get(NAMESPACE).raise_for_status().json()["metadata"]["uid"])


def served_by(port: int, **cluster: str) -> bytes:
    ca = encoded(authority().pair.certificate)
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority-data": ca, **cluster}
    return as_yaml(kubeconfig(cluster=server))


async def test_the_same_cluster_again_is_refused_and_the_draft_can_be_mended(
    registrations: Registrations, api_server: ApiServer
) -> None:
    first = await registrations.known(uid_of(api_server))
    before = await registrations.counts()
    refused = await registrations.send(api_server.kubeconfig_file(), name="again")
    said = refused.json()
    assert (refused.status_code, said["code"], said["param"]) == (409, "cluster_known", "configuration_file")
    assert (said["detail"], said["cluster_id"]) == ("This cluster is registered already, as first.", str(first))
    assert [(one["code"], one["step"]) for one in said["errors"]] == [("cluster_known", 1)]
    assert await registrations.counts() == before
    draft = said["workflow"]
    assert (draft["status"], draft["job"], draft["workflow_steps"]["name"]) == ("in_progress", None, "again")
    again = await registrations.send(None, workflow_id=draft["workflow_id"])  # with the file that the draft keeps
    assert (again.status_code, again.json()["code"]) == (409, "cluster_known")
    other = await registrations.send(NOWHERE, workflow_id=draft["workflow_id"])
    assert other.status_code == 200, other.text
    assert other.json()["job"]["kind"] == "register_cluster"
    assert await registrations.counts() == (before[0] + 1, before[1] + 1)


async def test_a_cluster_that_is_not_known_is_registered_by_its_job(
    registrations: Registrations, api_server: ApiServer
) -> None:
    await registrations.known("another")
    await registrations.goes_on(api_server.kubeconfig_file())
    assert registrations.reach.asked == [api_server.url]


async def test_an_accepted_trigger_is_answered_as_before_and_asks_nobody(
    registrations: Registrations, api_server: ApiServer
) -> None:
    file = api_server.kubeconfig_file()
    accepted = await registrations.send(file, name="one", key="accepted")
    workflow = accepted.json()["workflow_id"]
    await registrations.known(uid_of(api_server), name="meanwhile")
    for again in (
        await registrations.send(file, key="accepted", name="one"),
        await registrations.send(file, workflow_id=workflow),
        await registrations.send(None, workflow_id=workflow, name="one"),
    ):
        assert (again.status_code, again.json()["job"]["id"]) == (200, accepted.json()["job"]["id"])
    assert len(registrations.reach.asked) == 1
    refused = [await registrations.send(file, name="two", key="refused") for _ in range(2)]
    assert [one.status_code for one in refused] == [409, 409]
    assert refused[0].json()["workflow"] == refused[1].json()["workflow"]
    assert len(registrations.reach.asked) == 2


async def test_a_step_without_a_trigger_asks_nobody(registrations: Registrations, api_server: ApiServer) -> None:
    await registrations.known(uid_of(api_server))
    draft = await registrations.send(api_server.kubeconfig_file(), trigger=False, name="later")
    assert draft.status_code == 200
    faulty = await registrations.send(api_server.kubeconfig_file(), name="later", icon="x" * 1000)
    assert faulty.status_code == 422
    assert registrations.reach.asked == []


async def test_a_draft_of_someone_else_is_not_asked_for(
    registrations: Registrations, api_server: ApiServer, people: People
) -> None:
    draft = await registrations.send(api_server.kubeconfig_file(), trigger=False, name="mine")
    workflow = draft.json()["workflow_id"]
    for role, status in (("operator", 403), ("member", 403)):
        answer = await registrations.send(None, person=await people.add(role), workflow_id=workflow)
        assert answer.status_code == status
    assert (await registrations.send(None, workflow_id=str(uuid4()))).status_code == 404
    assert registrations.reach.asked == []


async def test_a_failed_workflow_that_is_triggered_again_is_left_to_its_job(
    registrations: Registrations, api_server: ApiServer
) -> None:
    made = await registrations.goes_on(NOWHERE)
    async with registrations.context.database.transaction() as session:
        job = await session.get_one(JobRow, UUID(made["job"]["id"]))
        job.state = "failed"
        await session.execute(
            text("UPDATE platform.workflow SET status = 'failed' WHERE id = :id"), {"id": made["workflow_id"]}
        )
    await registrations.known(uid_of(api_server))
    workflow = made["workflow_id"]
    assert (await registrations.send(None, workflow_id=workflow)).json()["job"]["id"] == made["job"]["id"]
    again = await registrations.send(api_server.kubeconfig_file(), name=uuid4().hex, workflow_id=workflow)
    assert again.json()["job"]["id"] != made["job"]["id"]
    assert registrations.reach.asked == ["https://127.0.0.1:9"]


async def test_another_file_that_comes_meanwhile_is_not_judged_by_the_first(
    registrations: Registrations, api_server: ApiServer
) -> None:
    await registrations.known(uid_of(api_server))
    draft = (await registrations.send(api_server.kubeconfig_file(), trigger=False, name="racing")).json()

    async def send_another() -> None:
        answer = await registrations.send(NOWHERE, trigger=False, workflow_id=draft["workflow_id"])
        assert answer.status_code == 200

    registrations.reach.meanwhile = send_another
    answer = await registrations.send(None, workflow_id=draft["workflow_id"])
    assert answer.status_code == 200, answer.text


async def test_a_cluster_that_does_not_answer_in_time_is_left_to_the_job(
    registrations: Registrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registrations.goes_on(NOWHERE)
    await registrations.goes_on(as_yaml(kubeconfig(cluster={"server": "https://no-such-name.invalid:6443"})))
    monkeypatch.setattr("services.cluster.reach.IDENTITY_SECONDS", 0.5)
    async with silent() as server:
        many = [registrations.goes_on(served_by(server.port)) for _ in range(6)]  # more than are asked at a time
        await asyncio.wait_for(asyncio.gather(*many), 60)
    assert len(registrations.reach.asked) == 8


@pytest.mark.parametrize(
    "answer",
    [
        http({"kind": "Status"}, 401), http({"kind": "Status"}, 403), http({}, 500), http({}), http([]), http(b"\x00\xff"),
        http({"metadata": {"uid": {"a": "uid"}}}), http({"metadata": {"uid": "\x00'; --" * 100}}), http({"metadata": []}),
        http(b"[" * 100_000), http(b"{" + b" " * (2 << 20) + b"}"), b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        http({}, 302, Location="https://127.0.0.1:9/"),
    ],
    ids=range(13),
)  # fmt: skip
async def test_an_odd_answer_is_left_to_the_job(registrations: Registrations, answer: bytes) -> None:
    await registrations.known("uid")
    async with serving(lambda request: answer) as server:
        await registrations.goes_on(served_by(server.port))
    assert [request.target for request in server.requests] == [NAMESPACE]


async def test_an_address_that_is_refused_to_the_job_is_not_asked(registrations: Registrations) -> None:
    def answer(request: Request) -> bytes:
        return http({"metadata": {"uid": "uid"}})

    await registrations.known("uid")
    async with serving(answer) as server:
        file = served_by(server.port)
        known = await registrations.send(file, name="a")
        assert (known.status_code, known.json()["code"]) == (409, "cluster_known")
        assert len(server.requests) == 1
        named = served_by(server.port, server=f"https://localhost:{server.port}")  # which only a resolver can tell
        settings = registrations.context.settings.model_copy(update={"allow_loopback_clusters": False})
        tools = registrations.tools
        reach = Counted()
        reach.use(registrations.context, Reach(ClusterTools(tools.app, tools.objects, settings, tools.local)))
        registrations.context.clusters = reach
        for one in (file, named):
            await registrations.goes_on(one)
        assert len(reach.asked) == 2
        registrations.context.settings = settings
        refused = await registrations.send(file, name="b")  # by the step itself
        assert (refused.status_code, len(reach.asked)) == (422, 2)
    assert len(server.requests) == 1
