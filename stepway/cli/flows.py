"""`stepway flows`: definitions of flows, between files and the server. Those that run are in `flow_runs`."""

import difflib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from stepway.cli import flow_runs, flow_schedules, flow_triggers, flow_uploads
from stepway.cli.command import Cli, command, group
from stepway.cli.flow_checks import Checked, check, same
from stepway.cli.flow_files import Definition, as_yaml, files_of, write
from stepway.cli.nouns import Ref, add_delete, add_list
from stepway.cli.output import Column
from stepway.cli.problems import Refused, Usage
from stepway.cli.resolve import FLOW, PROJECT, find_id

app = group("flows", "Flows: tasks one after another, from a file to a result.")
COLUMNS = [
    Column("name", "name"), Column("version", "workflow_version"), Column("dialect", "dialect"),
    Column("updated", "updated_at"), Column("id", "workflow_id"),
]  # fmt: skip
TYPES = [
    Column("name", "name"), Column("title", "title"),
    Column("takes", lambda kind: [f"{one['name']}{'' if one['required'] else '?'}" for one in kind["inputs"]]),
    Column("gives", lambda kind: [one["name"] for one in kind["outputs"]]),
]  # fmt: skip
FIELDS = [
    Column("name", "name"), Column("type", "type"), Column("required", "required"), Column("default", "default"),
    Column("description", "description"),
]  # fmt: skip
APPLIED = [
    Column("result", "result"), Column("flow", "name"), Column("version", "workflow_version"),
    Column("id", "workflow_id"), Column("file", "file"),
]  # fmt: skip

Files = Annotated[list[Path], typer.Argument(metavar="FILE…", help="YAML or JSON files, or folders of such.")]
Dialect = Annotated[str | None, typer.Option("--dialect", help="The way of writing.", metavar="refs|tasks")]
Project = Annotated[str | None, typer.Option("--project", help="Its name or id; the one that you begin in, without.")]
Online = Annotated[bool, typer.Option("--online", help="Ask the server, which may know other types of tasks.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Expected = Annotated[int | None, typer.Option("--expected-version", min=1, help="Change this version or none.")]

add_list(app, FLOW, COLUMNS)


@command(app, "show")
def show(
    cli: Cli,
    ref: Ref,
    dialect: Dialect = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Instead of the current one.")] = None,
) -> None:
    """Show a flow and its definition."""
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, ref)}" + (f"/versions/{version}" if version else "")
    flow = cli.client.get(path, dialect=dialect)
    if not cli.out.is_table:
        cli.out.data(flow)
        return
    definition = flow.pop("definition")
    cli.out.one(flow)
    cli.out.write(f"\n{as_yaml(definition)}")


@command(app, "validate")
def validate(cli: Cli, files: Files, online: Online = False) -> None:
    """Say everything that is wrong with files. Needs no server. The exit code is 1 when anything is."""
    checked = [check(file, cli.client if online else None) for file in files_of(files)]
    _tell(cli, checked)
    _refuse(checked)


def _tell(cli: Cli, checked: list[Checked]) -> None:
    if not cli.out.is_table:
        cli.out.data([one.view() for one in checked])
        return
    for one in checked:
        for line in one.lines():
            cli.out.write(f"{line}\n")
        if not one.faults:
            cli.out.say(f"{one.file}: valid ({one.dialect})")


def _refuse(checked: list[Checked]) -> None:
    count = sum(len(one.faults) for one in checked)
    bad = sum(bool(one.faults) for one in checked)
    if bad:
        raise Refused(f"{count} fault{'s' * (count != 1)} in {bad} of {len(checked)} file{'s' * (len(checked) != 1)}.")


# ---- from files to the server


@command(app, "apply")
def apply(
    cli: Cli, files: Files, project: Project = None, expected_version: Expected = None, dry_run: DryRun = False
) -> None:
    """Make the flows of files, or new versions of those that have their names. With any fault in any file, nothing."""
    _apply(cli, files_of(files), project, expected_version, dry_run=dry_run)


@command(app, "import")
def import_all(
    cli: Cli, folder: Annotated[Path, typer.Argument(metavar="DIR")], project: Project = None, dry_run: DryRun = False
) -> None:
    """Apply all files of a folder."""
    if not folder.is_dir():
        raise Usage(f"{folder} is not a folder.")
    _apply(cli, files_of([folder]), project, None, dry_run=dry_run)


def _apply(cli: Cli, files: list[Path], project: str | None, expected: int | None, *, dry_run: bool) -> None:
    if expected is not None and len(files) != 1:
        raise Usage("--expected-version is for one file.")
    checked = [check(file, cli.client) for file in files]
    if any(one.faults for one in checked):
        _tell(cli, checked)
        _refuse(checked)
    definitions = [one.definition for one in checked if one.definition is not None]
    _check_names(definitions)
    home = _home(cli, project)
    results: list[dict[str, Any]] = []
    try:
        for one in definitions:
            results.append(_apply_one(cli, one, home, expected, dry_run=dry_run))
    finally:  # what was done before a refusal is told as well
        cli.out.rows(results, APPLIED)


def _check_names(definitions: list[Definition]) -> None:
    seen: dict[str, Path] = {}
    for one in definitions:
        if one.name in seen:
            raise Usage(f"{seen[one.name]} and {one.file} both hold a flow called {one.name!r}.")
        seen[one.name] = one.file


