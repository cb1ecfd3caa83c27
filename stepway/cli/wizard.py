"""`stepway wizard`: lists, describes and runs the wizards, from their own descriptions."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stepway.cli.asking import Asker, pick
from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow
from stepway.cli.nouns import pairs
from stepway.cli.output import Column, clean
from stepway.cli.problems import JobFailed, Refused, Usage
from stepway.cli.resolve import is_id
from stepway.cli.terminal import confirm
from stepway.cli.values import Unreadable, hint, properties, read
from stepway.client import ApiError
from stepway.wizards import Choice, Field, WizardRun, kinds, send_all

app = group("wizard", "Do things in steps: add models, scan, deploy, add clusters and workers.")
Type = Annotated[str, typer.Argument(metavar="TYPE", help="A wizard of `stepway wizard list`.")]


@command(app, "list")
def list_wizards(cli: Cli) -> None:
    """List the wizards."""
    columns = [Column("type", "type"), Column("title", "title"), Column("steps", "total_steps"), Column("role", "role"),
               Column("description", "description")]  # fmt: skip
    cli.out.rows(cli.client.get("/wizards")["data"], columns)


@command(app, "show")
def show_wizard(cli: Cli, type: Type) -> None:
    """Show a wizard's steps and fields."""
    run = WizardRun(cli.client, type)
    if not cli.out.is_table:
        cli.out.data(run.description)
        return
    required = {name for one in run.description["variants"] for name in one["required"]}
    rows = [row for step in run.description["steps"] for row in _rows(run, step, required)]
    cli.out.say(f"{run.description['title']}: {run.description['description']}", "bold")
    names = ("step", "title", "field", "required", "values")
    cli.out.rows(rows, [Column(name, name) for name in names])


def _rows(run: WizardRun, step: dict[str, Any], required: set[str]) -> list[dict[str, Any]]:
    """A line for each field of a step, or one for a step that has none."""
    fields = next((one.fields for one in run.all_steps() if one.key == step["key"]), ())
    head = {"step": step["number"], "title": step["title"]}
    if not fields:
        return [{**head, "values": step["description"]}]
    return [{**head, "field": one.name, "required": one.name in required, "values": _values(one)} for one in fields]


def _values(field: Field) -> str:
    if field.is_file:
        return "a file"
    if field.options is not None:
        return f"from GET {field.options['href']}"
    return hint(field.schema) or ", ".join(sorted(kinds(field.schema)))


@command(app, "run")
def run_wizard(
    cli: Cli,
    type: Type,
    file: Annotated[str | None, typer.Option("--file", "-F", help="A JSON list of step bodies; - for stdin.")] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field; names do for ids, paths for files."),
    ] = None,
    resume: Annotated[str | None, typer.Option("--resume", metavar="ID", help="Go on with this draft.")] = None,
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing: --set has it all.")] = False,
    no_trigger: Annotated[bool, typer.Option("--no-trigger", help="Keep the draft, start nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for the job's end.")] = False,
) -> None:
    """Run a wizard: asked step by step, or from a file."""
    if resume is not None and not is_id(resume):
        raise Usage(f"{resume!r} is not the id of a workflow.")
    run = WizardRun(cli.client, type, resume=resume)
    try:
        if file is not None:
            _from_file(run, _bodies(file), values or [], trigger=not no_trigger)
        elif no_input:
            send_all(run, _given(run, values or []), trigger=not no_trigger)
        else:
            _ask(cli, run, _given(run, values or []), trigger=not no_trigger)
    except (ApiError, Usage, Refused):
        if run.workflow_id is not None:
            cli.out.say(f"The draft is kept: stepway wizard run {type} --resume {run.workflow_id}", "dim")
        raise
    _end(cli, run, detach=detach)


def _end(cli: Cli, run: WizardRun, *, detach: bool) -> None:
    """Follow what was started, and print the workflow."""
    workflow = run.workflow
    assert workflow is not None
    job = workflow["job"]
    failed = None
    if job is not None and not detach:
        try:
            follow(cli.client, cli.out, job["id"])
        except JobFailed as error:
            failed = error
        workflow = cli.client.get(f"/workflows/{workflow['workflow_id']}")
    if not cli.out.is_table:
        cli.out.data(workflow)
    elif workflow["result"] is not None:
        cli.out.one(workflow["result"])
    else:
        names = ("workflow_id", "status", "current_step", "total_steps", "message", "reason", "missing")
        cli.out.one({name: workflow[name] for name in names if workflow[name]})
        if job is not None and detach:
            cli.out.say(f"Follow it with: stepway jobs watch {job['id']}")
    if failed is not None:
        raise failed


# ---- from a file


