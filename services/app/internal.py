"""What the app answers its workers (`shared.contracts.ports.AppPort`): each call is checked against the job that it names.

`observers` has the same for the observers of clusters.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import onboarding
from services.app.clusters import repository as clusters
from services.app.context import AppContext
from services.app.credentials import repository as credential_rows
from services.app.credentials import service as credentials
from services.app.endpoints import repository as endpoints
from services.app.endpoints import service as endpoint_service
from services.app.endpoints.deploy import key_context
from services.app.models import holdings, scans
from services.app.models import repository as models
from services.app.models.catalogue import credential_type
from services.app.observers import ObserverAccess
from services.app.projects import quotas
from shared.contracts.flows import RUN_FLOW
from shared.contracts.models import ModelFile
from shared.errors import Problem
from shared.jobs.outcomes import Permanent
from shared.rpc.server import caller

log = structlog.get_logger(__name__)


class AppAccess(ObserverAccess):
    """Both ports, for one process, and behind the internal routes for others.

    `services` says which service a kind of job is of, where they are processes of their own: no other may ask about it.
    """

    def __init__(self, context: AppContext, services: Mapping[str, str] | None = None) -> None:
        super().__init__(context)
        self._services = services or {}

    async def credential(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        async with self._context.database.transaction() as session:
            job = await self._check_job(session, job_id, credential_id=credential_id)
            await _check_use(session, job, credential_id)
            try:
                return await credentials.reveal(session, self._context.keyring, credential_id)
            except Problem as problem:
                raise Permanent("credential_gone", "The credential is not there any more.") from problem

    async def provider_parameters(self, job_id: UUID, credential_id: UUID) -> dict[str, str]:
        values = await self.credential(job_id, credential_id)
        async with self._context.database.transaction() as session:
            credential = await credential_rows.get(session, credential_id)
        kind = credential_type(credential.type) if credential is not None else None
        return kind.parameters(values) if kind is not None else {}

    async def kubeconfig(self, job_id: UUID, cluster_id: UUID) -> bytes:
        async with self._context.database.transaction() as session:
            job = await self._check_job(session, job_id, cluster_id=cluster_id)
            cluster = await clusters.get(session, cluster_id)
            if cluster is None or cluster.sealed is None:
                raise Permanent("cluster_gone", "The cluster is not registered any more.")
            sealed = cluster.sealed
            if job.kind == onboarding.CHANGE_CREDENTIALS:
                access = await clusters.access_of(session, job_id)
                if access is None:
                    raise Permanent(
                        "credentials_superseded", "Other credentials have been sent since; send these again."
                    )
                sealed = access.sealed
            return self._context.keyring.open(sealed, onboarding.key_context(cluster_id))

    async def worker_key(self, job_id: UUID, endpoint_id: UUID) -> str:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id, endpoint_id=endpoint_id)
            endpoint = await endpoints.get(session, endpoint_id)
            if endpoint is None or endpoint.phase == "deleted":
                raise Permanent("endpoint_gone", "The endpoint is not there any more.")
            return self._context.keyring.open(endpoint.sealed, key_context(endpoint_id)).decode()

    async def check_gate(self, job_id: UUID, model_id: UUID, project_id: UUID, digest: str | None) -> None:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id, model_id=model_id, project_id=project_id)
            model = await models.get(session, model_id)
            if model is None or model.state != "active":
                raise Permanent("model_gone", "The model is not there any more.")
            if model.project_id not in (None, project_id):
                raise Permanent("model_gone", "The model belongs to another project.")
            try:
                await scans.gate(session, model, project_id, digest)
            except Problem as problem:
                raise Permanent(problem.code, problem.detail) from problem

    async def admit_bytes(self, job_id: UUID, project_id: UUID | None, size: int) -> None:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id, project_id=project_id)
            try:
                await quotas.check(session, project_id, bytes=size)
            except Problem as problem:
                raise Permanent(problem.code, problem.detail) from problem

    async def claim_files(self, job_id: UUID, model_id: UUID, files: Sequence[ModelFile], manifest: str | None) -> None:
        for some in holdings.portions(files):
            async with self._context.database.transaction() as session:
                await self._check_job(session, job_id, model_id=model_id)
                await holdings.claim(session, model_id, some, manifest)

    async def claim_cluster(self, job_id: UUID, cluster_id: UUID, uid: str) -> None:
        try:
            async with self._context.database.transaction() as session:
                await self._check_job(session, job_id, cluster_id=cluster_id)
                known = await clusters.of_uid(session, uid)
                if known is not None and known.id != cluster_id:
                    raise Permanent("cluster_known", f"This cluster is registered already, as {known.name}.")
                cluster = await clusters.get(session, cluster_id, lock=True)
                if cluster is None or cluster.state == "deleted":
                    raise Permanent("cluster_gone", "The cluster is not registered any more.")
                if cluster.uid not in (None, uid) and cluster.state != "registering":
                    raise Permanent(
                        "cluster_is_another", f"What answers is not the cluster that is registered as {cluster.name}."
                    )
                cluster.uid = uid
        except IntegrityError as error:
            raise Permanent("cluster_known", "This cluster has just been registered by another job.") from error

    async def known_endpoints(self, job_id: UUID, cluster_id: UUID) -> list[str]:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id, cluster_id=cluster_id)
            return [str(one) for one in await endpoints.ids_of_cluster(session, cluster_id)]

    async def cluster_kind(self, cluster_id: UUID) -> str:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        if cluster is None or cluster.state in ("deleted", "deleting"):
            raise Permanent("cluster_gone", "The cluster is not registered any more.")
        return cluster.kind

    async def cluster_ingress(self, cluster_id: UUID) -> str | None:
        async with self._context.database.transaction() as session:
            cluster = await clusters.get(session, cluster_id)
        return cluster.ingress_url if cluster is not None else None

    async def publish(self, job_id: UUID, endpoint_id: UUID, observation: dict[str, Any]) -> None:
        async with self._context.database.transaction() as session:
            await self._check_job(session, job_id, endpoint_id=endpoint_id)
            endpoint = await endpoints.get(session, endpoint_id, lock=True)
            if endpoint is None or endpoint.phase == "deleted":
                raise Permanent("endpoint_gone", "The endpoint is not there any more.")
            endpoint.observed = observation
            endpoint_service.settle(endpoint)
            self._context.hub.publish_after_commit(session, endpoint_service.ENDPOINTS)

    async def _check_job(self, session: AsyncSession, job_id: UUID, **names: UUID | None) -> Any:
        """A job may ask only about what these fields of its own input name, and only while it lives."""
        row = (await session.execute(_JOB, {"id": job_id})).one_or_none()
        wanted = {name: None if value is None else str(value) for name, value in names.items()}
        if row is None or not all(_names(row, name, value) for name, value in wanted.items()):
            log.warning("internal_call_refused", job=str(job_id))
            raise Permanent("not_this_jobs_business", "The job does not name what it asks for.")
        if (service := caller.get()) is not None and self._services.get(row.kind) != service:
            log.warning("internal_call_refused", job=str(job_id), service=service)
            raise Permanent("not_your_job", "The job is another service's.")
        return row


def _names(job: Any, name: str, value: str | None) -> bool:
    """Whether the field of the job's input is this. An execution of a flow names any number of credentials."""
    if job.kind == RUN_FLOW and name == "credential_id":
        return value in job.input.get("credentials", [])
    return bool(job.input.get(name) == value)


_JOB = text("""SELECT id, kind, input, owner_id, project_id FROM jobs.job
                WHERE id = :id AND state IN ('running', 'cancelling')""")

_USABLE = text("""
    SELECT EXISTS (
        SELECT 1 FROM platform.credential c
          JOIN platform."user" u ON u.id = :owner AND u.disabled_at IS NULL AND u.role <> 'viewer'
          LEFT JOIN platform.member m ON m.project_id = c.project_id AND m.user_id = u.id
         WHERE c.id = :credential
           AND (c.project_id IS NULL AND c.owner_id = u.id
                OR c.project_id = :project AND (u.role <> 'member' OR m.role IN ('member', 'manager'))))""")


async def _check_use(session: AsyncSession, job: Any, credential_id: UUID) -> None:
    """As at the trigger: since then the credential may have changed hands, or who asked may have left the project."""
    values = {"owner": job.owner_id, "credential": credential_id, "project": job.project_id}
    if not await session.scalar(_USABLE, values):
        log.warning("credential_refused", job=str(job.id))
        raise Permanent("credential_gone", "The credential is not there any more for who asked for this job.")
