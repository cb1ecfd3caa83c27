"""Model files of a given size, valid to whoever reads them, with content that does not compress."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

MB = 1_000_000
_BLOCK = os.urandom(8 * MB)


def small_safetensors(path: Path) -> Path:
    return safetensors(path, 4096)


def safetensors(path: Path, size: int) -> Path:
    """One tensor of `size` bytes, an even number."""
    header = json.dumps({"weight": {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, size, len(_BLOCK)):
            out.write(_BLOCK[: size - start])
    return path


def torch_checkpoint(path: Path, size: int, tensors: int = 200) -> Path:
    """What torch.save writes: a zip with one pickle of `tensors` tensors, and their storages, uncompressed."""
    each = size // tensors // 4 * 4
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("model/data.pkl", _state_dict(tensors, each // 4))
        archive.writestr("model/version", b"3\n")
        for number in range(tensors):
            with archive.open(zipfile.ZipInfo(f"model/data/{number}"), "w", force_zip64=True) as out:
                for start in range(0, each, len(_BLOCK)):
                    out.write(_BLOCK[: each - start])
    return path


def _state_dict(tensors: int, items: int) -> bytes:
    """The pickle of `{name: tensor}` as torch writes it, opcode by opcode, for torch is not needed here."""
    memo: dict[bytes, int] = {}

    def once(code: bytes) -> bytes:
        """What the pickler remembers: written out the first time, then named by its number."""
        known = memo.get(code)
        number = memo.setdefault(code, len(memo))
        return code + pickle.BINPUT + bytes((number,)) if known is None else pickle.BINGET + bytes((number,))

    parts = [b"\x80\x02}("]
    for number in range(tensors):
        kind = once(_text("storage")) + once(b"ctorch\nFloatStorage\n")
        storage = b"(" + kind + _text(str(number)) + once(_text("cpu")) + _number(items) + b"tQ"
        tensor = (
            storage + b"K\x00" + _number(items) + b"\x85K\x01\x85\x89" + once(b"ccollections\nOrderedDict\n") + b")R"
        )
        parts += [_text(f"layers.{number}.weight"), once(b"ctorch._utils\n_rebuild_tensor_v2\n"), b"(", tensor, b"tR"]
    return b"".join(parts) + b"u."


def _text(value: str) -> bytes:
    data = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)
