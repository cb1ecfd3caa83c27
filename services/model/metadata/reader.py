"""Puts together what the files of one model say. `read` is all that others need."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.model.metadata import configuration, modality
from services.model.metadata.card import Card, languages, read_card
from services.model.metadata.documents import integer, load_json, text
from services.model.metadata.gguf import BadHeader, GgufHeader, read_gguf
from services.model.metadata.safetensors import read_safetensors
from shared.contracts.models import ModelMetadata

_FORMATS = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".bin": "pytorch",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".ckpt": "pytorch",
    ".onnx": "onnx",
    ".keras": "keras",
    ".h5": "keras",
}
_MAX_HEADERS = 2000  # weight files whose headers are read


def read(files: list[tuple[str, Path]]) -> ModelMetadata:
    """What the files (path in the model, path on this machine) say. Blocks, for a second at most; never raises for
    what a file holds, and runs nothing of it.
    """
    named = dict(files)
    kind = _format(named)
    config = load_json(named["config.json"]) if "config.json" in named else {}
    tokenizer = load_json(named["tokenizer_config.json"]) if "tokenizer_config.json" in named else {}
    card = read_card(named.get("README.md"))
    found = _of_gguf(named, card) if kind == "gguf" else _of_configuration(named, config, tokenizer, kind, card)
    found.format = kind
    found.license = found.license or card.license
    found.languages = found.languages or card.languages
    found.description = found.description or card.description
    return found


def _format(named: dict[str, Path]) -> str:
    endings = {_FORMATS.get(Path(path).suffix.lower()) for path in named}
    return next((kind for kind in ("gguf", "safetensors", "pytorch", "onnx", "keras") if kind in endings), "other")


def _of_gguf(named: dict[str, Path], card: Card) -> ModelMetadata:
    paths = [(path, place) for path, place in sorted(named.items()) if path.lower().endswith(".gguf")]
    headers = [header for _, place in paths[:_MAX_HEADERS] if (header := _gguf_header(place)) is not None]
    # the projector of a model that sees is a file of its own, with the architecture `clip`
    parts = [header for header in headers if header.architecture != "clip"]
    main = next((header for header in parts if header.architecture), None)
    found = ModelMetadata(weights_bytes=_size(place for _, place in paths))
    if main is None:
        return found
    name = main.architecture or ""
    weights: Counter[str] = Counter()
    for part in parts:
        weights.update(part.weights)
    facts = _GgufFacts(main, name)
    found.architecture = text(name, 64)
    found.parameters = weights.total() or None
    found.quantization = GgufHeader(values=main.values, weights=weights).quantization
    found.context_length = facts.number("context_length")
    found.layers = facts.number("block_count")
    found.hidden_size = facts.number("embedding_length")
    found.attention_heads = facts.largest("attention.head_count")
    found.kv_heads = facts.largest("attention.head_count_kv") or found.attention_heads
    found.vocabulary_size = facts.vocabulary()
    found.chat_template = bool(main.values.get("tokenizer.chat_template"))
    found.license = text(main.values.get("general.license"))
    found.languages = languages(main.values.get("general.languages"))
    found.description = text(main.values.get("general.description"), 500)
    pooled = facts.number("pooling_type") is not None
    kind = modality.of_tag(card.pipeline_tag) or modality.of_gguf(
        name, pooled=pooled, projector=len(parts) < len(headers)
    )
    found.modality = [kind]
    found.kv_bytes_per_token = None if kind == "embedding" else facts.kv_bytes_per_token(found)
    return found


def _of_configuration(
    named: dict[str, Path], config: dict[str, Any], tokenizer: dict[str, Any], kind: str, card: Card
) -> ModelMetadata:
    weights = [place for path, place in sorted(named.items()) if _FORMATS.get(Path(path).suffix.lower()) == kind]
    language = configuration.language_part(config)
    by_type: Counter[str] = Counter()
    if kind == "safetensors":
        bits = configuration.packed_bits(config)
        for place in weights[:_MAX_HEADERS]:
            by_type.update(read_safetensors(place, bits))
    main_type = max(by_type, key=lambda name: by_type[name]) if by_type else None
    pipeline = load_json(named["model_index.json"]) if "model_index.json" in named else {}
    what = modality.of_tag(card.pipeline_tag) or modality.of_configuration(config)
    if what is None or (what == "llm" and "modules.json" in named):
        # sentence-transformers and diffusers each have a file of their own
        what = "embedding" if "modules.json" in named else "image" if pipeline else what
    return ModelMetadata(
        architecture=text(config.get("model_type") or pipeline.get("_class_name"), 64),
        parameters=by_type.total() or None,
        context_length=configuration.context_length(language, tokenizer),
        quantization=configuration.quantization(language) or configuration.quantization(config) or main_type,
        modality=[what] if what else [],
        vocabulary_size=integer(language.get("vocab_size")),
        layers=configuration.layers(language),
        hidden_size=configuration.hidden_size(language),
        attention_heads=configuration.attention_heads(language),
        kv_heads=configuration.kv_heads(language),
        weights_bytes=_size(weights) if weights else None,
        kv_bytes_per_token=None if what == "embedding" else configuration.kv_bytes_per_token(language),
        chat_template=_has_template(named, tokenizer),
    )


class _GgufFacts:
    """The keys of one architecture, which are prefixed with its name."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        self._header = header
        self._prefix = architecture

    def number(self, name: str) -> int | None:
        return integer(self._header.values.get(f"{self._prefix}.{name}"))

    def each(self, name: str) -> list[int]:
        """A value that some models give once and others for each layer."""
        value = self._header.values.get(f"{self._prefix}.{name}")
        items = value if isinstance(value, list) else [value]
        return [found for item in items if (found := integer(item)) is not None]

    def largest(self, name: str) -> int | None:
        return max(self.each(name), default=None)

    def vocabulary(self) -> int | None:
        return self.number("vocab_size") or integer(self._header.lengths.get("tokenizer.ggml.tokens"))

    def kv_bytes_per_token(self, known: ModelMetadata) -> int | None:
        """As `configuration.kv_bytes_per_token`, with a key length and a value length."""
        if not known.layers:
            return None
        latent = self.number("attention.kv_lora_rank")
        if latent is not None and self.number("attention.key_length_mla") is not None:
            return known.layers * (latent + (self.number("rope.dimension_count") or 0)) * configuration.CACHE_BYTES
        if not known.hidden_size or not known.attention_heads or not known.kv_heads:
            return None
        head = known.hidden_size // known.attention_heads
        width = (self.number("attention.key_length") or head) + (self.number("attention.value_length") or head)
        heads = self.each("attention.head_count_kv")
        # one number for all layers, or one for each
        total = sum(heads) if len(heads) > 1 else known.kv_heads * known.layers
        return total * width * configuration.CACHE_BYTES


def _gguf_header(place: Path) -> GgufHeader | None:
    try:
        return read_gguf(place)
    except (BadHeader, OSError):
        return None


def _size(places: Iterable[Path]) -> int:
    return sum(place.stat().st_size for place in places)


def _has_template(named: dict[str, Path], tokenizer: dict[str, Any]) -> bool:
    return bool(tokenizer.get("chat_template")) or "chat_template.jinja" in named or "chat_template.json" in named
