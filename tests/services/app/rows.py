"""Rows that the tests of several resources need: clusters, models, endpoints and jobs as they lie in the tables."""

from typing import Any
from uuid import UUID, uuid4

from services.app.clusters.tables import ClusterRow
from services.app.endpoints.tables import EndpointRow
from services.app.models.tables import ModelRow
from shared.db.engine import Database
from shared.jobs.tables import JobRow


async def insert(database: Database, *rows: Any) -> None:
    """In their order, so that later ones may name earlier ones."""
    async with database.transaction() as session:
        for row in rows:
            session.add(row)
            await session.flush()


def cluster(**values: Any) -> ClusterRow:
    return ClusterRow(
        **{"id": uuid4(), "name": f"c-{uuid4().hex[:8]}", "kind": "kubernetes", "state": "available", **values}
    )


def model(**values: Any) -> ModelRow:
    name = f"m-{uuid4().hex[:8]}"
    return ModelRow(**{"id": uuid4(), "name": name, "provider_type": "disk", "state": "active", "facts": {}, **values})


def endpoint(project_id: UUID, model_id: UUID, cluster_id: UUID, **values: Any) -> EndpointRow:
    name = f"e-{uuid4().hex[:8]}"
    defaults = {
        "id": uuid4(), "project_id": project_id, "name": name, "slug": name, "model_id": model_id, "cluster_id": cluster_id,
        "deploy_config": {}, "phase": "serving", "state": "running", "sealed": b"",
    }  # fmt: skip
    return EndpointRow(**{**defaults, **values})


def job(project_id: UUID, state: str = "running") -> JobRow:
    return JobRow(id=uuid4(), kind="import_model", version=1, state=state, project_id=project_id, input={})
