"""Facts from config.json, in the field's many spellings: shape of the network, context, quantisation, cache."""

from typing import Any

from services.model.metadata.documents import first_integer, integer, mapping, text

CACHE_BYTES = 2  # of one number in a 16-bit cache
_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float8_e4m3fn": "FP8"}
_ENCODERS = frozenset(
    [
        "bert",
        "roberta",
        "xlm-roberta",
        "distilbert",
        "mpnet",
        "modernbert",
        "nomic_bert",
        "electra",
        "deberta",
        "deberta-v2",
    ]
)


def language_part(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of the language model: models that see or hear keep them one level down."""
    for name in ("text_config", "llm_config", "language_config", "thinker_config"):
        inner = mapping(config.get(name))
        if inner:
            # one more level: thinker_config.text_config
            return {**config, **inner, **mapping(inner.get("text_config"))}
    return config


def context_length(config: dict[str, Any], tokenizer: dict[str, Any]) -> int | None:
    found = first_integer(
        config, "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx"
    )
    # tokenizers without a limit say 10^30
    return found or integer(tokenizer.get("model_max_length"), top=10**9)


def layers(config: dict[str, Any]) -> int | None:
    return first_integer(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def hidden_size(config: dict[str, Any]) -> int | None:
    return first_integer(config, "hidden_size", "n_embd", "d_model", "dim")


def attention_heads(config: dict[str, Any]) -> int | None:
    return first_integer(config, "num_attention_heads", "n_head", "n_heads", "num_heads")


def kv_heads(config: dict[str, Any]) -> int | None:
    if config.get("multi_query") is True and "num_key_value_heads" not in config:
        return 1
    return first_integer(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or attention_heads(config)


def kv_bytes_per_token(config: dict[str, Any]) -> int | None:
    """K and V of every layer that keeps a cache; the compressed vector where attention is multi-head latent."""
    count, size, heads = _caching_layers(config), hidden_size(config), attention_heads(config)
    if count is None or str(config.get("model_type")) in _ENCODERS or config.get("is_encoder_decoder") is True:
        return None
    latent = integer(config.get("kv_lora_rank"))
    if latent is not None:
        return count * (latent + (integer(config.get("qk_rope_head_dim")) or 0)) * CACHE_BYTES
    head = first_integer(config, "head_dim") or (size // heads if size and heads else None)
    shared = kv_heads(config)
    return 2 * count * shared * head * CACHE_BYTES if head and shared else None


def quantization(config: dict[str, Any]) -> str | None:
    """By quantization_config, else the type of the weights."""
    settings = _quantization_settings(config)
    method = text(settings.get("quant_method") or settings.get("quant_algo"), 40)
    if method is None:
        name = config.get("torch_dtype") or config.get("dtype")
        return _TYPES.get(name.removeprefix("torch.")) if isinstance(name, str) else None
    bits = packed_bits(config)
    label = method.upper().replace("_", "-")
    return f"{label}-{bits}BIT" if bits and not any(letter.isdigit() for letter in label) else label


def packed_bits(config: dict[str, Any]) -> int | None:
    """Bits of one quantised weight, None without quantisation."""
    settings = _quantization_settings(config)
    if not settings:
        return None
    bits = integer(settings.get("bits") or settings.get("w_bit"), top=16)
    if bits is not None:
        return bits
    if settings.get("load_in_4bit") is True or settings.get("quant_method") == "mxfp4":
        return 4
    if settings.get("load_in_8bit") is True:
        return 8
    groups = mapping(settings.get("config_groups"))
    weights = (mapping(mapping(group).get("weights")) for group in list(groups.values())[:16])
    return next((found for item in weights if (found := integer(item.get("num_bits"), top=16)) is not None), None)


def _quantization_settings(config: dict[str, Any]) -> dict[str, Any]:
    return mapping(config.get("quantization_config")) or mapping(config.get("compression_config"))


def _caching_layers(config: dict[str, Any]) -> int | None:
    """Layers whose cache grows with the context: those of linear attention have a state of fixed size."""
    count = layers(config)
    kinds = config.get("layer_types")
    if count is None or not isinstance(kinds, list) or len(kinds) != count:
        return count
    return sum(isinstance(kind, str) and kind.endswith("attention") and "linear" not in kind for kind in kinds)
