"""The templates that come with Stepway: `builtin.yaml`, checked, with ids that are the same everywhere."""

from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import yaml
from pydantic import Field
from pydantic_core import to_json

from services.app.templates import repository
from services.app.templates.schemas import TemplateIn, stored_config
from shared.db.engine import Database

_FILE = Path(__file__).with_name("builtin.yaml")
_NAMESPACE = UUID("0b6f6a0e-8a5b-5f0f-9d0a-3f1a8b2c7d15")


class BuiltinTemplate(TemplateIn):
    key: str = Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")

    @property
    def id(self) -> UUID:
        return uuid5(_NAMESPACE, f"template:{self.key}")


@cache
def templates() -> tuple[BuiltinTemplate, ...]:
    entries: list[dict[str, Any]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(BuiltinTemplate.model_validate(entry) for entry in entries)


async def seed(database: Database) -> None:
    """Bring the built-in templates to what the file says, in one transaction; called at every start."""
    values = [
        {
            "id": one.id, "name": one.name, "description": one.description, "icon": one.icon,
            "template_type": one.template_type, "deploy_config": to_json(stored_config(one.deploy_config)).decode(),
        }
        for one in sorted(templates(), key=lambda one: one.id)
    ]  # fmt: skip
    async with database.transaction() as session:
        await repository.seed(session, values)
