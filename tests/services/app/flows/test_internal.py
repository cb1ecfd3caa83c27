"""What executions' jobs may ask of the app, and the files of executions: kept, downloaded, freed."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi import FastAPI

from services.app.flows import orphans
from services.app.flows.internal import FlowAccess
from services.app.identity import rotation
from services.app.internal import AppAccess
from services.app.models import holdings
from shared.jobs import retention
from shared.jobs.outcomes import Permanent, Retry
from shared.objects.store import blob_key
from shared.rpc.server import caller
from tests.services.app.conftest import Person
from tests.services.app.flows.conftest import Flows, template

CONTENT = b"<script>alert(1)</script> 0123456789"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
async def access(flows: Flows) -> FlowAccess:
    return FlowAccess(flows.context)


async def _running(flows: Flows, **headers: str) -> tuple[str, UUID]:
    """An execution whose job runs: its path, and its id."""
    path = await flows.start(await flows.create(template()), {"input": {"who": "you"}}, **headers)
    job = await flows.job_of(path)
    await flows.run("UPDATE jobs.job SET state = 'running' WHERE id = :id", id=job)
    return path, job


async def _file(flows: Flows, access: FlowAccess, job: UUID, tmp_path: Path, name: str = "päge.html") -> UUID:
    file = tmp_path / uuid4().hex
    file.write_bytes(CONTENT)
    await flows.context.objects.adopt(file, SHA256)
    return await access.keep_artifact(job, "greet", name, "text/html", len(CONTENT), SHA256)


async def _refused(asked: Any) -> str:
    with pytest.raises((Permanent, Retry)) as refused:
        await asked
    return str(refused.value.code)


# ---- whose business it is


async def test_only_the_living_job_of_an_execution_may_ask(flows: Flows, access: FlowAccess) -> None:
    _, job = await _running(flows, **{"X-Provider-Key": "sk-provider"})
    assert await access.provider_key(job) == "sk-provider"
    _, without = await _running(flows)
    assert await access.provider_key(without) is None
    other = uuid4()
    await flows.run(
        "INSERT INTO jobs.job (id, kind, version, state, input) VALUES (:id, 'import_model', 1, 'running', '{}')",
        id=other,
    )
    for state in ("succeeded", "pending", "failed", "cancelled"):
        await flows.run("UPDATE jobs.job SET state = :state WHERE id = :id", id=job, state=state)
        for unfit in (job, other, uuid4()):
            for asked in (
                access.provider_key(unfit), access.artifact(unfit, uuid4()), access.child_end(unfit, "greet"),
                access.keep_artifact(unfit, "greet", "a", "text/plain", 1, SHA256), access.cancel_child(unfit, "greet"),
                access.start_child(unfit, "greet", "wf-00000000", None, {}),
            ):  # fmt: skip
                assert await _refused(asked) == "not_this_jobs_business"


async def test_another_service_gets_nothing(flows: Flows) -> None:
    _, job = await _running(flows)
    access = FlowAccess(flows.context, {"run_flow": "flow"})
    for service, expected in (("flow", None), ("model", "not_your_job")):
        known = caller.set(service)
        try:
            assert expected is None or await _refused(access.provider_key(job)) == expected
            assert expected is not None or await access.provider_key(job) is None
        finally:
            caller.reset(known)


async def test_an_execution_gets_the_credentials_that_it_names(flows: Flows) -> None:
    made = await flows.client.post(
        "/credentials",
        json={"name": "c", "type": "openai", "fields": {"api_key": "sk-1"}},
        headers=flows.person.headers,
    )
    credential, second = UUID(made.json()["id"]), uuid4()
    tasks = [
        {"ref": "sum", "type": "openai.text.summarize",
         "input": {"text": "x", "model": "m", "credential_id": "{{input.access}}"}},
    ]  # fmt: skip
    inputs = [{"name": "access", "type": "text"}]
    workflow = await flows.create(template(tasks=tasks, input=inputs, output=[]))
    path = await flows.start(workflow, {"input": {"access": str(credential)}})
    job = await flows.job_of(path)
    await flows.run("UPDATE jobs.job SET state = 'running' WHERE id = :id", id=job)
    app = AppAccess(flows.context)
    assert (await app.credential(job, credential))["api_key"] == "sk-1"
    assert await _refused(app.credential(job, second)) == "not_this_jobs_business"
    _, other = await _running(flows)
    assert await _refused(app.credential(other, credential)) == "not_this_jobs_business"
    unknown = await flows.ask("POST", f"/workflows/{workflow}/execute", body={"input": {"access": str(second)}})
    assert (unknown.status_code, unknown.json()["code"]) == (422, "reference_not_found")
    await flows.run("DELETE FROM platform.member WHERE user_id = :id", id=flows.person.id)
    await flows.run("""UPDATE platform."user" SET disabled_at = now() WHERE id = :id""", id=flows.person.id)
    assert await _refused(app.credential(job, credential)) == "credential_gone"


# ---- sub-flows


async def test_a_retry_sees_that_its_sub_flow_is_being_cancelled(flows: Flows, access: FlowAccess) -> None:
    """The parent has failed and is run again just while the child that it left behind is cancelled: it gets another."""
    _, job = await _running(flows)
    flow = await flows.create(template())
    first = await access.start_child(job, "sub", flow, None, {"who": "you"})
    assert (await access.start_child(job, "sub", flow, None, {"who": "you"})) == first
    await flows.run("UPDATE jobs.job SET state = 'failed' WHERE id = :id", id=job)
    async with flows.context.database.transaction() as session:
        await orphans.cancel_of(flows.context, session, job)
        await flows.run("UPDATE jobs.job SET state = 'running', attempt = 2 WHERE id = :id", id=job)
        again = asyncio.create_task(access.start_child(job, "sub", flow, None, {"who": "you"}))
        await flows.until_locked(1)
    second = await again
    assert second.live
    assert second.execution_id != first.execution_id
    states = "SELECT state FROM jobs.job WHERE id = :id"
    assert await flows.value(states, id=first.execution_id) == "cancelled"
    assert await flows.value(states, id=second.execution_id) == "pending"
    assert await orphans.cancel_all(flows.context) == 0


# ---- files


@pytest.fixture
async def kept(flows: Flows, access: FlowAccess, tmp_path: Path) -> tuple[str, UUID, UUID]:
    """An execution with a file: its path, its id, the file's id."""
    path, job = await _running(flows)
    return path, job, await _file(flows, access, job, tmp_path)


