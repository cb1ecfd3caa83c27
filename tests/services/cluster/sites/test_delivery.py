"""How a model's files reach pods follows from whether pods reach us, and from what storage and nodes there are."""

import pytest

from services.cluster.sites.delivery import choose, in_words
from shared.clock import now
from shared.contracts.clusters import ClusterInspection, NodeFacts, ServerVersion, StorageClassFacts
from shared.contracts.models import Manifest, ModelFile
from shared.jobs.outcomes import Permanent

GIB = 1024**3
URL = "https://stepway.example/endpoints/e/model-files"
MANIFEST = Manifest(digest="a" * 64, files=[ModelFile(path="m.gguf", size=10 * GIB, sha256="b" * 64)])
ONE_NODE = StorageClassFacts(name="disk", provisioner="ebs.csi.aws.com", default=True)
MANY_NODES = StorageClassFacts(name="share", provisioner="efs.csi.aws.com")


def cluster(*storage: StorageClassFacts, nodes: int = 1, disk: int = 100 * GIB) -> ClusterInspection:
    found = [
        NodeFacts(name=f"n{number}", ready=True, schedulable=True, storage_allocatable=disk) for number in range(nodes)
    ]
    version = ServerVersion(version="v1.34.4", major=1, minor=34)
    return ClusterInspection(version=version, uid="u", nodes=found, storage_classes=list(storage), inspected_at=now())


@pytest.mark.parametrize(
    ("inspection", "unreached", "mode", "storage"),
    [
        (cluster(ONE_NODE, nodes=3, disk=11 * GIB), None, "fetch", None),
        (cluster(ONE_NODE, MANY_NODES, nodes=3), None, "claim", "share"),
        (cluster(ONE_NODE, MANY_NODES, nodes=3), "no route", "push", "share"),
    ],
)
def test_pods_on_several_nodes_share_a_claim_that_all_can_read_or_fetch(
    inspection: ClusterInspection, unreached: str | None, mode: str, storage: str | None
) -> None:
    plan = choose(MANIFEST, inspection, URL, unreached, spans=True)
    assert (plan.mode, plan.claim.storage_class if plan.claim else None) == (mode, storage)
    assert plan.size_bytes == MANIFEST.size


def test_pods_on_several_nodes_cannot_be_sent_a_model_that_one_node_would_keep() -> None:
    with pytest.raises(Permanent, match="no storage class that several nodes can read") as refused:
        choose(MANIFEST, cluster(ONE_NODE, nodes=3), URL, "no route", spans=True)
    assert refused.value.code == "model_unreachable"


@pytest.mark.parametrize(
    ("inspection", "unreached", "mode", "storage", "shared"),
    [
        (cluster(ONE_NODE), None, "claim", "disk", False),
        (cluster(ONE_NODE, MANY_NODES, nodes=3), None, "claim", "share", True),
        (cluster(ONE_NODE, nodes=3), None, "fetch", None, None),
        (cluster(ONE_NODE, nodes=3, disk=11 * GIB), None, "claim", "disk", False),
        (cluster(nodes=3), None, "fetch", None, None),
        (cluster(ONE_NODE), "no route", "push", "disk", False),
        (cluster(ONE_NODE, MANY_NODES), "no route", "push", "share", True),
    ],
    ids=["one node", "shared", "several nodes", "small disks", "no storage", "pushed", "pushed to a share"],
)
def test_the_way_of_the_bytes(
    inspection: ClusterInspection, unreached: str | None, mode: str, storage: str | None, shared: bool | None
) -> None:
    plan = choose(MANIFEST, inspection, URL, unreached)
    assert (plan.mode, plan.digest) == (mode, MANIFEST.digest)
    assert plan.url == (None if mode == "push" else URL)
    assert (plan.claim.storage_class if plan.claim else None) == storage
    assert (plan.claim.shared if plan.claim else None) == shared
    if plan.claim is not None:
        assert 10 * GIB < plan.claim.size_bytes < 12 * GIB


def test_without_an_address_the_bytes_are_pushed() -> None:
    plan = choose(MANIFEST, cluster(ONE_NODE), None, None)
    assert plan.mode == "push"
    assert in_words(plan, None, None).startswith("No address at which pods reach us is set")


def test_a_cluster_that_neither_reaches_us_nor_has_storage_is_refused() -> None:
    with pytest.raises(Permanent, match=r"cannot fetch the model \(no route\), and has no storage class") as refusal:
        choose(MANIFEST, cluster(), URL, "no route")
    assert refusal.value.code == "model_unreachable"
    with pytest.raises(Permanent, match="no address at which pods reach this installation is set"):
        choose(MANIFEST, cluster(), None, None)
