"""What a file is, by its content; its name only decides among texts. One file may be several things at once.

`registry` in checks/ maps kinds to checks. `CLAIMS` says what an extension promises, for checks/mismatch.py.
"""

import re
import struct
import zlib
from enum import StrEnum

from services.model.scan.item import Item
from services.model.scan.pickles.machine import looks_like_pickle
from services.model.scan.words import words


class Kind(StrEnum):
    PICKLE = "pickle"
    ZIP = "zip"
    TAR = "tar"
    COMPRESSED = "compressed"  # gzip, bzip2, xz, zlib: one stream
    PACKED = "packed"  # 7z, rar, zstd, lz4 and others that cannot be unpacked here
    NUMPY = "numpy"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ONNX = "onnx"
    HDF5 = "hdf5"
    SAVED_MODEL = "saved_model"
    EXECUTABLE = "executable"
    SCRIPT = "script"
    NOTEBOOK = "notebook"
    JSON = "json"
    YAML = "yaml"
    XML = "xml"
    TEMPLATE = "template"
    TEXT = "text"
    MEDIA = "media"
    DATA = "data"  # a format that carries numbers or a vocabulary, and no code
    EMPTY = "empty"
    UNKNOWN = "unknown"


_MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"PK\x03\x04", Kind.ZIP),
    (0, b"PK\x05\x06", Kind.ZIP),
    (257, b"ustar", Kind.TAR),
    (0, b"\x1f\x8b", Kind.COMPRESSED),
    (0, b"BZh", Kind.COMPRESSED),
    (0, b"\xfd7zXZ\x00", Kind.COMPRESSED),
    (0, b"7z\xbc\xaf\x27\x1c", Kind.PACKED),
    (0, b"Rar!\x1a\x07", Kind.PACKED),
    (0, b"\x28\xb5\x2f\xfd", Kind.PACKED),
    (0, b"\x04\x22\x4d\x18", Kind.PACKED),
    (0, b"MSCF", Kind.PACKED),
    (0, b"!<arch>\n", Kind.PACKED),
    (0, b"\x93NUMPY", Kind.NUMPY),
    (0, b"GGUF", Kind.GGUF),
    (0, b"\x7fELF", Kind.EXECUTABLE),
    (0, b"\xfe\xed\xfa\xce", Kind.EXECUTABLE),
    (0, b"\xfe\xed\xfa\xcf", Kind.EXECUTABLE),
    (0, b"\xce\xfa\xed\xfe", Kind.EXECUTABLE),
    (0, b"\xcf\xfa\xed\xfe", Kind.EXECUTABLE),
    (0, b"\xca\xfe\xba\xbe", Kind.EXECUTABLE),
    (0, b"\x00asm", Kind.EXECUTABLE),
    (0, b"\x1bLua", Kind.EXECUTABLE),
    (0, b"dex\n", Kind.EXECUTABLE),
    (0, b"L\x00\x00\x00\x01\x14\x02\x00", Kind.EXECUTABLE),  # a Windows shortcut
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind.PACKED),  # OLE: macros
    (0, b"\x89PNG\r\n\x1a\n", Kind.MEDIA),
    (0, b"\xff\xd8\xff", Kind.MEDIA),
    (0, b"GIF8", Kind.MEDIA),
    (8, b"WEBP", Kind.MEDIA),
    (8, b"WAVE", Kind.MEDIA),
    (4, b"ftyp", Kind.MEDIA),
    (0, b"fLaC", Kind.MEDIA),
    (0, b"OggS", Kind.MEDIA),
    (0, b"ID3", Kind.MEDIA),
    (4, b"TFL3", Kind.DATA),
)

