"""What goes into a scan and comes back per file; the whole report is shared.contracts.models.ScanReport."""

from pydantic import BaseModel, Field

from shared.contracts.models import ScanError, ScanIssue


class ScanFile(BaseModel):
    """`path` is relative inside the model, `location` an absolute path on this machine, `size` in bytes."""

    path: str
    location: str
    size: int = Field(ge=0)


class ScanRequest(BaseModel):
    """`digest` is of the manifest. `seconds_per_file` is enforced by the process's own alarm."""

    digest: str
    files: list[ScanFile]
    seconds_per_file: float = Field(600.0, gt=0)


class FileReport(BaseModel):
    """What was found in one file. `skipped` is the reason why it was not looked into, if so."""

    path: str
    skipped: str | None = None
    issues: list[ScanIssue] = Field(default_factory=list)
    errors: list[ScanError] = Field(default_factory=list)