async def test_a_file_is_downloaded_as_an_attachment(flows: Flows, kept: tuple[str, UUID, UUID]) -> None:
    path, _, artifact = kept
    answer = await flows.ask("GET", f"{path}/artifacts/{artifact}")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''p%C3%A4ge.html"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-type"] == "text/html"
    part = await flows.ask("GET", f"{path}/artifacts/{artifact}", headers={"Range": "bytes=2-7"})
    assert (part.status_code, part.content) == (206, CONTENT[2:8])
    assert part.headers["content-range"] == f"bytes 2-7/{len(CONTENT)}"
    beyond = await flows.ask("GET", f"{path}/artifacts/{artifact}", headers={"Range": "bytes=900-"})
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    stale = await flows.ask("GET", f"{path}/artifacts/{artifact}", headers={"Range": "bytes=2-7", "If-Range": '"x"'})
    assert (stale.status_code, stale.content) == (200, CONTENT)
    other, _ = await _running(flows)
    for wrong in (f"{other}/artifacts/{artifact}", f"{path}/artifacts/{uuid4()}", f"{path}/artifacts/x"):
        assert (await flows.ask("GET", wrong)).status_code == 404
    await flows.context.objects.delete(blob_key(SHA256))
    assert (await flows.ask("GET", f"{path}/artifacts/{artifact}")).status_code == 404


