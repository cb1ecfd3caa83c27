"""What is wrong with files of flows: asked of this installation (no server, no network) or of the server."""

import sys
from pathlib import Path
from typing import Any, NamedTuple

from stepway.cli.flow_files import Definition, Unreadable, read
from stepway.client import ApiError, Client


class Fault(NamedTuple):
    path: str
    code: str
    message: str


class Checked(NamedTuple):
    """A file with its faults; `definition` is None when it could not be read, `dialect` when there are faults."""

    file: Path
    definition: Definition | None
    dialect: str | None
    faults: list[Fault]

    def lines(self) -> list[str]:
        return [
            f"{self.file}:{one.path}: {one.message} [{one.code}]" if one.path else
            f"{self.file}: {one.message} [{one.code}]" for one in self.faults
        ]  # fmt: skip

    def view(self) -> dict[str, Any]:
        faults = [one._asdict() for one in self.faults]
        return {"file": str(self.file), "valid": not faults, "dialect": self.dialect, "faults": faults}


def check(file: Path, client: Client | None) -> Checked:
    """Without a client, by the task types that are installed here. OSError when the file is not there."""
    try:
        definition = read(file)
    except Unreadable as error:
        return Checked(file, None, None, [Fault(error.place, "unreadable", str(error))])
    dialect, faults = _here(definition.body) if client is None else _there(client, definition.body)
    return Checked(file, definition, dialect, faults)


def _here(body: dict[str, Any]) -> tuple[str | None, list[Fault]]:
    import structlog

    from services.flow.known import task_types
    from shared.flows.faults import FlowFaults
    from shared.flows.validation import accept

    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )  # of packages whose types are not usable
    try:
        return accept(body, task_types())[0], []
    except FlowFaults as error:
        return None, [Fault(one.path, one.code, one.message) for one in error.faults]


def _there(client: Client, body: dict[str, Any]) -> tuple[str | None, list[Fault]]:
    try:
        return client.post("/flow/workflows/validate", body)["dialect"], []
    except ApiError as error:
        if error.code != "flow_invalid":
            raise
        told = [Fault(one.get("param") or "", one["code"], one["message"]) for one in error.errors]
        return None, told or [Fault("", error.code, error.detail)]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two definitions that were accepted say the same, be it in different dialects."""
    from shared.flows.dialects import read as read_dialect

    return read_dialect(one)[1] == read_dialect(other)[1]
