"""GPUs of a node: counted from what the node offers, named by the labels that vendors and clouds put on nodes."""

import re
from collections.abc import Mapping

from services.cluster.runtimes.kubernetes.quantities import whole
from shared.contracts.clusters import NodeGpu

_RESOURCE = re.compile(
    r"nvidia\.com/(?:gpu(?:\.shared)?|mig-[a-z0-9.+-]+)|amd\.com/gpu|gpu\.intel\.com/(?:i915|xe)"
    r"|habana\.ai/gaudi|google\.com/tpu|aws\.amazon\.com/neuron"
)
_MIG_MEMORY = re.compile(r"nvidia\.com/mig-\d+g\.(\d{1,4})gb")
_PRODUCTS: dict[str, tuple[str, ...]] = {
    "nvidia.com": (
        "nvidia.com/gpu.product",
        "cloud.google.com/gke-accelerator",
        "karpenter.k8s.aws/instance-gpu-name",
        "k8s.amazonaws.com/accelerator",
    ),
    "amd.com": ("amd.com/gpu.product-name", "beta.amd.com/gpu.product-name"),
    "gpu.intel.com": ("gpu.intel.com/product",),
    "habana.ai": ("habana.ai/product",),
    "google.com": ("cloud.google.com/gke-tpu-accelerator",),
    "aws.amazon.com": ("karpenter.k8s.aws/instance-accelerator-name",),
}
_MEBIBYTE_LABELS: dict[str, tuple[str, ...]] = {
    "nvidia.com": ("nvidia.com/gpu.memory", "karpenter.k8s.aws/instance-gpu-memory"),
}
_QUANTITY_LABELS: dict[str, tuple[str, ...]] = {"amd.com": ("amd.com/gpu.vram", "beta.amd.com/gpu.vram")}


def gpus_of(allocatable: Mapping[str, object], labels: Mapping[str, str]) -> list[NodeGpu]:
    """Kinds of which the node offers at least one, by resource name."""
    found = []
    for resource in sorted(name for name in allocatable if _RESOURCE.fullmatch(name) and len(name) <= 100):
        count = min(whole(allocatable[resource]), 1024)  # per node; no machine has more
        if count > 0:
            vendor = resource.partition("/")[0]
            memory = _memory(resource, vendor, labels)
            found.append(NodeGpu(resource=resource, count=count, product=_product(vendor, labels), memory=memory))
    return found


def _product(vendor: str, labels: Mapping[str, str]) -> str | None:
    return next((labels[name][:63] for name in _PRODUCTS.get(vendor, ()) if labels.get(name)), None)


def _memory(resource: str, vendor: str, labels: Mapping[str, str]) -> int | None:
    """Bytes of one GPU."""
    slice_of_one = _MIG_MEMORY.match(resource)
    if slice_of_one:
        return int(slice_of_one[1]) << 30
    for name in _MEBIBYTE_LABELS.get(vendor, ()):
        if whole(labels.get(name)):
            return whole(labels[name]) << 20
    for name in _QUANTITY_LABELS.get(vendor, ()):
        if whole(_binary(labels.get(name))):
            return whole(_binary(labels[name]))
    return None


def _binary(text: str | None) -> str | None:
    """`64G` as AMD's labeller writes it means GiB."""
    return f"{text}i" if text and text[-1] in "MGT" else text


def product_labels(resource: str) -> tuple[str, ...]:
    """The labels of nodes that may name the product behind a GPU resource."""
    return _PRODUCTS.get(resource.partition("/")[0], ())
