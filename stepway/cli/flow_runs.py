"""`stepway flows run` and what is done with executions: watched, listed, looked into, answered, cancelled, run again."""

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from stepway.cli.command import Cli, command
from stepway.cli.flow_files import Unreadable, mapping
from stepway.cli.following import mark
from stepway.cli.nouns import Limit, Ref, pairs
from stepway.cli.output import Column, plain
from stepway.cli.problems import Refused, Usage
from stepway.cli.resolve import FLOW, find_id, is_id
from stepway.cli.values import Unreadable as Unfit
from stepway.cli.values import read
from stepway.client import Client
from stepway.problems import ApiError

ENDS = frozenset({"COMPLETED", "FAILED", "CANCELLED"})
COLUMNS = [
    Column("id", lambda item: item.get("execution_id") or item.get("workflow_execution_id")), Column("status", "status"),
    Column("created", "created_at"), Column("started", "started_at"), Column("ended", "completed_at"),
]  # fmt: skip
SCHEMAS: dict[str, dict[str, Any]] = {
    "number": {"type": "number"}, "boolean": {"type": "boolean"}, "list": {"type": "array"}, "object": {"type": "object"},
    "file": {"type": "object"}, "any": {"anyOf": [{"type": "string"}, {"type": "object"}]},
}  # fmt: skip  # a text is what it is; any: JSON, else a text
SHOWN = 400  # characters of a value in a table

Execution = Annotated[str, typer.Argument(metavar="EXECUTION", help="Its id, such as ex-1a2b3c4d.")]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end; the exit code is 1 if it fails.")]
KeyFile = Annotated[
    Path | None, typer.Option("--provider-key-file", help="Holds a key for the models' provider, for this execution.")
]


def add_to(app: typer.Typer) -> None:
    command(app, "run")(run)
    command(app, "executions")(executions)
    command(app, "watch")(watch)
    command(app, "logs")(logs)
    command(app, "cancel")(cancel)
    command(app, "retry")(retry)
    command(app, "answer")(answer)


def run(
    cli: Cli,
    ref: Ref,
    inputs: Annotated[list[str] | None, typer.Option("--input", "-i", metavar="NAME=VALUE", help="May be repeated.")] = None,
    input_file: Annotated[str | None, typer.Option("--input-file", help="YAML or JSON with inputs; - for stdin.")] = None,
    files: Annotated[list[str] | None, typer.Option("--file", metavar="NAME=PATH", help="A file for an input; uploaded.")] = None,
    watch: Watch = False,
    provider_key_file: KeyFile = None,
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Is told of its statuses.")] = None,
) -> None:  # fmt: skip
    """Start an execution of a flow. Values are read by the types of the flow's inputs."""
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, ref)}"
    given = given_inputs(cli.client, path, inputs, input_file, files)
    body = {"input": given, **({"webhook_url": webhook} if webhook else {})}
    started = cli.client.post(f"{path}/execute", body, headers=_key(provider_key_file))
    _go_on(cli, started, f"{path}/executions/{started['execution_id']}", watch=watch)


def _go_on(cli: Cli, shown: dict[str, Any], path: str, *, watch: bool) -> None:
    if watch:
        _finish(cli, follow(cli, path))
        return
    if cli.out.is_table:
        cli.out.one({name: shown[name] for name in ("execution_id", "workflow_id", "workflow_version", "status")})
        cli.out.say(f"Look into it: stepway flows logs {shown['execution_id']}", "dim")
    else:
        cli.out.data(shown)


def given_inputs(
    client: Client, path: str, inputs: list[str] | None, input_file: str | None, files: list[str] | None = None
) -> dict[str, Any]:
    """The inputs for a flow, whose path is given: of a file, then of options; files are uploaded."""
    given = _from_file(input_file) if input_file else {}
    paths = _paths(files or [])
    if inputs or paths:
        flow = client.get(path, dialect="refs")
        declared = flow["definition"].get("input", [])
        given |= _read_inputs(declared, pairs(inputs or []))
        given |= _upload(client, declared, paths, flow["project_id"])
    return given


def _from_file(place: str) -> dict[str, Any]:
    try:
        data = sys.stdin.read().encode() if place == "-" else Path(place).read_bytes()
        return mapping(data, is_json=place.endswith(".json"))
    except Unreadable as error:
        raise Usage(f"{place}{': ' + error.place if error.place else ''}: {error}") from error


def _read_inputs(declared: list[dict[str, Any]], given: dict[str, str]) -> dict[str, Any]:
    types = {one["name"]: one["type"] for one in declared}
    found: dict[str, Any] = {}
    for name, text in given.items():
        if name not in types:
            raise Usage(f"The flow has no input {name!r}.", sorted(types))
        try:
            found[name] = read(SCHEMAS.get(types[name], {"type": "string"}), text)
        except Unfit as error:
            raise Usage(f"{name}: {error}") from error
    return found


