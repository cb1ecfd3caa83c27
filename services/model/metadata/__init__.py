"""What a model's files say of themselves, read without running or trusting any of it.

`reader.read` puts together what `gguf`, `safetensors`, `configuration` and `card` find; `modality` says what the model
is for. A header that is broken or hostile counts as one that says nothing there; `integrity` says what an import refuses.
"""

from services.model.metadata.reader import read

__all__ = ["read"]
