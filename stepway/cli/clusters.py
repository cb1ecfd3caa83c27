"""`stepway clusters`: where models run. Registering one is `stepway wizard run cluster_onboarding`."""

from typing import Any

from stepway.cli.command import group
from stepway.cli.nouns import add_delete, add_list, add_show
from stepway.cli.output import Column, size
from stepway.cli.resolve import CLUSTER

app = group("clusters", "Clusters: where models run. `stepway wizard run cluster_onboarding` registers one.")


def _nodes(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in (cluster.get("facts") or {}).get("nodes", []) if isinstance(one, dict)]


def _free(cluster: dict[str, Any]) -> str:
    found = [node["memory_available_bytes"] for node in _nodes(cluster) if node.get("memory_available_bytes")]
    return size(sum(found)) if found else "-"


COLUMNS = [
    Column("name", "name"), Column("kind", "kind"), Column("state", "state"),
    Column("nodes", lambda cluster: len(_nodes(cluster)) or None), Column("memory free", _free), Column("reason", "reason"),
    Column("id", "id"),
]  # fmt: skip

add_list(app, CLUSTER, COLUMNS)
add_show(app, CLUSTER)
add_delete(app, CLUSTER)
