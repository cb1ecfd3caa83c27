"""`stepway jobs`: what runs, how far it is, and how it ended."""

from stepway.cli.command import Cli, command, group
from stepway.cli.following import follow, tree
from stepway.cli.nouns import Detach, Id, add_list
from stepway.cli.output import Column
from stepway.cli.problems import JobFailed
from stepway.cli.resolve import JOB, find_id

app = group("jobs", "What runs, how far it is, and how it ended.")
COLUMNS = [
    Column("id", "id"), Column("kind", "kind"), Column("state", "state"),
    Column("percent", lambda job: f"{job['percent']:.0f} %"), Column("attempt", "attempt"),
    Column("about", lambda job: job["resource"] and f"{job['resource']['type']} {job['resource']['id']}"),
    Column("started", "started_at"), Column("ended", "ended_at"),
]  # fmt: skip

add_list(app, JOB, COLUMNS)


@command(app, "show")
def show(cli: Cli, ref: Id) -> None:
    """Show a job and its steps."""
    job = cli.client.get(f"/jobs/{find_id(cli.client, JOB, ref)}")
    if cli.out.is_table:
        cli.out.one({name: value for name, value in job.items() if name != "steps"})
        cli.out.out.print(tree(job))
    else:
        cli.out.data(job)


@command(app, "watch")
def watch(cli: Cli, ref: Id) -> None:
    """Follow a job to its end. The exit code is 4 when it ends otherwise than well."""
    job = follow(cli.client, cli.out, find_id(cli.client, JOB, ref), check=cli.out.is_table)
    _end(cli, job)


@command(app, "cancel")
def cancel(cli: Cli, ref: Id, detach: Detach = False) -> None:
    """Stop a job and undo what it did."""
    job = cli.client.post(f"/jobs/{find_id(cli.client, JOB, ref)}/cancel")
    if not detach:
        job = follow(cli.client, cli.out, job["id"], check=False)
    if not cli.out.is_table:
        cli.out.data(job)


@command(app, "retry")
def retry(cli: Cli, ref: Id, detach: Detach = False) -> None:
    """Run a failed job again from its failed step."""
    job = cli.client.post(f"/jobs/{find_id(cli.client, JOB, ref)}/retry")
    if not detach:
        job = follow(cli.client, cli.out, job["id"], check=cli.out.is_table)
    _end(cli, job)


def _end(cli: Cli, job: dict[str, object]) -> None:
    """Data first, then the verdict."""
    if not cli.out.is_table:
        cli.out.data(job)
        if job["state"] in ("failed", "cancelled", "cleanup_required"):
            raise JobFailed(job)
