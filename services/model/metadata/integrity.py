"""Whether files of weights are what their names say, and whole. `reader` takes what it can; an import asks here first."""

import json
from pathlib import Path

from services.model.metadata.gguf import BadHeader, read_gguf
from services.model.metadata.safetensors import MAX_HEADER

_FORMAT_MAX_HEADER = 100_000_000  # bytes; what the format allows


def fault(files: list[tuple[str, Path]]) -> str | None:
    """A sentence on the first GGUF or safetensors file (path in the model, path on this machine) that no engine could
    load: no header, one that is cut off, tensors beyond the end of the file. None if there is none. Blocks.
    """
    for path, place in files:
        match Path(path).suffix.lower():
            case ".gguf":
                name, reason = "GGUF", _of_gguf(place)
            case ".safetensors":
                name, reason = "safetensors", _of_safetensors(place)
            case _:
                continue
        if reason is not None:
            return (
                f"{path} is not a whole {name} file: {reason}. It is damaged, cut off or not a model; "
                "get it again from where it is published, then add the model again."
            )
    return None


def _of_gguf(place: Path) -> str | None:
    try:
        end = read_gguf(place).end
    except BadHeader as error:
        return str(error)
    return _beyond(end, place.stat().st_size)


def _of_safetensors(place: Path) -> str | None:
    size = place.stat().st_size
    with place.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > _FORMAT_MAX_HEADER:
            return "the file does not begin as safetensors files do"
        if length > size - 8:
            return "the header ends early"
        if length > MAX_HEADER:
            return None  # too much to parse here; the scan judges it
        data = file.read(length)
    try:
        header = json.loads(data)
    except (ValueError, RecursionError):
        return "the header is not JSON"
    if not isinstance(header, dict):
        return "the header is not an object"
    end = 0
    for name, tensor in header.items():
        match tensor:
            case _ if name == "__metadata__":
                continue
            case {"data_offsets": [int(begin), int(last)]} if 0 <= begin <= last:
                end = max(end, last)
            case _:
                return "a tensor has no place in the file"
    return _beyond(8 + length + end, size)


def _beyond(end: int, size: int) -> str | None:
    return f"its tensors end at byte {end}, but the file has {size}" if end > size else None
