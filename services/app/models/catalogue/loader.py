"""Reads and checks `catalogue.yaml`, and gives it out as seeds in an order that never depends on anything but the file.

Ids are UUIDs of version 5, made from a provider's key and a model's uri, so every installation has the same ones.
A file that breaks a rule is refused whole; the tests read it, so none such is ever shipped.
"""

from datetime import date
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.app.models.catalogue.credentials import CredentialType
from shared.contracts.models import Modality

_FILE = Path(__file__).with_name("catalogue.yaml")
_NAMESPACE = UUID("6f0c0d5e-6d0b-5b0e-9d5e-7f3b1c9a2e41")
_COLOR = r"^#[0-9A-F]{6}$"


class ProviderType(StrEnum):
    CLOUD_MODEL = "cloud_model"
    HUGGING_FACE = "hugging_face"
    URL = "url"
    DISK = "disk"


class _Seed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tag(_Seed):
    name: str = Field(min_length=1, max_length=100)
    color: str = Field(pattern=_COLOR)


class ProviderSeed(_Seed):
    """A provider. `prefixes` are the first parts of its models' uris in LiteLLM's form; local sources have none."""

    id: UUID
    key: str = Field(pattern=r"^[a-z][a-z0-9_]{1,39}$")
    type: ProviderType = ProviderType.CLOUD_MODEL
    name: str = Field(min_length=1, max_length=100)
    description: str = Field(min_length=1, max_length=300)
    icon: str = Field(pattern=r"^icons/providers/[a-z0-9_]+\.png$")
    credential_type: str | None = None
    base_url: str | None = Field(None, pattern=r"^https://[^\s/?#@]+(/[^\s?#]*)?$")
    prefixes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _prefixes_are_for_cloud_models(self) -> "ProviderSeed":
        if bool(self.prefixes) != (self.type is ProviderType.CLOUD_MODEL):
            raise ValueError(f"provider {self.key}: cloud providers have prefixes, and only they do")
        return self


class CloudModelSeed(_Seed):
    """A cloud model. Lengths in tokens, prices in USD per million of them; None is unknown, or not billed by tokens."""

    id: UUID
    provider_id: UUID
    provider_key: str
    uri: str = Field(pattern=r"^[a-z_]+/[A-Za-z0-9._:/-]{1,200}$")
    name: str = Field(min_length=1, max_length=100)
    icon: str
    modality: tuple[Modality, ...] = Field(min_length=1)
    context_length: int | None = Field(None, gt=0)
    max_output: int | None = Field(None, gt=0)
    input_price: float | None = Field(None, ge=0)
    output_price: float | None = Field(None, ge=0)
    tags: tuple[Tag, ...] = ()
    deprecated: bool = False


class _ModelEntry(_Seed):
    """A model as the file has it."""

    uri: str
    name: str
    modality: tuple[Modality, ...]
    context: int | None = None
    output: int | None = None
    price: tuple[float | None, float | None] = (None, None)
    tags: tuple[str, ...] = ()
    deprecated: bool = False


class _Document(_Seed):
    known_as_of: date
    tags: dict[str, str]
    credential_types: tuple[CredentialType, ...]
    providers: tuple[dict[str, Any], ...]
    cloud_models: dict[str, tuple[_ModelEntry, ...]]


class _Catalogue(_Seed):
    known_as_of: date
    credential_types: tuple[CredentialType, ...]
    providers: tuple[ProviderSeed, ...]
    cloud_models: tuple[CloudModelSeed, ...]

    @model_validator(mode="after")
    def _holds_together(self) -> "_Catalogue":
        _refuse_repeats("credential type", [kind.key for kind in self.credential_types])
        _refuse_repeats("provider", [provider.key for provider in self.providers])
        _refuse_repeats("uri", [model.uri for model in self.cloud_models])
        _refuse_repeats("model name", [model.name for model in self.cloud_models])
        kinds = {kind.key for kind in self.credential_types} | {None}
        prefixes = {provider.key: provider.prefixes for provider in self.providers}
        faults = [f"provider {p.key}: credential type" for p in self.providers if p.credential_type not in kinds]
        faults += [
            f"{model.uri}: prefix"
            for model in self.cloud_models
            if model.uri.split("/")[0] not in prefixes[model.provider_key]
        ]
        if faults:
            raise ValueError(f"not known: {', '.join(faults)}")
        return self


def known_as_of() -> date:
    """The day on which the catalogue's names, limits and prices were last looked up."""
    return _catalogue().known_as_of


def credential_types() -> list[CredentialType]:
    return list(_catalogue().credential_types)


def credential_type(key: str) -> CredentialType | None:
    return next((kind for kind in _catalogue().credential_types if kind.key == key), None)


def providers() -> list[ProviderSeed]:
    """Every provider in the file's order: the local sources first, then the cloud ones."""
    return list(_catalogue().providers)


def cloud_models() -> list[CloudModelSeed]:
    """Every cloud model in the file's order, provider by provider."""
    return list(_catalogue().cloud_models)


@cache
def _catalogue() -> _Catalogue:
    return build(_FILE.read_text(encoding="utf-8"))


def build(text: str) -> _Catalogue:
    """The catalogue in a YAML text. Raises ValidationError, or KeyError for a model of an unknown provider or tag."""
    document = _Document.model_validate(yaml.safe_load(text))
    seeds = [_provider(entry) for entry in document.providers]
    by_key = {seed.key: seed for seed in seeds}
    models = [
        _model(by_key[key], entry, document.tags) for key, entries in document.cloud_models.items() for entry in entries
    ]
    return _Catalogue(
        known_as_of=document.known_as_of,
        credential_types=document.credential_types,
        providers=tuple(seeds),
        cloud_models=tuple(models),
    )


def _provider(entry: dict[str, Any]) -> ProviderSeed:
    key = entry["key"]
    identity = {"id": uuid5(_NAMESPACE, f"provider:{key}"), "icon": f"icons/providers/{key}.png"}
    return ProviderSeed.model_validate({**identity, **entry})


def _model(provider: ProviderSeed, entry: _ModelEntry, colors: dict[str, str]) -> CloudModelSeed:
    return CloudModelSeed(
        id=uuid5(_NAMESPACE, f"model:{entry.uri}"),
        provider_id=provider.id,
        provider_key=provider.key,
        uri=entry.uri,
        name=entry.name,
        icon=provider.icon,
        modality=entry.modality,
        context_length=entry.context,
        max_output=entry.output,
        input_price=entry.price[0],
        output_price=entry.price[1],
        tags=tuple(Tag(name=name, color=colors[name]) for name in entry.tags),
        deprecated=entry.deprecated,
    )


def _refuse_repeats(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what} twice: {', '.join(repeated)}")