def _paths(given: list[str]) -> dict[str, Path]:
    found = {name: Path(path).expanduser() for name, path in pairs(given).items()}
    for path in found.values():
        if not path.is_file():
            raise Usage(f"{path} is not a file.")
    return found


def _upload(client: Client, declared: list[dict[str, Any]], paths: dict[str, Path], project: str) -> dict[str, Any]:
    """The values of files, each uploaded into the flow's project."""
    fit = sorted(one["name"] for one in declared if one["type"] in ("file", "any"))
    for name in paths:
        if name not in fit:
            raise Usage(f"The flow has no input {name!r} that takes a file.", fit)
    return {name: client.upload("/flow/files", path, project_id=project) for name, path in paths.items()}


def _key(file: Path | None) -> dict[str, str]:
    if file is None:
        return {}
    key = file.read_bytes().decode("ascii", "replace").strip()
    if not re.fullmatch(r"[!-~]{1,4096}", key):  # what refuses it later would quote it
        raise Usage(f"{file} does not hold a key: one line of visible ASCII characters.")
    return {"X-Provider-Key": key}


# ---- followed


def watch(cli: Cli, execution: Execution) -> None:
    """Follow an execution to its end. The exit code is 1 when it ends otherwise than well."""
    _finish(cli, follow(cli, find_execution(cli.client, execution)))


def follow(cli: Cli, path: str) -> dict[str, Any]:
    """Tells of its tasks on stderr as they go; the execution at its end."""
    execution: dict[str, Any] = cli.client.get(path, dialect="refs")
    told: set[tuple[str, str]] = set()
    may_skip = _may_skip(cli.client, execution)
    while True:
        for event in cli.client.events(f"{path}/events"):  # from the first one
            if event.name == "step":
                _tell(cli, event.data, told, execution["execution_id"], path if may_skip else None)
        execution = cli.client.get(path, dialect="refs", wait=10)
        if execution["status"] in ENDS:
            break
    error = f": {execution['error']['message']}" if execution["error"] else ""
    cli.out.say(f"{execution['execution_id']} {execution['status']}{error}")
    return execution


def _may_skip(client: Client, execution: dict[str, Any]) -> bool:
    """Whether tasks of the execution may be passed over: then each that is done is looked at, for its step does not say."""
    version = f"{FLOW.path}/{execution['workflow_id']}/versions/{execution['workflow_version']}"
    try:
        tasks = client.get(version, dialect="refs")["definition"]["tasks"]
    except ApiError:  # the flow has been deleted meanwhile
        return True
    bodies = [body for task in tasks if isinstance(body := task.get("input", {}).get("task"), dict)]
    return any("condition" in one or one.get("on_error") == "continue" for one in [*tasks, *bodies])


def _tell(cli: Cli, step: dict[str, Any], told: set[tuple[str, str]], execution: str, path: str | None) -> None:
    """A line for each change of a task, of an item of a loop (`name[3]`), and at the beginning of a wait (`name:wait`).

    `path` of the execution, where tasks of it may be skipped.
    """
    key, state = step["key"], step["state"]
    task, _, part = key.partition(":")
    again = f", attempt {step['attempt']}" if step["attempt"] > 1 else ""
    now = state if part else f"{state}{again}"
    if state == "pending" or (key, now) in told:
        return
    told.add((key, now))
    if part:
        if task and state == "running":
            cli.out.say(f"… {task} {_wait(step, part, execution)}")
        return
    if state == "succeeded" and path is not None:
        shown = cli.client.get(f"{path}/tasks/{quote(task, safe='')}", dialect="refs")
        if shown["status"] == "SKIPPED":
            cli.out.say(f"{mark('skipped')} {task} skipped: {shown['reason']}")
            return
    why = f": {step['error']['message']}" if step.get("error") else ""
    cli.out.say(f"{mark(state)} {task} {now}{_taken(step)}{why}")


def _wait(step: dict[str, Any], part: str, execution: str) -> str:
    event = step["title"].removeprefix("Wait for ")
    if part.startswith("stop"):
        return "is stopped"
    if part != "wait" or event == step["title"]:
        return "waits"
    return f"waits for {event}: stepway flows answer {execution} {event} DATA"


def _taken(times: dict[str, Any]) -> str:
    began, ended = times.get("started_at"), times.get("ended_at") or times.get("completed_at")
    if not began or not ended:
        return ""
    return f" ({(datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds():.1f} s)"


def _finish(cli: Cli, execution: dict[str, Any]) -> None:
    """Data first, then the verdict."""
    if not cli.out.is_table:
        cli.out.data(execution)
    elif execution["status"] == "COMPLETED":
        cli.out.one(execution["output"] or {})
    else:
        cli.out.rows(execution["tasks"], [Column("task", "ref"), Column("status", "status")])
    if execution["status"] != "COMPLETED":
        hint = f" Run it again from there: stepway flows retry {execution['execution_id']}"
        raise Refused(f"The execution ended as {execution['status']}.{hint if execution['status'] == 'FAILED' else ''}")


