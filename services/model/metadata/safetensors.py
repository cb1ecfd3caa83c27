"""The header of a safetensors file: names, types and shapes of its tensors. Format: huggingface.co/docs/safetensors."""

import math
from collections import Counter
from pathlib import Path

from services.model.metadata.documents import integer, mapping, parse_json

MAX_HEADER = 16 * 1024 * 1024  # bytes
_MAX_TENSORS = 200_000
_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8, "F4": 4,
}  # fmt: skip
# what quantisation adds beside the weights
_AUXILIARY = (
    ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_zero_point", ".weight_shape",
    ".weight_g_idx", ".input_scale", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", "_scales",
    ".weight_scale_2", ".SCB", ".weight_format", ".k_scale", ".v_scale",
)  # fmt: skip
_PACKED = (".qweight", ".weight_packed", "_blocks")


def read_safetensors(path: Path, packed_bits: int | None) -> Counter[str]:
    """Parameters by type. `packed_bits` is how many bits a weight has where several are packed into one item.

    Empty when the header is not one.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            return Counter()
        header = parse_json(file.read(length))
    if len(header) > _MAX_TENSORS:
        return Counter()
    weights: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__" and not name.endswith(_AUXILIARY):
            kind, count = _tensor(name, mapping(tensor), packed_bits)
            weights[kind] += count
    return weights


def _tensor(name: str, tensor: dict[str, object], packed_bits: int | None) -> tuple[str, int]:
    kind = tensor.get("dtype")
    shape = tensor.get("shape")
    if not isinstance(kind, str) or kind not in _BITS or not isinstance(shape, list) or len(shape) > 8:
        return "unknown", 0
    sizes = [integer(item, top=2**40) for item in shape]
    if any(item is None for item in sizes):
        return kind, 0
    count = math.prod(item for item in sizes if item is not None)
    if count > 2**50:
        return "unknown", 0
    packed = name.endswith(_PACKED) or (kind == "U8" and name.endswith(".weight"))
    return kind, count * _BITS[kind] // packed_bits if packed and packed_bits else count
