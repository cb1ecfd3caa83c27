"""How a step ends when it does not return: try again later, or give up.

Anything else that a step raises counts as a fault of ours: it is retried by the step's policy, then fails the job
with the code `internal`.
"""


class StepError(Exception):
    """A step's own failure. `code` is stable and snake_case; `message` is a sentence for a person, without secrets."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Retry(StepError):
    """A passing fault: the step is tried again, after `after` seconds or as its retry policy says."""

    def __init__(self, code: str, message: str, *, after: float | None = None) -> None:
        super().__init__(code, message)
        self.after = after


class Permanent(StepError):
    """A fault that trying again cannot mend: the job fails at this step."""
