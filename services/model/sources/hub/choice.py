"""Which files of a repository make the model that an engine loads. Pure: names in, names out.

Weights in one format only (safetensors, else one GGUF quantisation, else what there is), with configurations and
tokenizers; never code, and no second copy of the same weights.
"""

import re
from collections import defaultdict
from pathlib import PurePosixPath

from shared.jobs.outcomes import Permanent
from shared.security.uris import HubUri

PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q4_1", "Q5_K_M", "Q5_K_S", "Q8_0", "Q6_K", "Q3_K_M", "F16", "BF16", "F32")
_QUANTIZATION = re.compile(
    r"(?:^|[-_./])((?:UD-)?(?:IQ|TQ|Q)\d[A-Z0-9_]*|MXFP4[A-Z0-9_]*|BF16|FP16|F16|FP32|F32)(?=[-.]|$)",
    re.ASCII | re.IGNORECASE,
)
_SPLIT = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE | re.ASCII)
_TORCH = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_WEIGHTS = (
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".tflite",
    ".ot",
    ".mlmodel",
    ".keras",
    ".npz",
    ".nemo",
)
_CONFIGURATION = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".vocab", ".spm", ".bpe", ".yaml", ".yml")
_OTHER_EXPORTS = ("onnx", "openvino", "original", "coreml", "tflite", "flax")
_PROSE = re.compile(r"(?:readme|licen[cs]e|notice|use_policy)[^/]*", re.IGNORECASE)


def choose(paths: list[str], wanted: HubUri, engine: str | None) -> list[str]:
    """The paths to bring, sorted. Raises `Permanent` when what was asked for is not there or is incomplete."""
    gguf = [path for path in paths if path.lower().endswith(".gguf") and "imatrix" not in path.lower()]
    if wanted.file is not None:
        if wanted.file not in paths:
            raise Permanent("file_not_found", "The repository has no file of that name at this revision.")
        return sorted({*_whole(wanted.file, paths), *_prose(paths)})
    safetensors = [path for path in paths if path.lower().endswith(".safetensors")]
    if wanted.quantization is not None:
        return sorted({*_quantized(gguf, wanted.quantization, paths), *_prose(paths)})
    if gguf and (engine == "llama_cpp" or not safetensors):
        return sorted({*_quantized(gguf, None, paths), *_prose(paths)})
    chosen = [path for path in paths if _is_configuration(path) or path.lower().endswith((".safetensors", *_TORCH))]
    if not any(path.lower().endswith((".safetensors", *_TORCH)) for path in chosen):
        weights = [path for path in paths if path.lower().endswith(_OTHER_WEIGHTS)]
        if not weights:
            raise Permanent("no_model_files", "The repository has no weights in a format that is known here.")
        return sorted({*chosen, *weights})
    return sorted(_without_copies(chosen))


def quantization_of(path: str) -> str | None:
    """The quantisation that a GGUF file's name tells, in capitals; None if it tells none."""
    split = _SPLIT.match(path)
    stem = split["stem"] if split else path.removesuffix(".gguf").removesuffix(".GGUF")
    found = [match.upper() for match in _QUANTIZATION.findall(stem)]
    return {"FP16": "F16", "FP32": "F32"}.get(found[-1], found[-1]) if found else None


def _quantized(gguf: list[str], wanted: str | None, paths: list[str]) -> list[str]:
    projectors = [path for path in gguf if PurePosixPath(path).name.lower().startswith("mmproj")]
    by_kind: dict[str, list[str]] = defaultdict(list)
    for path in sorted(gguf):
        if path not in projectors:
            by_kind[quantization_of(path) or ""].append(path)
    if wanted is not None and wanted not in by_kind:
        there = ", ".join(sorted(filter(None, by_kind)))[:300] or "none"
        raise Permanent("quantization_not_found", f"There is no {wanted} here. There are: {there}.")
    if not by_kind:
        raise Permanent("no_model_files", "The repository has no GGUF file with a model.")
    order = [kind for kind in PREFERRED if kind in by_kind] + sorted(by_kind)
    first = by_kind[wanted or order[0]][0]
    return [*_whole(first, paths), *_projector(projectors)]


def _projector(projectors: list[str]) -> list[str]:
    """The part that turns pictures or sound into tokens, at half precision if there is a choice."""
    ranked = sorted(projectors, key=lambda path: (quantization_of(path) != "F16", len(path), path))
    return ranked[:1]


def _whole(path: str, paths: list[str]) -> list[str]:
    """Every part of a split GGUF file, or the file alone."""
    split = _SPLIT.match(path)
    if not split:
        return [path]
    count = int(split["count"])
    if not 1 <= count <= 999:
        raise Permanent("incomplete_model", "The number of parts in the file's name makes no sense.")
    parts = [f"{split['stem']}-{part:05d}-of-{count:05d}.gguf" for part in range(1, count + 1)]
    missing = [part for part in parts if part not in paths]
    if missing:
        raise Permanent("incomplete_model", f"{len(missing)} of the {count} parts of the model are missing.")
    return parts


def _prose(paths: list[str]) -> list[str]:
    """What goes with a GGUF file, which holds its own configuration: the card, the licence, and `config.json`."""
    return [path for path in paths if "/" not in path and (_PROSE.fullmatch(path) or path == "config.json")]


def _is_configuration(path: str) -> bool:
    name = PurePosixPath(path).name
    if name.startswith(".") or path.lower().startswith(tuple(f"{folder}/" for folder in _OTHER_EXPORTS)):
        return False
    return name.lower().endswith(_CONFIGURATION) or ("/" not in path and _PROSE.fullmatch(name) is not None)


def _without_copies(chosen: list[str]) -> list[str]:
    """Leave out weights that are there in another format or precision, folder by folder."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for path in chosen:
        by_folder[path.rpartition("/")[0]].append(path)
    kept: list[str] = []
    at_top = any(path.endswith(".safetensors") for path in by_folder[""])
    pipeline = "model_index.json" in by_folder[""]
    for folder, inside in by_folder.items():
        if folder.partition("/")[0] in _OTHER_EXPORTS:
            continue
        names = set(inside)
        safe = [path for path in inside if path.endswith(".safetensors")]
        plain = [path for path in safe if not PurePosixPath(path).name.startswith("consolidated")]
        for path in inside:
            name = PurePosixPath(path).name
            if name.lower().endswith(_TORCH) and (safe or (at_top and folder)):
                continue
            if name.endswith((".bin.index.json", ".pt.index.json")) and safe:
                continue
            if name.startswith("consolidated") and name.endswith(".safetensors") and plain:
                continue
            if pipeline and not folder and name.endswith(".safetensors"):
                continue  # the whole pipeline in one file, beside its parts
            if re.sub(r"\.(?:fp16|bf16|non_ema|fp32)(?=[.-])", "", path) in names - {path}:
                continue
            kept.append(path)
    return kept
