"""Definitions and inputs as they come: read in their dialect, checked against the task types, refused with every fault.

`shared.flows` finds the faults; here they become problems, and what the app alone knows is looked at: sizes, credentials.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.credentials import service as credentials
from services.app.identity.caller import Caller
from shared.contracts.flows import MAX_INPUTS
from shared.errors import Fault, Problem
from shared.flows import validation
from shared.flows.definition import Flow
from shared.flows.dialects import DIALECTS
from shared.flows.dialects.words import DialectName
from shared.flows.faults import Fault as FlowFault
from shared.flows.faults import FlowFaults, member
from shared.flows.given import check_inputs
from shared.flows.references import ReferenceFault, compile_value
from shared.http.problems import sentence
from stepway.tasks import TaskType

MAX_STORED = 900 * 1024  # bytes of a definition, so that a job's input has room for it and for the inputs
MAX_CREDENTIALS = 100
MAX_URL = 2000
CREDENTIAL = "credential_id"  # the name of every input that names one


def read(body: dict[str, Any], types: Mapping[str, TaskType]) -> tuple[DialectName, Flow]:
    """The dialect and the flow of a definition. Problem `flow_invalid` with every fault."""
    try:
        dialect, flow = validation.accept(body, types)
        _check_credential_ids(flow, dialect)
    except FlowFaults as error:
        raise problem_of("flow_invalid", error.faults) from None
    if len(to_json(stored(flow))) > MAX_STORED:
        fault = FlowFault("", "too_long", f"A flow has at most {MAX_STORED >> 10} KiB; split it into sub-flows.")
        raise problem_of("flow_invalid", [fault])
    return dialect, flow


def stored(flow: Flow) -> dict[str, Any]:
    return flow.model_dump(mode="json", exclude_defaults=True)


def problem_of(code: str, faults: Sequence[FlowFault]) -> Problem:
    """`flow_invalid` or `flow_input_invalid`."""
    told = [Fault(one.path or None, one.code, one.message) for one in faults]
    detail = sentence(told[0], "The body") if len(told) == 1 else f"{len(told)} things are wrong; see errors."
    return Problem(code, detail, faults=told)


# ---- inputs of an execution


@dataclass(frozen=True, slots=True)
class Order:
    """What the body of a start says. `dialect` is the one that it is written in, and is answered in."""

    dialect: DialectName
    inputs: dict[str, Any]
    webhook_url: str | None


def read_order(body: dict[str, Any], otherwise: DialectName) -> Order:
    """`{input, webhook_url}` or `{inputs, monitoring: {webhook}}`; a body that shows neither is taken as `otherwise`.

    Problem `flow_input_invalid`.
    """
    marks = {"refs": ("input", "webhook_url"), "tasks": ("inputs", "monitoring")}
    shown = {name: next((mark for mark in some if mark in body), None) for name, some in marks.items()}
    faults: list[FlowFault] = []
    if shown["refs"] and shown["tasks"]:
        message = f"`{shown['refs']}` belongs to the dialect refs, `{shown['tasks']}` to the dialect tasks; use one."
        raise problem_of("flow_input_invalid", [FlowFault(shown["tasks"], "mixed_dialects", message)])
    dialect: DialectName = "refs" if shown["refs"] else "tasks" if shown["tasks"] else otherwise
    known = marks[dialect]
    for name in sorted(body.keys() - set(known)):
        faults.append(FlowFault(member("", name), "unknown_member", f"Known here are `{known[0]}` and `{known[1]}`."))
    inputs = body.get(known[0])
    if inputs is not None and not isinstance(inputs, dict):
        faults.append(FlowFault(known[0], "wrong_type", "This must be an object with the inputs by their names."))
    url = _webhook_of(body, dialect, faults)
    if faults:
        raise problem_of("flow_input_invalid", faults)
    return Order(dialect, inputs or {}, url)


def _webhook_of(body: dict[str, Any], dialect: DialectName, faults: list[FlowFault]) -> str | None:
    if dialect == "refs":
        return _checked_url(body.get("webhook_url"), "webhook_url", faults)
    monitoring = body.get("monitoring")
    if monitoring is None:
        return None
    if not isinstance(monitoring, dict):
        faults.append(FlowFault("monitoring", "wrong_type", "This must be an object with `webhook`."))
        return None
    for name in sorted(monitoring.keys() - {"webhook"}):
        faults.append(FlowFault(member("monitoring", name), "unknown_member", "Known here is `webhook`."))
    return _checked_url(monitoring.get("webhook"), "monitoring.webhook", faults)


def _checked_url(value: Any, path: str, faults: list[FlowFault]) -> str | None:
    """Whether it may be asked is looked at when it is: a name may resolve to something else by then."""
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_URL or not value.isprintable() or " " in value:
        faults.append(FlowFault(path, "wrong_type", f"This must be a URL of at most {MAX_URL} characters."))
        return None
    try:
        parts = urlsplit(value)
        _ = parts.port
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        is_fit = False
    if not is_fit:
        faults.append(FlowFault(path, "not_allowed", "This must be http://… or https://…, without credentials."))
    return value


def filled(flow: Flow, given: dict[str, Any], dialect: DialectName) -> dict[str, Any]:
    """The inputs of an execution with defaults. Problem `flow_input_invalid` with every fault, as `dialect` spells paths."""
    try:
        inputs = check_inputs(flow, given, dialect)
    except FlowFaults as error:
        raise problem_of("flow_input_invalid", error.faults) from None
    check_size(inputs, dialect)
    return inputs


def check_size(inputs: dict[str, Any], dialect: DialectName) -> None:
    """Problem `flow_input_invalid`."""
    if len(to_json(inputs)) > MAX_INPUTS:
        word = DIALECTS[dialect].input
        message = f"All inputs together have at most {MAX_INPUTS >> 10} KiB; pass what is large as a file."
        raise problem_of("flow_input_invalid", [FlowFault(word, "too_long", message)])


# ---- credentials


def credentials_of(flow: Flow, inputs: dict[str, Any], dialect: DialectName) -> dict[UUID, str]:
    """The credentials that tasks or inputs name, each with the first path where it stands."""
    found: dict[UUID, str] = {}
    inputs = {one.name: one.default for one in flow.inputs} | inputs
    places = [*_named(flow, dialect), *_below(inputs, DIALECTS[dialect].input)]
    for path, value in places:
        for one in (value, _resolved(value, inputs)):
            if isinstance(one, str) and (known := _uuid(one)) is not None:
                found.setdefault(known, path)
    return found


async def check_credentials(
    session: AsyncSession, caller: Caller, named: Mapping[UUID, str], project_id: UUID
) -> list[UUID]:
    """The same as for ids in other bodies: `reference_not_found` for one that the caller may not use in the project."""
    faults: list[Fault] = []
    if len(named) > MAX_CREDENTIALS:
        raise Problem("validation_failed", f"A flow names at most {MAX_CREDENTIALS} credentials.")
    for credential_id, path in named.items():
        try:
            await credentials.check_usable(session, caller, credential_id, project_id)
        except Problem as problem:
            faults.append(Fault(path, problem.code, problem.detail))
    if faults:
        raise Problem("reference_not_found", faults[0].message, faults=faults)
    return list(named)


def _check_credential_ids(flow: Flow, dialect: DialectName) -> None:
    """Raise `FlowFaults` for what is no id: a secret, say, that somebody has put there."""
    faults = [
        FlowFault(path, "wrong_type", "This must be the id of a credential, or a reference.")
        for path, value in _named(flow, dialect)
        if value is not None and not (isinstance(value, str) and ("{{" in value or _uuid(value) is not None))
    ]
    if faults:
        raise FlowFaults(faults)


def _named(flow: Flow, dialect: DialectName) -> Iterator[tuple[str, Any]]:
    for number, task in enumerate(flow.tasks):
        yield from _below(task.inputs, f"tasks[{number}].{DIALECTS[dialect].input}")


def _below(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every member `credential_id` in plain JSON, which is of bounded depth."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name == CREDENTIAL:
                yield member(path, name), one
            yield from _below(one, member(path, name))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _below(one, f"{path}[{number}]")


def _resolved(value: Any, inputs: dict[str, Any]) -> Any:
    """What a reference to an input names; None for one to anything else, which is no literal credential."""
    if not isinstance(value, str) or "{{" not in value:
        return None
    try:
        return compile_value(value).resolve({"input": inputs})
    except (ReferenceFault, FlowFaults):
        return None


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text) if len(text) == 36 else None
    except ValueError:
        return None