def _home(cli: Cli, project: str | None) -> str:
    """The project, as the server finds it for who names none: the only one, else the one called `default`."""
    if project is not None:
        return find_id(cli.client, PROJECT, project)
    found = list(cli.client.items(PROJECT.path))
    chosen = found if len(found) == 1 else [one for one in found if one["name"] == "default"]
    if len(chosen) != 1:
        raise Usage("Say in which project: --project.", [str(one["name"]) for one in found[:10]])
    return str(chosen[0]["id"])


def _apply_one(cli: Cli, one: Definition, home: str, expected: int | None, *, dry_run: bool) -> dict[str, Any]:
    if not dry_run:
        guard = {} if expected is None else {"expected_version": expected}
        applied = cli.client.put(FLOW.path, {**one.body, "project_id": home, **guard})
        return _result(applied["result"], one, applied)
    there = [flow for flow in cli.client.items(FLOW.path, search=one.name, project_id=home) if flow["name"] == one.name]
    if len(there) > 1:
        raise Usage(f"The project has several flows called {one.name!r}.", [flow["workflow_id"] for flow in there])
    if not there and expected is not None:
        raise Refused(f"There is no flow called {one.name!r} yet, so not at version {expected} either.")
    if not there:
        return _result("created", one, {"workflow_id": None, "workflow_version": 1})
    before = there[0]
    is_same = same(one.body, cli.client.get(f"{FLOW.path}/{before['workflow_id']}")["definition"])
    after = {**before, "workflow_version": before["workflow_version"] + (not is_same)}
    return _result("unchanged" if is_same else "changed", one, after)


def _result(result: str, one: Definition, flow: dict[str, Any]) -> dict[str, Any]:
    return {
        "result": result, "file": str(one.file), "name": one.name, "workflow_id": flow["workflow_id"],
        "workflow_version": flow["workflow_version"],
    }  # fmt: skip


# ---- from the server to files


@command(app, "export")
def export(
    cli: Cli,
    places: Annotated[list[str], typer.Argument(metavar="[FLOW…] DIR")],
    everything: Annotated[bool, typer.Option("--all", help="All flows, of the project if one is named.")] = False,
    project: Annotated[str | None, typer.Option("--project", help="Only flows of this one, with --all.")] = None,
    dialect: Dialect = None,
) -> None:
    """Write flows to files that `apply` takes, a YAML file for each. Files of the same names are replaced."""
    *refs, folder = places
    if everything == bool(refs):
        raise Usage("Name flows and a folder, or --all and a folder.")
    home = None if project is None else find_id(cli.client, PROJECT, project)
    ids = [find_id(cli.client, FLOW, ref) for ref in refs]
    if everything:
        listed = cli.client.items(FLOW.path, project_id=home, order_by="created_at")
        ids = [flow["workflow_id"] for flow in listed]
    Path(folder).mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    written = []
    for workflow_id in ids:
        flow = cli.client.get(f"{FLOW.path}/{workflow_id}", dialect=dialect)
        file = write(Path(folder), flow["name"], flow["definition"], taken)
        written.append({
            "file": str(file), "name": flow["name"], "workflow_id": flow["workflow_id"],
            "workflow_version": flow["workflow_version"],
        })  # fmt: skip
    cli.out.rows(written, APPLIED[1:])


@command(app, "diff")
def diff(
    cli: Cli,
    ref: Ref,
    one: Annotated[int | None, typer.Argument(metavar="V1", min=1, help="The one before the last, without.")] = None,
    other: Annotated[int | None, typer.Argument(metavar="V2", min=1, help="The last one, without.")] = None,
) -> None:
    """Show what differs between two versions of a flow."""
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, ref)}"
    flow = cli.client.get(path)
    new = other or flow["workflow_version"]
    old = one or new - 1
    if old < 1:
        raise Refused(f"{flow['name']} has only one version.")
    before, after = [
        as_yaml(cli.client.get(f"{path}/versions/{number}", dialect=flow["dialect"])["definition"]).splitlines(True)
        for number in (old, new)
    ]
    text = "".join(
        difflib.unified_diff(before, after, f"{flow['name']} version {old}", f"{flow['name']} version {new}")
    )
    if not cli.out.is_table:
        cli.out.data({"workflow_id": flow["workflow_id"], "from": old, "to": new, "diff": text})
    elif text:
        cli.out.write(text)
    else:
        cli.out.say(f"The versions {old} and {new} say the same.")


add_delete(app, FLOW)


@command(app, "task-types")
def task_types(
    cli: Cli, name: Annotated[str | None, typer.Argument(metavar="NAME", help="One of them, in any spelling.")] = None
) -> None:
    """List the types of tasks, or show what one takes and gives."""
    if name is None:
        cli.show_list(cli.client.items("/flow/task-types"), TYPES)
        return
    kind = cli.client.get(f"/flow/task-types/{quote(name, safe='')}")
    if not cli.out.is_table:
        cli.out.data(kind)
        return
    cli.out.write(f"{kind['name']}: {kind['description']}\n\ninputs\n")
    cli.out.rows(kind["inputs"], FIELDS, "None.")
    cli.out.write("\noutputs\n")
    cli.out.rows(kind["outputs"], [column for column in FIELDS if column.title not in ("required", "default")])


flow_runs.add_to(app)
for _noun in (flow_schedules, flow_triggers, flow_uploads):
    app.add_typer(_noun.app)
