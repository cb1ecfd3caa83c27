"""Registering a cluster: the checks of its form, the sealed kubeconfig, and the job."""

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from services.app import icons
from services.app.clusters import repository
from services.app.clusters.tables import ClusterRow
from services.app.context import AppContext
from services.app.wizards.contract import Fields, Visit
from services.app.wizards.files import open_file
from services.app.wizards.tables import WorkflowRow
from shared.contracts.clusters import ClusterSpec
from shared.errors import Fault, Problem
from shared.jobs.ledger import JobRequest
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy
from shared.settings import Settings

CHANGE_CREDENTIALS = "change_credentials"  # the kind of the job that tries a new kubeconfig

RESULT_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "cluster"},
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string"},
        "href": {"type": "string"},
        "uid": {"type": ["string", "null"]},
        "version": {"type": ["string", "null"]},
    },
}


def key_context(cluster_id: UUID) -> str:
    return f"cluster:{cluster_id}"


def policy_of(settings: Settings, *, insecure: bool) -> KubeconfigPolicy:
    return KubeconfigPolicy(allow_insecure=insecure, addresses=ServerPolicy.of(settings))


def read(settings: Settings, content: bytes, *, insecure: bool) -> Kubeconfig:
    """The checked kubeconfig. Raises a problem that says what is wrong with it, without quoting it."""
    try:
        return parse(content, policy_of(settings, insecure=insecure))
    except Problem as problem:
        problem.param = "configuration_file"
        raise


def faults(fields: Fields, changed: set[str]) -> list[Fault]:
    found: list[Fault] = []
    if "icon" in changed and fields.get("icon") and icons.resolve(fields["icon"]) is None:
        found.append(Fault("icon", "unknown_icon", "is not an icon of GET /icons"))
    if "ingress_url" in changed and fields.get("ingress_url"):
        found += _url_faults(fields["ingress_url"])
    return found


def _url_faults(url: str) -> list[Fault]:
    """Syntax only: the address is not asked while a step is answered."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return [Fault("ingress_url", "invalid_url", "is not a URL")]
    if parts.username is not None or parts.password is not None:
        return [Fault("ingress_url", "credentials_in_uri", "must not hold a user or a password")]
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or c == "\\" for c in url):
        return [Fault("ingress_url", "invalid_url", "must be an http or https URL")]
    if parts.query or parts.fragment or port == 0:
        return [Fault("ingress_url", "invalid_url", "must be an address with at most a path")]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return []
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        return [Fault("ingress_url", "address_refused", "is an address that no ingress has")]
    return []


async def check_name_free(session: AsyncSession, name: str | None) -> None:
    if name and await repository.id_of_live_name(session, name) is not None:
        raise Problem("name_taken", "A cluster of this name exists already.", param="name")


@dataclass(frozen=True, slots=True)
class Identity:
    """What the cluster of a kubeconfig said that it is known by. `sha256` is the file's."""

    uid: str
    sha256: str


async def identity_of(context: AppContext, fields: Fields, content: bytes | None) -> Identity | None:
    """Asked of the cluster itself, outside of any transaction; None where it does not tell, or may not be asked."""
    try:
        if content is None:
            return None
        kubeconfig = read(context.settings, content, insecure=bool(fields.get("allow_insecure_tls")))
    except Problem:
        return None  # which the step says
    uid = await context.clusters.identity(kubeconfig.canonical())
    return Identity(uid, hashlib.sha256(content).hexdigest()) if uid is not None else None


async def check_unknown(visit: Visit, content: bytes) -> None:
    """Problem `cluster_known`, where the cluster has told who it is in time. The job makes sure in any case."""
    told = visit.told
    if not isinstance(told, Identity) or told.sha256 != hashlib.sha256(content).hexdigest():
        return
    known = await repository.of_uid(visit.session, told.uid)
    if known is not None:
        raise Problem("cluster_known", f"This cluster is registered already, as {known.name}.",
                      param="configuration_file", members={"cluster_id": str(known.id)})  # fmt: skip


async def start(visit: Visit, workflow: WorkflowRow) -> JobRequest:
    fields = workflow.fields
    content = open_file(visit.context.keyring, workflow, "configuration_file")
    kubeconfig = read(visit.context.settings, content, insecure=bool(fields.get("allow_insecure_tls")))
    await check_unknown(visit, content)
    await check_name_free(visit.session, fields["name"])
    cluster_id = uuid4()
    cluster = ClusterRow(
        id=cluster_id, name=fields["name"], kind="kubernetes", icon=fields.get("icon"), ingress_url=fields.get("ingress_url"),
        state="registering", access=kubeconfig.summary.model_dump(mode="json"), created_by=visit.caller.user_id,
        sealed=visit.context.keyring.seal(kubeconfig.canonical(), key_context(cluster_id)), revision=1, facts={}, epoch=0,
    )  # fmt: skip
    visit.session.add(cluster)
    await visit.session.flush()
    return JobRequest(
        visit.context.jobs.latest("register_cluster"), ClusterSpec(cluster_id=cluster_id, name=cluster.name),
        owner_id=visit.caller.user_id, key_id=visit.caller.key_id, topic=workflow.id, resource_type="cluster",
        resource_id=cluster_id,
    )  # fmt: skip


async def result_of(session: AsyncSession, cluster_id: UUID) -> dict[str, Any] | None:
    cluster = await repository.get(session, cluster_id)
    if cluster is None:
        return None
    return {
        "type": "cluster", "id": str(cluster.id), "name": cluster.name, "href": f"/clusters/{cluster.id}",
        "uid": cluster.uid, "version": cluster.facts.get("version"),
    }  # fmt: skip