_TEXTS: dict[str, Kind] = {
    **dict.fromkeys((".json", ".jsonl", ".webmanifest", ".geojson"), Kind.JSON),
    **dict.fromkeys((".yaml", ".yml"), Kind.YAML),
    **dict.fromkeys((".xml", ".pmml", ".svg", ".xsd", ".xsl", ".xslt", ".html", ".htm", ".xhtml"), Kind.XML),
    **dict.fromkeys((".jinja", ".jinja2", ".j2"), Kind.TEMPLATE),
    ".ipynb": Kind.NOTEBOOK,
    **dict.fromkeys(
        words(
            ".py .pyw .pyi .pyx .pth .sh .bash .zsh .fish .csh .ps1 .psm1 .bat .cmd .vbs .js .mjs .cjs .ts .lua .rb .pl .php "
            ".r .jl .java .go .rs .c .cc .cpp .h .hpp .cu .swift .scala .groovy .tcl .awk .applescript .desktop .mk "
            ".cmake .gradle"
        ),
        Kind.SCRIPT,
    ),
}
_SCRIPT_NAMES = frozenset(("makefile", "dockerfile", "jenkinsfile", "rakefile", "vagrantfile"))
_EXECUTABLE_EXTENSIONS = words(
    ".exe .dll .so .dylib .com .scr .msi .sys .pyd .pyc .pyo .class .jar .war .whl .egg .apk .deb .rpm .o .a .wasm .lnk "
    ".app .bin.exe"
)
_DATA_NAMES = re.compile(
    r".*\.(model|spm|vocab|tiktoken|msgpack|arrow|parquet|tflite|mlmodel|index|idx|pb\.txt|data-\d+-of-\d+|fst|bpe)"
)

# What an extension promises. Absent: nothing.
CLAIMS: dict[str, frozenset[Kind]] = {
    ".safetensors": frozenset((Kind.SAFETENSORS,)),
    ".gguf": frozenset((Kind.GGUF,)),
    ".onnx": frozenset((Kind.ONNX,)),
    ".npy": frozenset((Kind.NUMPY,)),
    ".npz": frozenset((Kind.ZIP,)),
    ".keras": frozenset((Kind.ZIP,)),
    ".skops": frozenset((Kind.ZIP,)),
    ".zip": frozenset((Kind.ZIP,)),
    ".h5": frozenset((Kind.HDF5,)),
    ".hdf5": frozenset((Kind.HDF5,)),
    ".tar": frozenset((Kind.TAR,)),
    **dict.fromkeys((".gz", ".tgz", ".bz2", ".xz"), frozenset((Kind.COMPRESSED,))),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), frozenset((Kind.PICKLE, Kind.COMPRESSED, Kind.ZIP))),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), frozenset((Kind.ZIP, Kind.PICKLE, Kind.TAR))),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".flac"), frozenset((Kind.MEDIA,))),
    **dict.fromkeys((".txt", ".md", ".rst", ".csv", ".tsv", ".vocab"), frozenset((Kind.TEXT, Kind.EMPTY))),
    ".json": frozenset((Kind.JSON, Kind.EMPTY)),
}


def identify(item: Item) -> frozenset[Kind]:
    """All that the item is. UNKNOWN stands alone: bytes that nothing recognises. Remembered by the item."""
    if item.kinds is None:
        item.kinds = _identify(item)
    return frozenset(map(Kind, item.kinds))


def _identify(item: Item) -> frozenset[Kind]:
    if item.size == 0:
        return frozenset((Kind.EMPTY,))
    head = item.head
    kinds = {kind for offset, magic, kind in _MAGIC if head[offset : offset + len(magic)] == magic}
    kinds |= {kind for kind, test in _STRUCTURES if test(item, head)}
    if item.extension in _EXECUTABLE_EXTENSIONS:
        kinds.add(Kind.EXECUTABLE)
    if kinds - {Kind.ZIP}:
        kinds |= _text_kinds(item, head) & {Kind.XML, Kind.SCRIPT, Kind.TEMPLATE}
    elif not kinds:
        kinds |= _text_kinds(item, head)
    if not kinds and _DATA_NAMES.fullmatch(item.basename):
        kinds.add(Kind.DATA)
    return frozenset(kinds or {Kind.UNKNOWN})


def _is_pickle(item: Item, head: bytes) -> bool:
    if (
        len(head) > 2
        and head[0] == 0x80
        and head[1] <= 5
        and (head[2] in b"\x95}]()cX\x8cKJMNC\x8a\x88\x89GUT\x8e\x8f")
    ):
        return not _is_safetensors(item, head)
    return looks_like_pickle(item.file, item.size)


def _is_zip(item: Item, head: bytes) -> bool:
    """A zip may stand behind anything: readers look for its directory at the end."""
    if item.tensor_data:
        return False
    tail = item.tail
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        return False
    _, members, size, offset, comment = struct.unpack("<HHIIH", tail[at + 8 : at + 22])
    return bool(members) and at + 22 + comment <= len(tail) and (offset == 0xFFFFFFFF or size + offset <= item.size)


