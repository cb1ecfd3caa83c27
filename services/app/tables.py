"""All tables of the platform, imported in one place so that the metadata is whole."""

from services.app.audit.tables import AuditRow
from services.app.clusters.tables import ClusterAccessRow, ClusterRow
from services.app.credentials.tables import CredentialRow
from services.app.endpoints.tables import EndpointEventRow, EndpointRow
from services.app.flows.tables import ArtifactRow, ExecutionRow, FileUseRow, FlowRow, SecretRow, VersionRow
from services.app.identity.tables import ApiKeyRow, IdempotencyRow, LoginRow, UserRow
from services.app.models.tables import CloudModelRow, ModelFileRow, ModelRow, ProviderRow, ScanOverrideRow, ScanRow
from services.app.projects.tables import MemberRow, ProjectRow
from services.app.schedules.tables import FiringRow, ScheduleRow
from services.app.templates.tables import TemplateRow
from services.app.triggers.tables import ArrivalRow, TriggerRow
from services.app.webhooks.tables import MessageRow, SigningSecretRow, WebhookRow
from services.app.wizards.tables import WorkflowRow
from services.app.workflow_servers.tables import WorkflowRunRow, WorkflowServerRow
from shared.jobs import tables as jobs

__all__ = [
    "ApiKeyRow", "ArrivalRow", "ArtifactRow", "AuditRow", "CloudModelRow", "ClusterAccessRow", "ClusterRow",
    "CredentialRow", "EndpointEventRow", "EndpointRow", "ExecutionRow", "FileUseRow", "FiringRow", "FlowRow", "IdempotencyRow",
    "LoginRow", "MemberRow", "MessageRow", "ModelFileRow", "ModelRow", "ProjectRow", "ProviderRow", "ScanOverrideRow",
    "ScanRow", "ScheduleRow", "SecretRow", "SigningSecretRow", "TemplateRow", "TriggerRow", "UserRow", "VersionRow",
    "WebhookRow", "WorkflowRow", "WorkflowRunRow", "WorkflowServerRow", "jobs",
]  # fmt: skip
