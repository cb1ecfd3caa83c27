"""`stepway flows schedules`: when a flow starts by itself. `flow_triggers` has those that messages start."""

from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.flow_runs import given_inputs
from stepway.cli.nouns import Ref, Yes
from stepway.cli.output import Column
from stepway.cli.resolve import FLOW, Kind, find_id
from stepway.cli.terminal import confirm_change

app = group("schedules", "Schedules: times at which a flow starts.")
SCHEDULE = Kind("schedule", "", ())
COLUMNS = [
    Column("cron", "cron"), Column("time zone", "timezone"), Column("enabled", "enabled"), Column("next", "next_at"),
    Column("last", lambda item: (item["last"] or {}).get("execution_id") or (item["last"] or {}).get("reason")),
    Column("id", "id"),
]  # fmt: skip
SENT = ("cron", "timezone", "input", "misfire")

Schedule = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its id.")]


def place(cli: Cli, flow: str, schedule: str | None = None) -> str:
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, flow)}/schedules"
    return path if schedule is None else f"{path}/{find_id(cli.client, SCHEDULE, schedule)}"


@command(app, "list")
def list_all(cli: Cli, flow: Ref) -> None:
    """List the schedules of a flow."""
    cli.show_list(cli.client.items(place(cli, flow)), COLUMNS)


@command(app, "show")
def show(cli: Cli, flow: Ref, schedule: Schedule) -> None:
    """Show a schedule, when it comes next, and what became of the last time."""
    cli.out.one(cli.client.get(place(cli, flow, schedule)))


@command(app, "create")
def create(
    cli: Cli,
    flow: Ref,
    cron: Annotated[str, typer.Option("--cron", help="Minute, hour, day of month, month, day of week: '30 7 * * 1-5'.")],
    timezone: Annotated[str, typer.Option("--timezone", help="In which cron is read, such as Europe/Berlin.")] = "UTC",
    inputs: Annotated[list[str] | None, typer.Option("--input", "-i", metavar="NAME=VALUE", help="May be repeated.")] = None,
    input_file: Annotated[str | None, typer.Option("--input-file", help="YAML or JSON with inputs; - for stdin.")] = None,
    misfire: Annotated[str, typer.Option("--misfire", help="Of missed times: run_once or skip.", metavar="WHAT")] = "run_once",
    paused: Annotated[bool, typer.Option("--paused", help="It starts nothing until it is resumed.")] = False,
) -> None:  # fmt: skip
    """Have a flow start at times, on your behalf. Values are read by the types of the flow's inputs."""
    path = place(cli, flow)
    body = {
        "cron": cron, "timezone": timezone, "misfire": misfire, "enabled": not paused,
        "input": given_inputs(cli.client, path.removesuffix("/schedules"), inputs, input_file),
    }  # fmt: skip
    cli.out.one(cli.client.post(path, body))


@command(app, "pause")
def pause(cli: Cli, flow: Ref, schedule: Schedule) -> None:
    """Let a schedule start nothing, until it is resumed."""
    _enable(cli, flow, schedule, enabled=False)


@command(app, "resume")
def resume(cli: Cli, flow: Ref, schedule: Schedule) -> None:
    """Let a schedule start the flow again, on your behalf from now on; times that have passed are not made up for."""
    _enable(cli, flow, schedule, enabled=True)


def _enable(cli: Cli, flow: str, schedule: str, *, enabled: bool) -> None:
    path = place(cli, flow, schedule)
    before: dict[str, Any] = cli.client.get(path)
    body = {**{name: before[name] for name in SENT}, "enabled": enabled}
    cli.out.one(cli.client.put(path, body, revision=before["revision"]))


@command(app, "fire")
def fire(cli: Cli, flow: Ref, schedule: Schedule) -> None:
    """Start the flow now as the schedule would, to try it. Its times stay what they are."""
    path = place(cli, flow, schedule)
    started = cli.client.post(f"{path.partition('/schedules')[0]}/execute", {"input": cli.client.get(path)["input"]})
    cli.out.one(started)


@command(app, "delete")
def delete(cli: Cli, flow: Ref, schedule: Schedule, yes: Yes = False) -> None:
    """Delete a schedule; executions that it has started go on."""
    path = place(cli, flow, schedule)
    confirm_change(cli.out, f"Delete the schedule {schedule}?", sure=yes)
    cli.client.delete(path)
    cli.out.say(f"The schedule {schedule} is deleted.")
