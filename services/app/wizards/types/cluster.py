"""Register a Kubernetes cluster by its kubeconfig. The file is checked and sealed at the step; the job connects."""

from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from services.app.clusters import onboarding
from services.app.context import AppContext
from services.app.wizards.contract import Fields, Missing, Option, StepModel, Variant, Visit, Wizard, WizardStep
from services.app.wizards.fields import FilledText, Flag, Name
from services.app.wizards.tables import WorkflowRow
from shared.errors import Fault
from shared.http.multipart import UploadedFile
from shared.jobs.ledger import JobRequest, JobView
from shared.security.plain_yaml import Bounds


class ClusterStep(StepModel):
    name: Name
    icon: FilledText | None = None
    ingress_url: FilledText | None = None
    configuration_file: UploadedFile
    allow_insecure_tls: Flag | None = None


class ClusterOnboarding(Wizard):
    type = "cluster_onboarding"
    title = "Register a cluster"
    description = "Register a Kubernetes cluster by its kubeconfig; the file is checked, and kept encrypted."
    path = "/clusters/clusters"
    encoding = "multipart"
    role = "operator"
    files: ClassVar[dict[str, int]] = {"configuration_file": Bounds().max_bytes}
    steps = (
        WizardStep(
            "cluster", "Cluster", "Its name and its kubeconfig.", ClusterStep, {"icon": Option("/icons")},
        ),
        WizardStep("job", "Registering", "Stepway connects, checks its permissions, and looks at the nodes."),
        WizardStep("result", "Done", "The cluster can be deployed to."),
    )  # fmt: skip
    variants = (Variant({}, ("cluster", "job", "result"), ("name", "configuration_file")),)
    result_schema = onboarding.RESULT_SCHEMA
    asks_ahead = True

    async def check(self, visit: Visit, fields: Fields, changed: set[str]) -> list[Fault]:
        return onboarding.faults(fields, changed)

    async def check_file(self, visit: Visit, name: str, content: bytes, fields: Fields) -> dict[str, Any]:
        insecure = bool(fields.get("allow_insecure_tls"))
        return {"insecure": onboarding.read(visit.context.settings, content, insecure=insecure).insecure}

    async def check_names(self, visit: Visit, fields: Fields, changed: set[str]) -> None:
        if "name" in changed:
            await onboarding.check_name_free(visit.session, fields.get("name"))

    async def inconsistent(self, visit: Visit, fields: Fields) -> list[Missing]:
        """A yes to a server that is not verified may have been withdrawn since the file was taken."""
        file = fields.get("configuration_file") or {}
        if not file.get("insecure") or fields.get("allow_insecure_tls"):
            return []
        why = "The server would not be verified: set allow_insecure_tls, or send a file with its CA certificate."
        return [Missing("configuration_file", why, "inconsistent")]

    async def ask_ahead(self, context: AppContext, fields: Fields, files: Mapping[str, bytes]) -> object:
        return await onboarding.identity_of(context, fields, files.get("configuration_file"))

    async def start(self, visit: Visit, workflow: WorkflowRow) -> JobRequest:
        return await onboarding.start(visit, workflow)

    async def finish(self, session: AsyncSession, workflow: WorkflowRow, job: JobView) -> dict[str, Any] | None:
        return await onboarding.result_of(session, UUID(job["resource"]["id"]))
