"""Errors of the command line itself, and its exit codes.

0 is done, 1 refused by the server, 2 a wrong command, 3 no answer, 4 a job that failed, 130 interrupted.
"""

from typing import Any

REFUSED = 1
USAGE = 2
UNREACHABLE = 3
JOB_FAILED = 4
INTERRUPTED = 130


class Usage(Exception):
    """The command cannot be carried out as it was given. `candidates` are what was perhaps meant, as lines."""

    def __init__(self, message: str, candidates: list[str] | None = None) -> None:
        super().__init__(message)
        self.candidates = candidates or []


class Refused(Exception):
    """The server's data does not allow it, for example a name that nothing has."""


class JobFailed(Exception):
    """A job that was followed has ended otherwise than well."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job["state"])
        self.job = job
