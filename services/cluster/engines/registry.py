"""The engines there are, in the order in which they are tried: as processes of this machine, and as pods."""

from collections.abc import Sequence

from services.cluster.engines.base import ContainerEngine, Engine, Unsupported
from services.cluster.engines.images import Images
from services.cluster.engines.litellm import LiteLlm
from services.cluster.engines.llama_cpp import LlamaCpp
from services.cluster.engines.llama_cpp_container import LlamaCppContainer
from services.cluster.engines.vllm import Vllm
from shared.contracts.clusters import NodeFacts
from shared.contracts.models import ModelFile, ModelMetadata

ENGINES: tuple[Engine, ...] = (LlamaCpp(),)


def engine_for(files: Sequence[ModelFile], metadata: ModelMetadata) -> Engine:
    """The first engine that can run the model. Raises Unsupported with every engine's reason."""
    reasons = []
    for engine in ENGINES:
        reason = engine.supports(files, metadata)
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise Unsupported("No engine can run this model. " + " ".join(reasons))


def container_engines(images: Images) -> tuple[ContainerEngine, ...]:
    return (LlamaCppContainer(images), Vllm(images))


def container_engine_for(
    files: Sequence[ModelFile], metadata: ModelMetadata, nodes: Sequence[NodeFacts], images: Images
) -> ContainerEngine:
    """The first engine that can run the model on a cluster of these nodes. Raises Unsupported with every engine's reason."""
    reasons = []
    for engine in container_engines(images):
        reason = engine.lacks(files, metadata, nodes)
        if reason is None:
            return engine
        reasons.append(f"{engine.name}: {reason}")
    raise Unsupported("No engine can run this model on the cluster. " + " ".join(reasons))


def cloud_engine(images: Images) -> LiteLlm:
    """The engine for models that somebody else serves."""
    return LiteLlm(images)