def _bodies(file: str) -> list[dict[str, Any]]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        found = json.loads(text)
    except OSError as error:
        raise Usage(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise Usage(f"{file} is not JSON: {error}. Comments are not accepted.") from error
    bodies = found if isinstance(found, list) else [found]
    if not bodies or not all(isinstance(one, dict) for one in bodies):
        raise Usage(f"{file} must hold a list of step bodies.")
    return bodies


def _from_file(run: WizardRun, bodies: list[dict[str, Any]], values: list[str], *, trigger: bool) -> None:
    """Sends the bodies as they are; the workflow's id, which only the server knows, is filled in."""
    given = _given(run, values)
    for number, body in enumerate(bodies):
        sent = {name: given.pop(name, value) for name, value in body.items()}
        if number == len(bodies) - 1:
            sent |= given
        if run.workflow_id is not None:
            sent.pop("workflow_total_steps", None)
            sent["workflow_id"] = run.workflow_id
        if not trigger:
            sent["trigger_workflow"] = False
        run.send_body(sent)


def _given(run: WizardRun, values: list[str]) -> dict[str, Any]:
    """`--set` as fields: read by their schemas, members of objects by `field.member=value`, names turned to ids."""
    found: dict[str, Any] = {}
    for name, text in pairs(values).items():
        top, _, inner = name.partition(".")
        field = run.field(top)
        if field is None:
            raise Usage(
                f"{run.description['type']} has no field {top!r}.", [one.name for s in run.steps() for one in s.fields]
            )
        schema = properties(field.schema).get(inner) if inner else field.schema
        if schema is None:
            raise Usage(f"{top} has no member {inner!r}.", list(properties(field.schema)))
        try:
            value = text if field.is_file else None if text in ("", "null") else read(schema, text)
        except Unreadable as error:
            raise Usage(f"{name}: {error}") from error
        if inner:
            found.setdefault(top, {})[inner] = value
        else:
            found[top] = value
    # In the wizard's order, for the options of one field may depend on the fields before it.
    for name in [one.name for step in run.all_steps() for one in step.fields if one.name in found]:
        found[name] = run.fields[name] = _by_name(run, name, found[name])
    return found


def _by_name(run: WizardRun, name: str, value: Any) -> Any:
    """The id that a name stands for, where a field's value is an id."""
    field = run.field(name)
    if field is None or field.options is None or not field.is_reference or not isinstance(value, str) or is_id(value):
        return value
    if "{workflow_id}" in field.options["href"]:
        # These options are of a draft, which has not begun: the collection itself knows the names.
        collection = "/" + field.options["href"].strip("/").split("/")[0]
        items = run.client.items(collection, search=value)
        choices = [Choice(one["id"], str(one.get("name")), one) for one in items]
    else:
        choices = run.choices(field, search=value)
    found = pick(choices, value)
    if len(found) == 1:
        return found[0].value
    words = "several are" if found else "nothing is"
    raise Usage(f"{name}: {words} called {value!r}.", [f"{one.value}  {one.label}" for one in found[:10]])


# ---- asked


def _ask(cli: Cli, run: WizardRun, given: dict[str, Any], *, trigger: bool) -> None:
    asker = Asker(cli.out, run, given)
    cli.out.say(f"{run.description['title']}. {run.description['description']}", "bold")
    taken: set[str] = set()
    while (step := next((one for one in run.steps() if one.key not in taken), None)) is not None:
        taken.add(step.key)
        if step.fields:
            _take(cli, run, asker, step.number, asker.step(step))
    if run.workflow is None:
        raise Refused("This wizard has no fields to ask for.")
    if not trigger or not confirm(f"\nStart it: {clean(run.description['title']).lower()}?", default=True):
        return
    last = run.steps()[-1].number
    _take(cli, run, asker, last, {}, trigger=True)


def _take(
    cli: Cli, run: WizardRun, asker: Asker, number: int, fields: dict[str, Any], *, trigger: bool = False
) -> None:
    """Send a step; what is refused because of a field is asked again."""
    while True:
        try:
            if fields or trigger or run.workflow is None:
                run.send(number, fields, trigger=trigger)
            return
        except ApiError as error:
            faulty = {str(one["param"]).split(".")[0] for one in error.errors if one.get("param")}
            known = {name for name in faulty if run.step_of(name) is not None}
            if error.status not in (409, 422) or not known:
                raise
            for one in error.errors:
                cli.out.say(f"{one['param']}: {one['message']}", "yellow")
            for name in known:
                run.fields.pop(name, None)
            for step in run.steps():
                if names := known & {field.name for field in step.fields}:
                    fields = {**fields, **asker.step(step, only=names)}
