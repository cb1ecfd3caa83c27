"""Bodies of the routes of templates, and how these look on the wire."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from services.app.resources import text_of
from services.app.templates.tables import TemplateRow
from services.app.wizards.fields import DeployConfig, LongText, Name, ShortText
from shared.clock import iso

TemplateType = Literal["chat", "summarization", "question_answering", "rag", "code", "embedding", "other"]


class Body(BaseModel):
    model_config = {"extra": "forbid", "str_strip_whitespace": True}


class TemplateIn(Body):
    name: Name
    description: LongText | None = None
    icon: ShortText | None = None
    template_type: TemplateType = "other"
    deploy_config: DeployConfig


class TemplateChange(Body):
    """Absent is unchanged, null clears; `deploy_config` is replaced whole."""

    name: Name = "unchanged"
    description: LongText | None = None
    icon: ShortText | None = None
    template_type: TemplateType = "other"
    deploy_config: DeployConfig = Field(default_factory=DeployConfig)


def stored_config(config: DeployConfig) -> dict[str, Any]:
    """What a template says of a deployment; what it leaves open is not there."""
    return config.model_dump(mode="json", exclude_none=True)


def template_view(template: TemplateRow) -> dict[str, Any]:
    return {
        "object": "template",
        "id": str(template.id),
        "name": template.name,
        "description": template.description,
        "icon": template.icon,
        "template_type": template.template_type,
        "deploy_config": template.deploy_config,
        "builtin": template.builtin,
        "created_by": text_of(template.created_by),
        "created_at": iso(template.created_at),
        "updated_at": iso(template.updated_at),
        "revision": template.revision,
    }
