"""The routes of clusters. Registering one is a wizard; GET /clusters/clusters is an alias of GET /clusters."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, StrictBool, ValidationError
from pydantic_core import to_json

from services.app.clusters import onboarding, repository, service, upkeep
from services.app.clusters.recommend import recommend
from services.app.clusters.tables import CLUSTER_STATES
from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.resources import Among, Expected, FilterText, answer, listed
from services.app.wizards.contract import Visit
from services.app.wizards.fields import Name, ShortText
from shared.http.bodies import StrictRoute, read_form
from shared.http.pages import PageParams
from shared.http.problems import faults_of, problem_of

router = APIRouter(prefix="/clusters", tags=["clusters"], route_class=StrictRoute)


_PROPERTIES: dict[str, Any] = {"configuration_file": {"type": "string"}, "allow_insecure_tls": {"type": "boolean"}}
_SCHEMA = {"type": "object", "required": ["configuration_file"], "additionalProperties": False}
_FILE = {"type": "string", "format": "binary"}
_CREDENTIALS = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {**_SCHEMA, "properties": _PROPERTIES}},
            "multipart/form-data": {"schema": {**_SCHEMA, "properties": {**_PROPERTIES, "configuration_file": _FILE}}},
        },
    }
}


class ClusterChange(BaseModel):
    """What may be changed of a cluster; absent is unchanged, null clears."""

    model_config = {"extra": "forbid", "str_strip_whitespace": True}

    name: Name = "unchanged"
    icon: ShortText | None = None
    ingress_url: ShortText | None = None
    heal: StrictBool = True


@router.get("")
@router.get("/clusters", operation_id="list_clusters_alias", summary="The same as GET /clusters")
async def list_clusters(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    state: Annotated[Annotated[str, Among(CLUSTER_STATES)] | None, Query()] = None,
    kind: Annotated[Literal["local", "kubernetes"] | None, Query()] = None,
    name: Annotated[FilterText | None, Query()] = None,
) -> dict[str, Any]:
    """Lists clusters; this machine is one of them."""
    return (await repository.page(session, {"state": state, "kind": kind, "name": name}, query)).envelope(service.view)


@router.get("/recommended/{workflow_id}")
async def recommend_clusters(
    workflow_id: UUID, context: Context, session: Session, caller: Authenticated, query: PageParams
) -> dict[str, Any]:
    """The clusters that fit the deployment of a workflow, the best first. Another may be chosen all the same."""
    return listed(await recommend(Visit(context, session, caller), workflow_id), query, "score")


@router.get("/{cluster_id}")
async def show_cluster(cluster_id: UUID, session: Session, caller: Authenticated) -> Response:
    """Shows a cluster with what was found on it."""
    return answer(service.view(await service.existing(session, cluster_id)))


@router.patch("/{cluster_id}")
async def change_cluster(
    cluster_id: UUID,
    body: ClusterChange,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Changes name, icon, ingress_url, or `heal`: whether what others delete or change of ours is put right."""
    given = body.model_dump(mode="json", exclude_unset=True)
    faults = onboarding.faults(given, set(given))
    if faults:
        raise problem_of(faults)
    return answer(service.view(await service.change(context, session, caller, cluster_id, given, expected)))


@router.put("/{cluster_id}/credentials", status_code=202, openapi_extra=_CREDENTIALS)
async def change_credentials(
    request: Request,
    cluster_id: UUID,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> dict[str, Any]:
    """Begins to try a new kubeconfig; the answer is the job, which puts it in the place of the old one.

    It must lead to the same cluster with all permissions. Until then, and when it does not, the old one stays.
    """
    form = await read_form(request)
    try:
        given = upkeep.NewCredentials.model_validate({**form.fields, **form.files})
    except ValidationError as error:
        raise problem_of(faults_of(error)) from None
    return await upkeep.change_credentials(Visit(context, session, caller), cluster_id, given, expected)


@router.post("/{cluster_id}/inspect", status_code=202)
async def inspect_cluster(
    cluster_id: UUID, context: Context, session: Session, caller: Authenticated
) -> dict[str, Any]:
    """Begins to look at a cluster's version, nodes and classes anew; the answer is the job."""
    return await upkeep.inspect(Visit(context, session, caller), cluster_id)


@router.get("/{cluster_id}/orphans")
async def list_orphans(cluster_id: UUID, context: Context, caller: Authenticated, query: PageParams) -> dict[str, Any]:
    """Asks the cluster what it has of endpoints that are not known here (any more)."""
    found = await upkeep.orphans(context, caller, cluster_id)
    shown = [{"object": "orphan", "id": one.endpoint_id, **one.model_dump(mode="json")} for one in found]
    return listed(shown, query, "created_at")


@router.delete("/{cluster_id}/orphans", status_code=202)
async def remove_orphans(cluster_id: UUID, context: Context, session: Session, caller: Authenticated) -> dict[str, Any]:
    """Begins to take away what the cluster has of endpoints that are not known here; the answer is the job."""
    return await upkeep.remove_orphans(Visit(context, session, caller), cluster_id)


@router.delete("/{cluster_id}", status_code=202, responses={204: {"description": "It has been forgotten."}})
async def delete_cluster(
    cluster_id: UUID,
    context: Context,
    session: Session,
    caller: Authenticated,
    expected: Expected,
    force: Annotated[bool, Query(description="Forget it and its endpoints, without asking the cluster.")] = False,
) -> Response:
    """Begins to remove what is ours from a cluster that no endpoint runs on, then to forget it; the answer is the job.

    204 where nothing is to be removed: its registration has failed, or `force=true`, for one that is gone for good.
    """
    visit = Visit(context, session, caller)
    if force:
        await upkeep.force_delete(visit, cluster_id, expected)
        return Response(status_code=204)
    job = await upkeep.delete(visit, cluster_id, expected)
    return Response(status_code=204) if job is None else Response(to_json(job), 202, media_type="application/json")
