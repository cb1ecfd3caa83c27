"""Models as the services pass them to each other: where one comes from, its files, what is known of it, its scan."""

from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field


class Source(StrEnum):
    HUGGING_FACE = "hugging_face"
    URL = "url"
    DISK = "disk"


class Modality(StrEnum):
    """What goes into a model and what comes out."""

    LLM = "llm"
    MLLM = "mllm"
    IMAGE = "image"
    EMBEDDING = "embedding"
    TEXT_TO_SPEECH = "text_to_speech"
    SPEECH_TO_TEXT = "speech_to_text"
    AUDIO_LLM = "audio_llm"
    OMNI = "omni"


class ModelFile(BaseModel):
    """One file of a model. `path` is relative, with forward slashes; `sha256` is lower-case hex."""

    path: str
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """A model's files, sorted by path. `digest` is the sha256 of the lines `<sha256>  <path>\\n`, in hex."""

    digest: str
    files: list[ModelFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class ModelMetadata(BaseModel):
    """What the files themselves say. Unknown is null. Sizes in bytes."""

    format: str | None = None  # gguf, safetensors, pytorch, onnx, keras, other
    architecture: str | None = None  # e.g. llama
    parameters: int | None = None
    context_length: int | None = None
    quantization: str | None = None  # e.g. Q4_1, BF16
    modality: list[str] = Field(default_factory=list)  # of the platform's modalities
    license: str | None = None
    languages: list[str] = Field(default_factory=list)
    vocabulary_size: int | None = None
    layers: int | None = None
    hidden_size: int | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    weights_bytes: int | None = None  # memory that the weights need
    kv_bytes_per_token: int | None = None  # memory that one token of context needs, 16-bit cache
    chat_template: bool = False
    description: str | None = None


Severity = Literal["low", "medium", "high", "critical"]
ScanStatus = Literal["safe", "low", "medium", "high", "critical", "error"]


class ScanIssue(BaseModel):
    title: str
    severity: Severity
    description: str
    file: str  # relative path inside the model; `archive.zip:inner.pkl` for a member
    check: str  # stable id of the check that found it, snake_case


class ScanError(BaseModel):
    """A file that could not be judged. One of these makes the whole report `error`."""

    file: str
    message: str
    check: str


class ScanReport(BaseModel):
    """`status` is `error` when any file could not be judged, else the highest severity found, else `safe`."""

    status: ScanStatus
    digest: str  # of the manifest that was scanned
    total_issues: int
    by_severity: dict[str, int]
    files_scanned: int
    files_skipped: int
    skipped: list[str] = Field(default_factory=list)
    issues: list[ScanIssue] = Field(default_factory=list)
    errors: list[ScanError] = Field(default_factory=list)
    scanners: dict[str, str] = Field(default_factory=dict)  # name: version
    duration_seconds: float = 0.0


class ImportSpec(BaseModel):
    """The input of an import job. A credential goes by reference only."""

    model_id: UUID
    project_id: UUID | None
    source: Source
    uri: str
    credential_id: UUID | None = None
    revision: str | None = None


class ImportResult(BaseModel):
    """What an import made. The files are in the manifest, an object by its digest (`shared.objects.store.manifest_key`)."""

    digest: str
    size: int
    files: int
    revision: str | None = None  # the commit that was fetched
    metadata: ModelMetadata
