"""Safetensors: numbers behind a JSON header. Nothing in it is code, so it is enough that the header is exact."""

import json
import math
from typing import Any

from services.model.scan import limits
from services.model.scan.findings import Findings, Unreadable
from services.model.scan.item import Item
from services.model.scan.kinds import Kind

NAME = "safetensors"
KINDS = frozenset((Kind.SAFETENSORS,))

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def look(item: Item, findings: Findings) -> None:
    size = int.from_bytes(item.at(0, 8), "little")
    if size > limits.MAX_SAFETENSORS_HEADER or 8 + size > item.size:
        raise Unreadable("its header is longer than the file or than the format allows")
    repeated: list[str] = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            repeated.append("key")
        return made

    try:
        header = json.loads(item.at(8, size), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise Unreadable("its header is not JSON") from None
    if not isinstance(header, dict):
        raise Unreadable("its header is not an object")
    if repeated:
        _wrong(item, findings, "A key stands twice in the header", "Readers differ on which one counts.")
    _check_metadata(item, findings, header.pop("__metadata__", {}))
    _check_offsets(item, findings, header, item.size - 8 - size)


def _wrong(item: Item, findings: Findings, title: str, description: str) -> None:
    findings.issue(item, NAME, "high", title, description)


def _check_metadata(item: Item, findings: Findings, metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _wrong(item, findings, "The metadata is not of texts", "The format allows only names with texts.")


def _check_offsets(item: Item, findings: Findings, header: dict[str, Any], data_size: int) -> None:
    places: list[tuple[int, int]] = []
    for name, tensor in header.items():
        match tensor:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if all(
                isinstance(length, int) and length >= 0 for length in shape
            ):
                places.append((begin, end))
            case _:
                raise Unreadable(f"the tensor {name[:100]} is not described as the format says")
        if not 0 <= begin <= end:
            _wrong(item, findings, "A tensor has negative bounds", f"{name}: {begin} to {end}.")
        elif dtype not in _BITS:
            raise Unreadable(f"the tensor {name[:100]} is of an unknown type")
        elif math.prod(shape) * _BITS[dtype] != (end - begin) * 8:
            _wrong(item, findings, "A tensor's size does not fit its shape", f"{name}: {dtype}{shape}.")
    at = 0
    for begin, end in sorted(places):
        if begin != at:
            fault = "Tensors overlap" if begin < at else "There are bytes between tensors"
            _wrong(item, findings, fault, f"At byte {begin} of the data; {at} was expected.")
        at = max(at, end)
    if at > data_size:
        raise Unreadable("its tensors lie outside of the file, or it is truncated")
    if at < data_size:
        _wrong(item, findings, "Bytes follow the last tensor", f"{data_size - at} bytes belong to no tensor.")
