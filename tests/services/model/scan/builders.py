"""Makes small model files by hand: opcodes of pickle, torch's zip, GGUF, safetensors, protobuf. Used by the corpus."""

import io
import json
import struct
import tarfile
import zipfile
from typing import Any


def text(value: str) -> bytes:
    """BINUNICODE."""
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def short(value: str) -> bytes:
    """SHORT_BINUNICODE and MEMOIZE, as protocol 4 writes it."""
    data = value.encode()
    return b"\x8c" + bytes((len(data),)) + data + b"\x94"


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, *arguments: bytes) -> bytes:
    """A call by REDUCE; arguments are opcodes."""
    return name(module, attribute) + b"(" + b"".join(arguments) + b"tR"


def pickled(body: bytes, protocol: int = 2) -> bytes:
    return bytes((0x80, protocol)) + body + b"."


def stack_call(module: str, attribute: str, argument: str) -> bytes:
    """Protocol 4: STACK_GLOBAL and a call with one text."""
    return b"\x80\x04" + short(module) + short(attribute) + b"\x93\x94" + short(argument) + b"\x85\x94R\x94."


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for path, data in members.items():
            archive.writestr(zipfile.ZipInfo(path), data, method)
    return out.getvalue()


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, data in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_link(path: str, target: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(path)
        info.type = tarfile.SYMTYPE
        info.linkname = target
        archive.addfile(info)
    return out.getvalue()


def _storage(key: str, items: int) -> bytes:
    return (
        b"("
        + text("storage")
        + name("torch", "FloatStorage")
        + text(key)
        + text("cpu")
        + b"K"
        + bytes((items,))
        + b"tQ"
    )


def state_dict(tensors: int = 2, items: int = 4) -> bytes:
    """The data.pkl of a torch file: an OrderedDict of tensors of `items` floats."""
    body = b"c" + b"collections\nOrderedDict\n)R("
    for number in range(tensors):
        count = b"K" + bytes((items,))
        body += text(f"layer.{number}.weight") + name("torch._utils", "_rebuild_tensor_v2") + b"("
        body += _storage(str(number), items) + b"K\x00" + count + b"\x85K\x01\x85\x89"
        body += name("collections", "OrderedDict") + b")RtR"
    return pickled(body + b"u")


def torch_zip(data_pkl: bytes | None = None, more: dict[str, bytes] | None = None, *, items: int = 4) -> bytes:
    members = {
        "archive/data.pkl": state_dict(items=items) if data_pkl is None else data_pkl,
        "archive/byteorder": b"little",
        "archive/data/0": struct.pack(f"<{items}f", *range(items)),
        "archive/data/1": struct.pack(f"<{items}f", *range(items)),
        "archive/version": b"3\n",
    }
    return zipped(members | {f"archive/{path}": data for path, data in (more or {}).items()})


def torch_legacy(state: bytes | None = None) -> bytes:
    """Torch's format before zip: five pickles, then the storages."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    info = pickled(b"}(" + text("little_endian") + b"\x88u")
    keys = pickled(b"]" + text("0") + b"a")
    raw = (4).to_bytes(8, "little") + struct.pack("<4f", 1, 2, 3, 4)
    return magic + b"\x80\x02M\xe9\x03." + info + (state or state_dict(1)) + keys + raw


def numpy_array(values: list[float], descr: str = "'<f8'") -> bytes:
    return numpy_file(descr, (len(values),), struct.pack(f"<{len(values)}d", *values))


def numpy_file(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def numpy_in_pickle() -> bytes:
    """What pickle.dumps makes of numpy.zeros(3)."""
    body = (
        name("numpy.core.multiarray", "_reconstruct")
        + name("numpy", "ndarray")
        + b"K\x00\x85C\x01b\x87R(K\x01K\x03\x85"
    )
    body += dtype() + b"\x89C\x18" + bytes(24) + b"tb"
    return pickled(body, 3)


def dtype(code: str = "f8") -> bytes:
    return (
        name("numpy", "dtype")
        + text(code)
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )


def _joblib(code: str, items: int, inside: bytes, data: bytes) -> bytes:
    state = b"}(" + text("subclass") + name("numpy", "ndarray") + text("shape") + b"K" + bytes((items,)) + b"\x85"
    state += text("order") + text("C") + text("dtype") + dtype(code) + text("allow_mmap") + b"\x88"
    state += text("numpy_array_alignment_bytes") + b"K\x10u"
    start = b"\x80\x03}(" + inside + text("coef") + name("joblib.numpy_pickle", "NumpyArrayWrapper") + b")\x81" + state
    return start + b"b" + data + text("after") + b"K\x01u."


def joblib_array(values: list[float], inside: bytes = b"") -> bytes:
    """What joblib.dump makes of an array in a dict: the numbers stand between the opcodes."""
    return _joblib("f8", len(values), inside, b"\x03\xff\xff\xff" + struct.pack(f"<{len(values)}d", *values))


def joblib_objects(inner: bytes) -> bytes:
    """The same of an array of objects: a whole pickle, `inner`, stands between the opcodes."""
    return _joblib("O8", 1, b"", inner)


def safetensors(header: dict[str, Any] | str | None = None, data: bytes = bytes(16)) -> bytes:
    if header is None:
        header = {
            "__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
            "b": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
        }
    encoded = (header if isinstance(header, str) else json.dumps(header)).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + data


def _gguf_text(value: str) -> bytes:
    return len(value.encode()).to_bytes(8, "little") + value.encode()


def gguf(
    metadata: dict[str, str | int | list[str]] | None = None,
    tensors: list[tuple[str, list[int], int, int]] | None = None,
    data: bytes = bytes(64),
    counts: tuple[int, int] | None = None,
) -> bytes:
    """`tensors` are (name, shape, type, offset); `counts` replaces the true ones of the header."""
    pairs: dict[str, str | int | list[str]] = {"general.architecture": "llama", "general.alignment": 32}
    pairs |= {"tokenizer.ggml.tokens": ["a", "b"]}
    pairs |= metadata or {}
    listed = [("token_embd.weight", [8], 0, 0), ("output.weight", [4, 2], 0, 32)] if tensors is None else tensors
    out = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(listed), len(pairs))))
    for key, value in pairs.items():
        out += _gguf_text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + _gguf_text(value)
        elif isinstance(value, int):
            out += struct.pack("<II", 4, value)
        else:
            out += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_gguf_text, value))
    for tensor, shape, kind, offset in listed:
        out += _gguf_text(tensor) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return out + bytes(-len(out) % 32) + data


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


def field(number: int, value: bytes | int) -> bytes:
    """One field of protobuf."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx(operator: str = "Relu", domain: str = "", location: str | None = None) -> bytes:
    """A ModelProto of one node and one weight."""
    node = (
        field(1, b"x") + field(2, b"y") + field(4, operator.encode()) + (field(7, domain.encode()) if domain else b"")
    )
    weight = field(1, 1) + field(2, 1) + field(8, b"w")
    if location is None:
        weight += field(9, bytes(4))
    else:
        weight += field(13, field(1, b"location") + field(2, location.encode())) + field(14, 1)
    graph = field(1, node) + field(2, b"graph") + field(5, weight)
    return field(1, 8) + field(2, b"pytorch") + field(7, graph) + field(8, field(1, b"") + field(2, 17))


def hdf5(content: bytes) -> bytes:
    """A superblock of version 0 that tells the true size, and `content` where the objects would be."""
    size = 96 + len(content)
    block = b"\x89HDF\r\n\x1a\n" + bytes((0, 0, 0, 0, 0, 8, 8, 0)) + struct.pack("<HHI", 4, 16, 0)
    block += struct.pack("<QQQQ", 0, 2**64 - 1, size, 2**64 - 1)
    return block.ljust(96, b"\x00") + content


def keras_config(*layers: tuple[str, str]) -> bytes:
    """A Sequential of (module, class) layers."""
    listed = [{"module": module, "class_name": kind, "config": {"name": kind.lower()}} for module, kind in layers]
    return json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": listed}}).encode()
