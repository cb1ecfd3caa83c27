"""Bodies of the routes of models."""

from pydantic import BaseModel, Field

from services.app.wizards.fields import LongText, Name, ShortText, Tags


class ModelChange(BaseModel):
    """What may be changed of a model; absent is unchanged, null clears."""

    model_config = {"extra": "forbid", "str_strip_whitespace": True}

    name: Name = "unchanged"
    description: LongText | None = None
    author: ShortText | None = None
    icon: ShortText | None = None
    tags: Tags = Field(default_factory=list)


class OverrideIn(BaseModel):
    """Why files may be deployed in spite of their scan."""

    model_config = {"extra": "forbid", "str_strip_whitespace": True}

    reason: ShortText = Field(min_length=3)
