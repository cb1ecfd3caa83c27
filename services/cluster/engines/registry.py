"""The engines there are, in the order in which they are tried."""

from collections.abc import Sequence

from services.cluster.engines.base import Engine, Unsupported
from services.cluster.engines.llama_cpp import LlamaCpp
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
