"""Which files of a repository are the model."""

import pytest

from services.model.sources.hub.choice import choose, quantization_of
from shared.jobs.outcomes import Permanent
from shared.security.uris import parse_hub_uri

TRANSFORMERS = ["README.md", "config.json", "tokenizer.json", "tokenizer.model", "generation_config.json"]
CODE = ["modeling_x.py", "run.sh", "handler.py", "notebook.ipynb", ".gitattributes", "libx.so", "image.png"]
GGUF = [f"m-{kind}.gguf" for kind in ("Q2_K", "Q4_0", "Q4_K_M", "Q5_K_M", "Q8_0", "f16")]


def _choose(paths: list[str], uri: str = "org/m", engine: str | None = None) -> list[str]:
    return choose(paths, parse_hub_uri(uri), engine)


def test_safetensors_win_over_other_formats_and_code_never_comes() -> None:
    weights = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
    others = [
        "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "model.ckpt",
        "original/consolidated.00.pth", "onnx/model.onnx", "onnx/config.json", "consolidated.safetensors",
        "rust_model.ot", "model.fp16.safetensors",
    ]  # fmt: skip
    paths = [*TRANSFORMERS, *weights, "model.safetensors", *others, *CODE]
    assert _choose(paths) == sorted([*TRANSFORMERS, *weights, "model.safetensors"])


def test_pickles_come_when_there_is_nothing_else() -> None:
    assert _choose([*TRANSFORMERS, "pytorch_model.bin", "tf_model.h5", *CODE]) == sorted(
        [*TRANSFORMERS, "pytorch_model.bin"]
    )


def test_a_pipeline_keeps_its_folders_and_leaves_the_single_file() -> None:
    parts = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json"]
    extra = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "sd.safetensors"]
    assert _choose([*parts, *extra]) == sorted(parts)


def test_one_quantisation_is_chosen_by_preference_or_by_name() -> None:
    card = ["README.md"]
    assert _choose([*GGUF, *card]) == ["README.md", "m-Q4_K_M.gguf"]
    assert _choose([path for path in GGUF if "K_M" not in path]) == ["m-Q4_0.gguf"]
    assert _choose(GGUF, "org/m:Q5_K_M") == ["m-Q5_K_M.gguf"]
    assert _choose(GGUF, "org/m:f16") == ["m-f16.gguf"]
    assert _choose(GGUF, "org/m/m-Q8_0.gguf") == ["m-Q8_0.gguf"]


def test_the_engine_decides_where_both_formats_are() -> None:
    both = ["config.json", "model.safetensors", *GGUF]
    assert _choose(both) == ["config.json", "model.safetensors"]
    assert _choose(both, engine="vllm") == ["config.json", "model.safetensors"]
    assert _choose(both, engine="llama_cpp") == ["config.json", "m-Q4_K_M.gguf"]


def test_a_split_model_comes_whole_or_not_at_all() -> None:
    parts = [f"q/m-Q4_K_M-{number:05d}-of-00003.gguf" for number in (1, 2, 3)]
    assert _choose(parts) == parts
    assert _choose(parts, f"org/m/{parts[1]}") == parts
    with pytest.raises(Permanent) as refused:
        _choose(parts[:2])
    assert refused.value.code == "incomplete_model"


def test_a_projector_comes_with_the_model() -> None:
    assert _choose([*GGUF, "mmproj-BF16.gguf", "mmproj-F16.gguf", "m-imatrix.gguf"]) == [
        "m-Q4_K_M.gguf",
        "mmproj-F16.gguf",
    ]


@pytest.mark.parametrize(
    ("paths", "uri", "code"),
    [
        (GGUF, "org/m:IQ1_S", "quantization_not_found"),
        (GGUF, "org/m/other.gguf", "file_not_found"),
        (["README.md", "run.py"], "org/m", "no_model_files"),
        (["mmproj-F16.gguf"], "org/m", "no_model_files"),
        ([], "org/m", "no_model_files"),
    ],
)
def test_what_is_not_there_is_named(paths: list[str], uri: str, code: str) -> None:
    with pytest.raises(Permanent) as refused:
        _choose(paths, uri)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("model-UD-IQ2_XXS-00001-of-00004.gguf", "UD-IQ2_XXS"),
        ("Qwen3-0.6B-BF16.gguf", "BF16"),
        ("BF16/x-fp16.gguf", "F16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("ggml-model-q8_0.gguf", "Q8_0"),
        ("plain.gguf", None),
    ],
)
def test_quantisations_are_read_from_names(name: str, kind: str | None) -> None:
    assert quantization_of(name) == kind
