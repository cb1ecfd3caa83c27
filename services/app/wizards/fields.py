"""Types of fields that several wizards share."""

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StrictBool, StrictInt, WithJsonSchema
from pydantic_core import PydanticCustomError

from shared.contracts.models import Modality

_UNPRINTABLE = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
_REORDERING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")  # makes a text look like another
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def _printable(text: str) -> str:
    if any(unicodedata.category(character) in _UNPRINTABLE for character in text) or _REORDERING.search(text):
        raise ValueError("must not contain control characters")
    return text


def _visible(text: str) -> str:
    if not any(unicodedata.category(character)[0] in "LNPS" for character in text):
        raise ValueError("must contain something that can be seen")
    return text


def _id_text(value: object) -> object:
    """Ids are lower-case UUIDs with hyphens; upper case is read too."""
    if isinstance(value, str) and _UUID.fullmatch(value):
        return value.lower()
    raise PydanticCustomError("uuid_parsing", "Must be a UUID")


Name = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable), AfterValidator(_visible)]
ShortText = Annotated[str, Field(max_length=500), AfterValidator(_printable)]
LongText = Annotated[str, Field(max_length=5000)]
# What a step sends: an empty text is no value, and null clears.
FilledText = Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_printable)]
FilledLongText = Annotated[str, Field(min_length=1, max_length=5000)]
Id = Annotated[str, BeforeValidator(_id_text), Field(json_schema_extra={"format": "uuid"})]
Color = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$")]
ProviderType = Literal["cloud_model", "hugging_face", "url", "disk"]
LocalProviderType = Literal["hugging_face", "url", "disk"]
CloudProviderType = Annotated[
    Literal["cloud_model"], WithJsonSchema({"type": "string", "enum": ["cloud_model"], "title": "Provider Type"})
]


class Tag(BaseModel):
    model_config = {"extra": "forbid", "str_strip_whitespace": True}

    name: Name
    color: Color


def _distinct(tags: list[Tag]) -> list[Tag]:
    if len({tag.name for tag in tags}) != len(tags):
        raise ValueError("must not name one tag twice")
    return tags


Tags = Annotated[list[Tag], Field(max_length=20), AfterValidator(_distinct)]


def _distinct_modalities(value: Any) -> Any:
    if isinstance(value, list) and len(set(value)) != len(value):
        raise ValueError("must not name one modality twice")
    return value


Modalities = Annotated[
    Modality | Annotated[list[Modality], Field(min_length=1, max_length=8)], AfterValidator(_distinct_modalities)
]

Positive = Annotated[StrictInt, Field(gt=0, le=10_000_000)]


def _as_sent(value: float) -> float:
    return int(value) if value.is_integer() else value


_Bound = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False, strict=True), AfterValidator(_as_sent)]


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be [min, max] with min not above max")
    return value


Range = Annotated[tuple[_Bound, _Bound], AfterValidator(_ordered)]


class DeployConfig(BaseModel):
    """What an endpoint is to carry. A template fills what is absent."""

    model_config = {"extra": "forbid"}

    concurrent_requests: Positive | None = Field(None, title="Concurrent requests")
    avg_sequence_length: Positive | None = Field(None, title="Average output, tokens")
    avg_context_length: Positive | None = Field(None, title="Average input, tokens")
    per_session_tokens_per_sec: Range | None = Field(None, title="Tokens per second of one session")
    ttft: Range | None = Field(None, title="Time to first token, ms")
    e2e_latency: Range | None = Field(None, title="Whole answer, s")


CONFIG_REQUIRED = ("concurrent_requests", "avg_sequence_length", "avg_context_length")
Flag = StrictBool


def modalities_of(value: Any) -> list[str]:
    """A draft's modality, a scalar or a list, as the list that models have."""
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def dns_label(name: str) -> str | None:
    """The DNS label of a name (RFC 1123: lower-case letters, digits and hyphens, at most 63), or None when nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    label = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:63].strip("-")
    return label or None