# ---- looked at


def executions(
    cli: Cli,
    ref: Ref,
    status: Annotated[str | None, typer.Option("--status", help="PENDING, RUNNING, COMPLETED, …")] = None,
    limit: Limit = 20,
) -> None:
    """List the executions of a flow, the newest first."""
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, ref)}/executions"
    cli.show_list(cli.client.items(path, limit=limit, status=status.upper() if status else None), COLUMNS)


def find_execution(client: Client, ref: str) -> str:
    """The path of an execution. `Usage` for what is no id, `Refused` when nothing has it."""
    if is_id(ref):
        job = client.get(f"/jobs/{ref}")
        return f"{FLOW.path}/{(job.get('resource') or {}).get('id')}/executions/{ref}"
    if not re.fullmatch(r"(ex|we)-[a-z0-9]{8}", ref):
        raise Usage(f"{ref!r} is not the id of an execution, such as ex-1a2b3c4d.")
    own = f"ex-{ref[3:]}"
    found = next(client.items("/flow/executions", search=own, dialect="refs", limit=1), None)
    if found is None:
        raise Refused(f"There is no execution {ref}.")
    return f"{FLOW.path}/{found['workflow_id']}/executions/{own}"


def logs(
    cli: Cli,
    execution: Execution,
    task: Annotated[str | None, typer.Option("--task", help="Only this one; name[3] is an item of a loop.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Do not cut long values.")] = False,
) -> None:
    """Show what each task of an execution took and gave, its times, attempts and error."""
    path = find_execution(cli.client, execution)
    shown = cli.client.get(path, dialect="refs")
    names = [task] if task else [one["ref"] for one in shown["tasks"]]
    views = [cli.client.get(f"{path}/tasks/{quote(name, safe='')}", dialect="refs") for name in names]
    if not cli.out.is_table:
        cli.out.data({**shown, "tasks": views})
        return
    error = f": {shown['error']['message']}" if shown["error"] and not task else ""
    cli.out.write(f"{shown['execution_id']} {shown['status']}{_taken(shown)}{error}\n")
    for view in views:
        _show_task(cli, view, None if full else SHOWN)


def _show_task(cli: Cli, view: dict[str, Any], most: int | None) -> None:
    tries = f", {view['attempts']} attempts" if view["attempts"] > 1 else ""
    since = f", from {view['started_at']}" if view["started_at"] else ""
    cli.out.write(f"\n{view['ref']}  {view['type']}  {view['status']}{_taken(view)}{tries}{since}\n")
    for word in ("input", "output"):
        for name, value in (view[word] or {}).items():
            text = plain(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            text = text if most is None or len(text) <= most else f"{text[:most]}… ({len(text)} characters; --full)"
            cli.out.write(f"  {word} {name}: {text}\n".replace("\n", "\n    ").rstrip(" "))
    for word in ("items", "reason", "message"):
        if view.get(word) and (word != "message" or view["status"] == "RUNNING"):
            cli.out.write(f"  {word}: {plain(view[word])}\n")
    if view["error"]:
        cli.out.write(f"  error: {view['error']['message']} [{view['error']['code']}]\n")


# ---- changed


def cancel(cli: Cli, execution: Execution) -> None:
    """Stop an execution."""
    path = find_execution(cli.client, execution)
    cli.client.post(f"{path}/cancel")
    shown = cli.client.get(path, dialect="refs", wait=30)
    if not cli.out.is_table:
        cli.out.data(shown)
    cli.out.say(f"{shown['execution_id']} {shown['status']}")


def retry(cli: Cli, execution: Execution, watch: Watch = False, provider_key_file: KeyFile = None) -> None:
    """Run a failed execution again from its failed task; what is done stays done."""
    path = find_execution(cli.client, execution)
    shown = cli.client.post(f"{path}/retry?dialect=refs", headers=_key(provider_key_file))
    _go_on(cli, shown, path, watch=watch)


def answer(
    cli: Cli,
    execution: Execution,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="What the task waits for.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A JSON object; - for stdin.")] = "{}",
) -> None:
    """Give an execution the event that one of its tasks waits for, or will."""
    path = find_execution(cli.client, execution)
    try:
        body = mapping((sys.stdin.read() if data == "-" else data).encode(), is_json=True)
    except Unreadable as error:
        raise Usage(f"The data must be a JSON object, such as '{{\"approved\": true}}'. {error}") from error
    shown = cli.client.post(f"{path}/events/{quote(event, safe='')}?dialect=refs", body)
    if not cli.out.is_table:
        cli.out.data(shown)
    cli.out.say(f"{shown['execution_id']} has {event}.")
