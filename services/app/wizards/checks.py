"""All that is wrong with a step, and all that a trigger still needs: every refusal names its faults together.

Faults come from four places: the format (`forms`), what ids name (`references`), the wizard's own checks, and names
that others have. Each is placed at the step that its field has in the draft's own variant.
"""

from collections.abc import Awaitable, Collection, Iterable
from typing import Any

from services.app import references
from services.app.references import Found
from services.app.wizards.contract import Fields, Missing, Variant, Visit, Wizard, root_of
from services.app.wizards.forms import StepBody
from services.app.wizards.tables import WorkflowRow
from shared.error_codes import CODES
from shared.errors import Fault, Problem
from shared.http.problems import problem_of

Facts = dict[str, dict[str, Any]]  # by file field, what its check has found out


async def check_step(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, body: StepBody, changed: set[str], found: Found
) -> Facts:
    """Raise everything that is wrong with what was sent: nothing is stored then. What is known of the files otherwise.

    A trigger saves its fields before it looks at names; when it is refused here, it hears of them, and of what is
    missing, in the same answer.
    """
    if not changed and not body.faults:
        return {}
    fields = {**workflow.fields, **body.fields}
    faults = [*body.faults, *references.faults(visit.caller, fields, wizard.references, found, sorted(changed))]
    at_fault = {root_of(fault.param) for fault in faults}
    sound = {name: value for name, value in fields.items() if name not in at_fault}
    faults += await wizard.check(visit, sound, changed - at_fault)
    facts: Facts = {}
    for name in sorted(body.files.keys() & changed):
        faults += await _caught(_look_into(visit, wizard, body, name, sound, facts))
    if faults or not body.trigger:
        faults += await _caught(wizard.check_names(visit, sound, changed - at_fault))
    if not faults:
        return facts
    more: list[Fault] = []
    variant = await wizard.variant(visit, fields)
    if body.trigger:
        at_fault = {root_of(fault.param) for fault in faults}
        kept = {name: file for name, file in workflow.files.items() if name not in changed}
        needed = await missing(visit, wizard, variant, {**kept, **sound, **facts}, found)
        more = [_fault(one) for one in needed if root_of(one.field) not in at_fault]
    raise _refusal(_placed(wizard, variant, faults), _placed(wizard, variant, more))


async def check_trigger(
    visit: Visit, wizard: Wizard, workflow: WorkflowRow, variant: Variant, found: Found
) -> Problem | None:
    """Why a job cannot be started from what is stored; None when nothing is missing."""
    needed = await missing(visit, wizard, variant, values_of(workflow), found)
    if not needed:
        return None
    taken = await _caught(wizard.check_names(visit, workflow.fields, set(workflow.fields)))
    faults = _placed(wizard, variant, [*map(_fault, needed), *taken])
    if {fault.code for fault in faults} == {"reference_not_found"}:
        return Problem("reference_not_found", needed[0].message, faults=faults)
    names = ", ".join(one.field for one in needed)
    return Problem("missing_fields", f"Before this can start: {names}.", faults=faults)


async def missing(visit: Visit, wizard: Wizard, variant: Variant, values: Fields, found: Found) -> list[Missing]:
    """What a trigger would refuse: each field once, for the first reason. `values` are the fields and the files."""
    gone = [
        Missing(str(fault.param), fault.message, "reference_not_found")
        for fault in references.faults(visit.caller, values, wizard.references, found, sorted(wizard.references))
    ]
    by_field: dict[str, Missing] = {}
    for one in (*variant.absent(values), *gone, *await wizard.inconsistent(visit, values)):
        by_field.setdefault(one.field, one)
    return list(by_field.values())


def values_of(workflow: WorkflowRow) -> dict[str, Any]:
    """The fields, and the files as they are kept."""
    return {**workflow.files, **workflow.fields}


def placed(problem: Problem, wizard: Wizard, variant: Variant) -> Problem:
    """A refusal by the wizard itself, with the step of its field."""
    if problem.param is not None and not problem.faults:
        problem.faults = _placed(wizard, variant, [_of_problem(problem)])
    return problem


async def _look_into(visit: Visit, wizard: Wizard, body: StepBody, name: str, fields: Fields, facts: Facts) -> None:
    if (file := body.files[name]) is not None:
        facts[name] = await wizard.check_file(visit, name, file.content, fields)


async def _caught(check: Awaitable[None]) -> list[Fault]:
    """The problem that a check raises, as one fault among others."""
    try:
        await check
    except Problem as problem:
        return [_of_problem(problem)]
    return []


def _of_problem(problem: Problem) -> Fault:
    return Fault(problem.param, problem.code, problem.detail)


def _fault(one: Missing) -> Fault:
    return Fault(one.field, one.code, one.message)


def _placed(wizard: Wizard, variant: Variant, faults: Iterable[Fault]) -> list[Fault]:
    return [Fault(one.param, one.code, one.message, wizard.step_of(one.param, variant)) for one in faults]


def _refusal(faults: list[Fault], more: Collection[Fault]) -> Problem:
    """`faults` give the code: their own where they share one that is an answer's, such as `reference_not_found`."""
    codes = {fault.code for fault in faults}
    if len(codes) == 1 and (code := codes.pop()) in CODES and code != "unknown_field":
        return Problem(code, faults[0].message, faults=[*faults, *more])
    problem = problem_of(faults)
    problem.faults += more
    return problem
