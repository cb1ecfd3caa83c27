"""The one exception that becomes an HTTP answer. `shared.error_codes` lists every code with its status and its remedy."""

from dataclasses import dataclass, field
from typing import Any

from shared.error_codes import CODES


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request. `param` is a field name or a dotted path; `step` a wizard's step number."""

    param: str | None
    code: str
    message: str
    step: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"param": self.param, "code": self.code, "message": self.message, "step": self.step}


@dataclass(slots=True)
class Problem(Exception):
    """A refusal with a stable code. The status and the title come from the registry of codes.

    `detail` is a sentence for a person, and never holds a secret; `members` are further members of the answer.
    """

    code: str
    detail: str
    param: str | None = None
    faults: list[Fault] = field(default_factory=list)
    members: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        Exception.__init__(self, f"{self.code}: {self.detail}")
        if self.code not in CODES:
            raise AssertionError(f"the error code {self.code!r} is not in shared.error_codes")

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"

    @property
    def status(self) -> int:
        return CODES[self.code].status

    def body(self) -> dict[str, Any]:
        """The answer as problem+json (RFC 9457), with the members that OpenAI-style clients read."""
        info = CODES[self.code]
        faults = self.faults or [Fault(self.param, self.code, self.detail)]
        return {
            "object": "error",
            "type": f"/docs/errors#{self.code}",
            "title": info.title,
            "status": info.status,
            "code": self.code,
            "detail": self.detail,
            "message": self.detail,
            "param": self.param or faults[0].param,
            "retryable": info.retryable,
            "errors": [fault.as_dict() for fault in faults],
            **self.members,
        }
