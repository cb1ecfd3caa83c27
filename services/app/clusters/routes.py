"""The routes of clusters. Registering one is a wizard; GET /clusters/clusters is an alias of GET /clusters."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from services.app.clusters import onboarding, repository, service
from services.app.clusters.recommend import recommend
from services.app.clusters.tables import CLUSTER_STATES
from services.app.context import Context, Session
from services.app.identity.authenticate import Authenticated
from services.app.resources import Among, Expected, FilterText, answer, listed
from services.app.wizards.contract import Visit
from services.app.wizards.fields import Name, ShortText
from shared.http.bodies import StrictRoute
from shared.http.pages import PageParams
from shared.http.problems import problem_of

router = APIRouter(prefix="/clusters", tags=["clusters"], route_class=StrictRoute)


class ClusterChange(BaseModel):
    """What may be changed of a cluster; absent is unchanged, null clears."""

    model_config = {"extra": "forbid", "str_strip_whitespace": True}

    name: Name = "unchanged"
    icon: ShortText | None = None
    ingress_url: ShortText | None = None


@router.get("")
@router.get("/clusters", include_in_schema=False)
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
    session: Session,
    caller: Authenticated,
    expected: Expected,
) -> Response:
    """Changes name, icon or ingress_url."""
    given = body.model_dump(mode="json", exclude_unset=True)
    faults = onboarding.faults(given, set(given))
    if faults:
        raise problem_of(faults)
    return answer(service.view(await service.change(session, caller, cluster_id, given, expected)))


@router.delete("/{cluster_id}", status_code=204)
async def delete_cluster(cluster_id: UUID, session: Session, caller: Authenticated, expected: Expected) -> None:
    """Forgets a cluster that no endpoint runs on."""
    await service.delete(session, caller, cluster_id, expected)
