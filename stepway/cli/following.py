"""Shows a job while it runs: a live tree of its steps on a terminal, a line per change elsewhere."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from stepway.cli.output import Printer, clean
from stepway.cli.problems import JobFailed
from stepway.client import JOB_ENDS, Client, Unreachable

Job = dict[str, Any]
_MARKS = {
    "pending": ("○", "dim"), "running": ("●", "cyan"), "succeeded": ("✓", "green"), "failed": ("✗", "red"),
    "skipped": ("-", "dim"), "cancelled": ("■", "yellow"), "undone": ("↶", "yellow"), "waiting": ("…", "cyan"),
    "cancelling": ("↶", "yellow"), "cleanup_required": ("!", "red"),
}  # fmt: skip


def follow(client: Client, out: Printer, job_id: str, *, check: bool = True) -> Job:
    """Shows a job to its end, on stderr. `JobFailed` when it ends otherwise than well, unless `check` is off."""
    changes = client.follow_job(job_id)
    job = _live(out, changes) if out.err.is_terminal else _lines(out, changes)
    if job["state"] not in JOB_ENDS:
        raise Unreachable(f"The events of the job {job_id} ended before the job did.")
    if check and job["state"] != "succeeded":
        raise JobFailed(job)
    return job


def _live(out: Printer, changes: Iterable[Job]) -> Job:
    job: Job = {}
    with Live(console=out.err, refresh_per_second=8, transient=False) as live:
        for job in changes:
            live.update(tree(job))
    return job


def _lines(out: Printer, changes: Iterable[Job]) -> Job:
    job: Job = {}
    shown: dict[str, str] = {}
    for job in changes:
        for step in job["steps"]:
            if step["state"] != "pending" and shown.get(step["key"]) != step["state"]:
                shown[step["key"]] = step["state"]
                why = f": {step['error']['message']}" if step.get("error") and step["state"] == "failed" else ""
                out.say(f"{mark(step['state'])} {step['title']} {step['state']}{why}")
    if job:
        out.say(f"{mark(job['state'])} {job['kind']} {job['state']}{reason(job)}")
    return job


def mark(state: str) -> str:
    return _MARKS.get(state, ("?", ""))[0]


def reason(job: Job) -> str:
    return f": {job['error']['message']}" if job.get("error") else ""


def tree(job: Job) -> RenderableType:
    """The job as lines: itself, and each step with a bar while it runs."""
    mark, style = _MARKS.get(job["state"], ("?", ""))
    eta = f", about {job['eta_seconds']} s left" if job.get("eta_seconds") else ""
    attempt = f", attempt {job['attempt']}" if job["attempt"] > 1 else ""
    head = Text(f"{mark} {job['kind']} {job['state']}{attempt}{eta}", style=style)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
    for step in job["steps"]:
        table.add_row(*_row(step))
    foot = [Text(clean(reason(job)[2:]), style="red")] if job.get("error") else []
    return Group(head, table, *foot)


def _seconds(step: dict[str, Any]) -> str:
    if not step.get("started_at") or not step.get("ended_at"):
        return ""
    taken = datetime.fromisoformat(step["ended_at"]) - datetime.fromisoformat(step["started_at"])
    return f"{taken.total_seconds():.1f} s"


def _row(step: dict[str, Any]) -> tuple[RenderableType, ...]:
    mark, style = _MARKS.get(step["state"], ("?", ""))
    percent = step.get("percent")
    bar: RenderableType = Text("")
    if step["state"] == "running":
        pulse = percent is None
        bar = ProgressBar(total=100, completed=percent or 0, width=24, pulse=pulse)
    error = step.get("error") or {}
    messages = {"failed": error.get("message"), "running": step.get("message"), "succeeded": _seconds(step)}
    message = messages.get(step["state"])
    number = "" if percent is None or step["state"] != "running" else f"{percent:.0f} %"
    return (
        Text(f"  {mark}", style=style),
        Text(clean(step["title"])),
        bar,
        Text(number),
        Text(clean(message or ""), style="dim"),
    )
