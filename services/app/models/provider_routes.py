"""The look-ups of those who add a model: where it may come from, and the catalogue of cloud models.

To be included before the routes of models, whose `/models/{model_id}` would take these paths for ids.
"""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query

from services.app.context import Session
from services.app.identity.authenticate import Authenticated
from services.app.models import catalog
from services.app.resources import FilterText
from services.app.wizards.fields import ProviderType
from shared.contracts.models import Modality
from shared.http.bodies import StrictRoute
from shared.http.pages import PageParams

router = APIRouter(prefix="/models", tags=["models"], route_class=StrictRoute)


@router.get("/providers")
async def list_providers(
    session: Session,
    _caller: Authenticated,
    query: PageParams,
    type: Annotated[ProviderType | None, Query()] = None,
) -> dict[str, Any]:
    """Lists where models come from."""
    return await catalog.providers(session, query, type=type)


@router.get("/catalog")
async def list_catalog(
    session: Session,
    caller: Authenticated,
    query: PageParams,
    provider_id: Annotated[UUID | None, Query()] = None,
    modality: Annotated[Modality | None, Query()] = None,
    tag: Annotated[FilterText | None, Query()] = None,
    deprecated: Annotated[bool | None, Query()] = None,
    added: Annotated[bool | None, Query()] = None,
) -> dict[str, Any]:
    """Lists the catalogue's cloud models; `added` tells which the platform has already."""
    return await catalog.page(
        session, query, caller=caller, provider_id=provider_id, modality=modality, tag=tag, deprecated=deprecated,
        added=added,
    )  # fmt: skip
