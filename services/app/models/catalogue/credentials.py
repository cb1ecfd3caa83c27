"""Kinds of credentials: which fields each has, and what is wrong with the values that someone typed in.

The kinds themselves are data (`catalogue.yaml`, read by `loader`); sealing the values is `shared.security.envelope`'s.
"""

import json
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from shared.errors import Fault

_MAX_VALUE_LENGTH = 16_384


class CredentialField(BaseModel):
    """One field of a credential. `pattern` is anchored and means the same in JavaScript, so that forms may use it.

    `litellm` is the parameter that LiteLLM takes the value by.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")
    label: str = Field(min_length=1, max_length=60)
    secret: bool = False
    required: bool = True
    format: Literal["text", "json"] = "text"
    pattern: str | None = Field(None, pattern=r"^\^.*\$$")
    litellm: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")

    @model_validator(mode="before")
    @classmethod
    def _named_alike(cls, values: object) -> object:
        return {"litellm": values.get("name"), **values} if isinstance(values, dict) else values

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        re.compile(pattern or "")
        return pattern

    def fault(self, value: str | None) -> Fault | None:
        """What is wrong with a value: nothing of it is repeated in the message, secret or not."""
        if not value:
            return Fault(self.name, "missing", f"{self.label} is needed.") if self.required else None
        if len(value) > _MAX_VALUE_LENGTH:
            return Fault(self.name, "too_long", f"{self.label} has more than {_MAX_VALUE_LENGTH} characters.")
        fits = _is_json_object(value) if self.format == "json" else re.fullmatch(self.pattern or ".*", value, re.ASCII)
        return None if fits else Fault(self.name, "invalid", f"{self.label} does not have the form that is expected.")


class CredentialType(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")
    name: str = Field(min_length=1, max_length=60)
    description: str = Field(min_length=1, max_length=300)
    fields: tuple[CredentialField, ...] = Field(min_length=1)

    def faults(self, values: Mapping[str, str | None]) -> list[Fault]:
        """Everything that is wrong with the values of a credential, in the order of the fields; empty when it is good.

        Empty text and null count as absent.
        """
        known = {field.name for field in self.fields}
        faults = [fault for field in self.fields if (fault := field.fault(values.get(field.name)))]
        unknown = sorted(set(values) - known)
        return faults + [Fault(name, "unknown_field", f"{self.name} has no such field.") for name in unknown]

    def parameters(self, values: Mapping[str, str]) -> dict[str, str]:
        """The values by the names of LiteLLM's parameters."""
        return {field.litellm: values[field.name] for field in self.fields if values.get(field.name)}

    @property
    def secret_fields(self) -> frozenset[str]:
        return frozenset(field.name for field in self.fields if field.secret)


def _is_json_object(value: str) -> bool:
    try:
        return isinstance(json.loads(value), dict)
    except (ValueError, RecursionError):
        return False