async def test_the_same_file_has_one_id(
    flows: Flows, access: FlowAccess, kept: tuple[str, UUID, UUID], tmp_path: Path
) -> None:
    _, job, artifact = kept
    assert await _file(flows, access, job, tmp_path) == artifact
    assert await _file(flows, access, job, tmp_path, "other.html") != artifact
    info = await access.artifact(job, artifact)
    assert (info.name, info.media_type, info.size, info.sha256) == ("päge.html", "text/html", len(CONTENT), SHA256)
    assert await _refused(access.keep_artifact(job, "greet", "a", "text/plain", 1, "0" * 64)) == "artifact_gone"
    assert await _refused(access.keep_artifact(job, "greet", "a", "text/plain", 1, "../x")) == "not_this_jobs_business"


async def test_files_of_other_projects_are_unknown(
    flows: Flows, access: FlowAccess, kept: tuple[str, UUID, UUID]
) -> None:
    _, _, artifact = kept
    _, same_project = await _running(flows)
    assert (await access.artifact(same_project, artifact)).id == artifact
    person: Person = await flows.people.add("member", projects={await flows.people.project("other"): "member"})
    _, elsewhere = await _running(flows.by(person))
    assert await _refused(access.artifact(elsewhere, artifact)) == "artifact_gone"


async def test_files_in_outputs_have_links(flows: Flows, kept: tuple[str, UUID, UUID]) -> None:
    path, job, artifact = kept
    file = {"artifact_id": str(artifact), "name": "päge.html", "media_type": "text/html", "size": 1, "sha256": SHA256}
    foreign = {**file, "artifact_id": str(uuid4())}
    await flows.run(
        """UPDATE jobs.job SET state = 'succeeded', result = jsonb_build_object('outputs', CAST(:out AS jsonb))
            WHERE id = :id""",
        id=job, out=f'{{"page": {json.dumps(file)}, "other": [{json.dumps(foreign)}]}}',
    )  # fmt: skip
    output = (await flows.get(path))["output"]
    assert output["page"] == {**file, "href": f"/flow{path}/artifacts/{artifact}"}
    assert output["other"] == [foreign]
    link = await flows.client.get(output["page"]["href"], headers=flows.person.headers)
    assert link.content == CONTENT


async def test_bytes_are_freed_with_the_last_execution_that_has_them(
    flows: Flows, access: FlowAccess, kept: tuple[str, UUID, UUID], tmp_path: Path
) -> None:
    path, _, _ = kept
    other, second = await _running(flows)
    await _file(flows, access, second, tmp_path)
    objects = flows.context.objects
    await holdings.sweep(flows.context)
    assert await objects.exists(blob_key(SHA256))
    await flows.run("UPDATE jobs.job SET state = 'failed', ended_at = now()")
    assert (await flows.ask("DELETE", path)).status_code == 204
    assert await objects.exists(blob_key(SHA256))
    await flows.run("UPDATE jobs.job SET ended_at = now() - interval '100 days' WHERE id = :id", id=second)
    await retention.purge(flows.context.database, 90)
    assert (await flows.ask("GET", other)).status_code == 404
    assert await flows.value("SELECT count(*) FROM flow.artifact") == 0
    await holdings.sweep(flows.context)
    assert not await objects.exists(blob_key(SHA256))


async def test_who_has_left_the_project_sees_its_files_no_more(
    app: FastAPI, flows: Flows, kept: tuple[str, UUID, UUID]
) -> None:
    path, _, artifact = kept
    await flows.run("DELETE FROM platform.member WHERE user_id = :id", id=flows.person.id)
    app.state.authenticator.forget()
    for where in (path, f"{path}/artifacts/{artifact}", f"{path}/events"):
        assert (await flows.ask("GET", where)).status_code == 404


async def test_a_providers_key_outlives_a_rotation_of_the_encryption_keys(flows: Flows, access: FlowAccess) -> None:
    _, job = await _running(flows, **{"X-Provider-Key": "sk-provider"})
    done = await rotation.rotate(flows.context.database, flows.context.keyring)
    assert (done.rewrapped, done.unreadable, done.kept) == (1, [], [])
    assert await access.provider_key(job) == "sk-provider"
