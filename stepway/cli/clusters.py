"""`stepway clusters`: where models run, and the upkeep of it. Registering one is `stepway wizard run cluster_onboarding`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.nouns import Detach, Ref, Yes, add_list, add_show, finish
from stepway.cli.output import Column, size
from stepway.cli.problems import Usage
from stepway.cli.resolve import CLUSTER, find_id
from stepway.cli.terminal import confirm_change

app = group("clusters", "Clusters: where models run. `stepway wizard run cluster_onboarding` registers one.")


def _facts(cluster: dict[str, Any]) -> dict[str, Any]:
    return cluster.get("facts") or {}


def _nodes(cluster: dict[str, Any]) -> int | None:
    facts = _facts(cluster)
    return facts.get("node_count") or len(facts.get("nodes", [])) or None


def _memory(cluster: dict[str, Any]) -> str:
    """Free on this machine, allocatable on a registered cluster."""
    facts = _facts(cluster)
    if facts.get("totals"):
        return size(facts["totals"].get("memory"))
    found = [node["memory_available_bytes"] for node in facts.get("nodes", []) if node.get("memory_available_bytes")]
    return size(sum(found)) if found else "-"


COLUMNS = [
    Column("name", "name"), Column("kind", "kind"), Column("state", "state"), Column("nodes", _nodes),
    Column("memory", _memory), Column("reason", "reason"), Column("id", "id"),
]  # fmt: skip
ORPHANS = [
    Column("endpoint", "endpoint_id"), Column("created", "created_at"), Column("job", "job"),
    Column("objects", lambda orphan: ", ".join(orphan["objects"])),
]  # fmt: skip

add_list(app, CLUSTER, COLUMNS)
add_show(app, CLUSTER)


@command(app, "delete")
def delete(
    cli: Cli,
    ref: Ref,
    force: Annotated[
        bool, typer.Option("--force", help="It is gone for good: forget it and its endpoints, without asking it.")
    ] = False,
    yes: Yes = False,
    detach: Detach = False,
) -> None:
    """Delete a cluster: all that is ours is removed from it, then it is forgotten."""
    found = find_id(cli.client, CLUSTER, ref)
    what = f"Forget the cluster {ref} with all its endpoints?" if force else f"Delete the cluster {ref}?"
    confirm_change(cli.out, what, sure=yes)
    job = cli.client.delete(f"/clusters/{found}", force="true" if force else None)
    finish(cli, job, f"The cluster {ref} is {'forgotten' if force else 'deleted'}.", detach=detach)


@command(app, "inspect")
def inspect(cli: Cli, ref: Ref, detach: Detach = False) -> None:
    """Look at a cluster's version, nodes and classes anew."""
    found = find_id(cli.client, CLUSTER, ref)
    finish(cli, cli.client.post(f"/clusters/{found}/inspect"), f"The cluster {ref} is inspected.", detach=detach)


@command(app, "credentials")
def credentials(
    cli: Cli,
    ref: Ref,
    file: Annotated[Path, typer.Argument(metavar="KUBECONFIG", help="The file with the new credentials.")],
    insecure: Annotated[
        bool, typer.Option("--allow-insecure-tls", help="The server's certificate is not to be verified.")
    ] = False,
    detach: Detach = False,
) -> None:
    """Give a cluster new credentials. They are tried first; until then, and if they do not do, the old ones stay."""
    found = find_id(cli.client, CLUSTER, ref)
    try:
        content = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Usage(f"{file} cannot be read.") from error
    body = {"configuration_file": content, "allow_insecure_tls": insecure}
    job = cli.client.put(f"/clusters/{found}/credentials", body)
    finish(cli, job, f"The cluster {ref} has new credentials.", detach=detach)


@command(app, "orphans")
def orphans(
    cli: Cli,
    ref: Ref,
    remove: Annotated[bool, typer.Option("--remove", help="Take them away.")] = False,
    yes: Yes = False,
    detach: Detach = False,
) -> None:
    """List what a cluster has of endpoints that are not known here (any more)."""
    path = f"/clusters/{find_id(cli.client, CLUSTER, ref)}/orphans"
    if not remove:
        cli.show_list(cli.client.items(path), ORPHANS)
        return
    confirm_change(cli.out, f"Remove the orphans of {ref}?", sure=yes)
    finish(cli, cli.client.delete(path), f"The orphans of {ref} are removed.", detach=detach)