def _is_tar(item: Item, head: bytes) -> bool:
    """A tar of the oldest form has no magic, but a checksum of its first block."""
    if len(head) < 512 or not head[0]:
        return False
    field = head[148:156].strip(b" \x00")
    return re.fullmatch(rb"[0-7]{1,7}", field) is not None and int(field, 8) == sum(head[:148]) + 256 + sum(
        head[156:512]
    )


def _is_zlib(item: Item, head: bytes) -> bool:
    if item.tensor_data or len(head) < 8 or head[0] != 0x78 or int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        return len(zlib.decompressobj().decompress(head, 64)) > 0
    except zlib.error:
        return False


def _is_lzma(item: Item, head: bytes) -> bool:
    """The old form without a container: properties, size of the dictionary, size or all ones."""
    size = head[5:13]
    return not item.tensor_data and head[:3] == b"\x5d\x00\x00" and (size == b"\xff" * 8 or size[5:] == b"\x00" * 3)


def _is_safetensors(item: Item, head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= item.size - 8


def _is_windows_executable(item: Item, head: bytes) -> bool:
    if head[:2] != b"MZ" or len(head) < 64:
        return False
    at = int.from_bytes(head[60:64], "little")
    return head[at : at + 2] in (b"PE", b"NE", b"LE", b"LX") or not item.tensor_data


def _is_python_bytecode(item: Item, head: bytes) -> bool:
    return (
        len(head) > 16
        and head[2:4] == b"\r\n"
        and head[1] in (0x0C, 0x0D, 0x0E, 0x0F, 0x16, 0xF3, 0x03)
        and not _is_text(head)
    )


def _is_shebang(item: Item, head: bytes) -> bool:
    return head[:2] == b"#!" and re.match(rb"#![ \t]*/[\x20-\x7e]+", head) is not None


def _is_hdf5(item: Item, head: bytes) -> bool:
    """The signature stands at 0, or, behind a user block, at 512, 1024, 2048 and so on."""
    places = [0, *(512 << shift for shift in range(7))]
    return any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in places)


def _is_onnx(item: Item, head: bytes) -> bool:
    """A ModelProto: by its name, or as it begins with ir_version and a producer's name."""
    return item.extension == ".onnx" and not _is_text(head)


def _is_saved_model(item: Item, head: bytes) -> bool:
    return item.extension in (".pb", ".pbtxt", ".graphdef", ".meta")


_STRUCTURES = (
    (Kind.PICKLE, _is_pickle),
    (Kind.ZIP, _is_zip),
    (Kind.TAR, _is_tar),
    (Kind.COMPRESSED, _is_zlib),
    (Kind.COMPRESSED, _is_lzma),
    (Kind.SAFETENSORS, _is_safetensors),
    (Kind.EXECUTABLE, _is_windows_executable),
    (Kind.EXECUTABLE, _is_python_bytecode),
    (Kind.SCRIPT, _is_shebang),
    (Kind.HDF5, _is_hdf5),
    (Kind.ONNX, _is_onnx),
    (Kind.SAVED_MODEL, _is_saved_model),
)


def _is_text(data: bytes) -> bool:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    if b"\x00" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:
            return False
    control = sum(1 for byte in data[:4096] if byte < 9 or 13 < byte < 27 or 27 < byte < 32)
    return control == 0


def _text_kinds(item: Item, head: bytes) -> set[Kind]:
    """Of a text: its name decides, and where that says nothing, how it begins."""
    if not _is_text(head):
        return set()
    if item.basename in _SCRIPT_NAMES or item.basename.startswith("dockerfile."):
        return {Kind.SCRIPT}
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    kinds = {_TEXTS[item.extension]} if item.extension in _TEXTS else set()
    if start.startswith((b"<?xml", b"<!DOCTYPE", b"<PMML", b"<svg", b"<html", b"<script")):
        kinds.add(Kind.XML)
    if not kinds and start.startswith((b"{", b"[")) and item.extension in ("", ".config", ".cfg"):
        kinds.add(Kind.JSON)
    return kinds or {Kind.TEXT}
