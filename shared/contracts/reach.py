"""A cluster as somebody is let into it for one question: with what its kubeconfig gives, and no longer than that."""

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field


class ClusterAccess(BaseModel):
    """`kubeconfig` is None for machines."""

    id: UUID
    kind: Literal["local", "kubernetes"]
    kubeconfig: bytes | None = Field(None, repr=False)
    ingress_url: str | None = None
