"""The sources there are. A new one is a file in this folder and a line here."""

from services.model.sources.base import ModelSource
from services.model.sources.disk import Disk
from services.model.sources.hugging_face import HuggingFace
from services.model.sources.url import Url
from shared.contracts.models import Source

SOURCES: tuple[ModelSource, ...] = (HuggingFace(), Url(), Disk())
_BY_KIND = {source.kind: source for source in SOURCES}


def source_for(kind: Source) -> ModelSource:
    return _BY_KIND[kind]
