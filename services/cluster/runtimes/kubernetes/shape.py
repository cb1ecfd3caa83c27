"""What a worker is made of, the one place that knows: a pod of a Deployment, or a group of pods, one each of several sets.

A group has one StatefulSet per rank, and a pod's number in its set is the number of its worker. So scaling the sets alike
adds and removes whole groups. When the template changes, each set replaces its pod of the last worker and goes on when that
is ready, which it is once all ranks have done so and the worker serves: worker after worker, without anybody to lead them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.cluster.runtimes.kubernetes import names

Json = dict[str, Any]

SETS = ("Deployment", "StatefulSet")  # kinds that make pods of workers


@dataclass(frozen=True, slots=True)
class Worker:
    """`pods` are those that there are, the leader first; `name` is the leader's, whether it is there or not."""

    name: str
    pods: list[Json]

    @property
    def leader(self) -> Json | None:
        return self.pods[0] if self.pods and rank_of(self.pods[0]) == 0 else None


def is_set(manifest: Json) -> bool:
    return manifest["kind"] in SETS


def set_name(base: str, rank: int) -> str:
    """The leaders' set has the name of the endpoint, as its Deployment would."""
    return f"{base}-r{rank}" if rank else base


def hosts(base: str) -> str:
    """The Service that gives each pod of a group a host name."""
    return f"{base}-pods"


def rank_of(pod: Json) -> int:
    """0 also for a pod that is a worker by itself."""
    return _number((pod["metadata"].get("labels") or {}).get(names.RANK))


def workers(pods: Sequence[Json], base: str) -> list[Worker]:
    """In the order in which they were made, or in that of their numbers."""
    groups: dict[int, list[Json]] = {}
    alone = []
    for pod in pods:
        if names.RANK in (pod["metadata"].get("labels") or {}):
            groups.setdefault(_number(pod["metadata"]["name"].rpartition("-")[2]), []).append(pod)
        else:
            alone.append(pod)
    alone.sort(key=lambda pod: (str(pod["metadata"].get("creationTimestamp")), pod["metadata"]["name"]))
    return [Worker(pod["metadata"]["name"], [pod]) for pod in alone] + [
        Worker(f"{base}-{number}", sorted(group, key=rank_of)) for number, group in sorted(groups.items())
    ]


def _number(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 6 else 0
