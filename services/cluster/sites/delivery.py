"""How a model's files reach the pods of a cluster: whether pods reach us, and what storage there is, decides.

pods reach us, the cluster has storage     claim: a Job fetches the files once, and every worker reads them
pods reach us, storage serves one node     claim on a cluster of one node; on larger ones fetch, so that workers may
                                           be on any node, as long as a node's disk holds the files
pods reach us, no storage                  fetch: each worker, to its node's disk
pods do not reach us                       push: we send the files through the API server into a claim

A worker of pods on several nodes reads them on each: it needs storage that several nodes can read, or fetches.
"""

import re

from services.cluster.runtimes.containers import Claim
from services.cluster.sites.base import DeliveryPlan
from shared.contracts.clusters import ClusterInspection, NodeFacts, StorageClassFacts
from shared.contracts.models import Manifest
from shared.jobs.outcomes import Permanent

# No cluster says which of its classes can be read by several nodes; these provisioners' can
_SHARED = re.compile(
    r"nfs|cephfs|gluster|lustre|beegfs|weka|quobyte|efs\.csi\.aws|fsx\.csi\.aws|file\.csi\.azure|filestore\.csi"
    r"|azure-file|spectrumscale|longhorn|portworx|juicefs|moosefs"
)
_SPARE = 128 * 1024**2  # bytes, beside a tenth of the model, for the file system's own
_FILLED_DISK = 0.8  # of a node's disk for pods that a model may take


def choose(
    manifest: Manifest, inspection: ClusterInspection, url: str | None, unreached: str | None, *, spans: bool = False
) -> DeliveryPlan:
    """`url` is where pods ask for the files, `unreached` why they do not reach it; `spans`: a worker is on several nodes.

    Raises Permanent (`model_unreachable`).
    """
    storage = _class_of(inspection)
    if spans and storage is not None and not _is_shared(storage):
        storage = None
    if url is not None and unreached is None:
        if storage is None or (not _is_shared(storage) and _suits_fetching(manifest, inspection.nodes)):
            return DeliveryPlan(mode="fetch", digest=manifest.digest, size_bytes=manifest.size, url=url)
        return DeliveryPlan(
            mode="claim", digest=manifest.digest, size_bytes=manifest.size, url=url, claim=_claim(manifest, storage)
        )
    if storage is None:
        why = unreached or "no address at which pods reach this installation is set"
        kind = "storage class that several nodes can read," if spans else "storage class"
        raise Permanent(
            "model_unreachable",
            f"The cluster cannot fetch the model ({why}), and has no {kind} for a volume to send it to.",
        )
    return DeliveryPlan(mode="push", digest=manifest.digest, size_bytes=manifest.size, claim=_claim(manifest, storage))


def in_words(plan: DeliveryPlan, url: str | None, unreached: str | None) -> str:
    match plan.mode:
        case "fetch":
            return f"Pods reach {url}: each worker fetches the model by itself."
        case "claim":
            return f"Pods reach {url}: the model is fetched into a volume that the workers read."
        case "push" if url is None:
            return "No address at which pods reach us is set: the model is sent through the API server."
        case _:
            return f"Pods do not reach {url} ({unreached}): the model is sent through the API server."


def _class_of(inspection: ClusterInspection) -> StorageClassFacts | None:
    """One that several nodes can read, else the default, else the first by its name."""
    known = sorted(inspection.storage_classes, key=lambda one: (not _is_shared(one), not one.default, one.name))
    return known[0] if known else None


def _is_shared(storage: StorageClassFacts) -> bool:
    return _SHARED.search(storage.provisioner.lower()) is not None


def _suits_fetching(manifest: Manifest, nodes: list[NodeFacts]) -> bool:
    usable = [node for node in nodes if node.ready and node.schedulable]
    room = min((node.storage_allocatable for node in usable), default=0)
    return len(usable) > 1 and manifest.size + _SPARE < _FILLED_DISK * room


def _claim(manifest: Manifest, storage: StorageClassFacts) -> Claim:
    return Claim(size_bytes=int(manifest.size * 1.1) + _SPARE, storage_class=storage.name, shared=_is_shared(storage))
