"""Text from strangers, fit to be kept and shown: which bytes are which letters, and none that a database refuses."""

import codecs
import re

_LABEL = re.compile(r"[A-Za-z0-9_:.-]{1,40}", re.ASCII)
_META = re.compile(rb"""<meta[^>]{0,500}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_XML = re.compile(rb"""\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9_:.-]{1,40})""", re.IGNORECASE)
_HEADER = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';]+)""", re.IGNORECASE)
_LOOKED_AT = 4096  # bytes in which a page says its encoding
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# What a name stands for on the web, where it is not what Python takes it for. All others are not for pages.
_WEB = {
    "ascii": "cp1252", "iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874",
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs",
    "utf-16": "utf-16-le",
}  # fmt: skip
_KNOWN = frozenset(
    [*_WEB.values(), "utf-8", "utf-16-be", "euc_jp", "iso2022_jp", "koi8-r", "koi8-u", "cp866", "mac-roman"]
    + [f"iso8859-{number}" for number in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)]
    + [f"cp125{number}" for number in range(9)]
)
_SINGLE_BYTE = ("cp125", "iso8859", "koi8", "cp866", "cp874", "mac-")


def clean(text: str) -> str:
    """The text without what a database refuses: NUL is left out, a lone surrogate becomes U+FFFD."""
    text = text.replace("\0", "")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def decoded(data: bytes, content_type: str = "", *, markup: bool = True) -> str:
    """The text that `data` spells. A byte order mark counts most, then the header, then what the page says of itself.

    Declarations may be wrong: bytes that are not what is declared are read as UTF-8 if they are that, else as
    Windows-1252. UTF-8 that is declared to have one byte per letter is read as UTF-8. Nothing raises.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return clean(data[len(mark) :].decode(encoding, "replace"))
    said = _HEADER.search(content_type)
    declared = encoding_of(said[1]) if said else None
    if declared is None and markup:
        declared = _of_page(data[:_LOOKED_AT])
    candidates = [declared or "utf-8", "utf-8"]
    if declared is not None and declared.startswith(_SINGLE_BYTE) and not data.isascii():
        candidates.reverse()  # other text is UTF-8 by accident about never
    for candidate in candidates:
        try:
            return clean(data.decode(candidate))
        except UnicodeDecodeError:
            continue
    likely = declared or "utf-8"
    keep = likely.startswith(_SINGLE_BYTE) or _mostly(data, likely)
    return clean(data.decode(likely if keep else "cp1252", "replace"))


def encoding_of(label: str) -> str | None:
    """Python's name of an encoding that pages have; None for any other."""
    if not _LABEL.fullmatch(label):
        return None
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    name = _WEB.get(name, name)
    return name if name in _KNOWN else None


def is_binary(data: bytes, content_type: str = "") -> bool:
    """Whether the bytes are no text: they begin as a file of a known kind, or hold NUL bytes and are not UTF-16."""
    head = data[:_LOOKED_AT]
    said = _HEADER.search(content_type)
    if any(head.startswith(mark) for mark, _ in _BOMS) or (said and (encoding_of(said[1]) or "").startswith("utf-16")):
        return False
    return b"\0" in head or head.startswith(
        (b"%PDF-", b"PK\x03\x04", b"\x1f\x8b", b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
    )


def _of_page(head: bytes) -> str | None:
    found = _XML.match(head) or _META.search(head)
    if found is None:
        return None
    name = encoding_of(found[1].decode("ascii"))
    return (
        "utf-8" if name is not None and name.startswith("utf-16") else name
    )  # it was read as ASCII, so it is not that


def _mostly(data: bytes, encoding: str) -> bool:
    """Whether most letters beyond ASCII are right: a page with a broken byte, not one in another encoding."""
    text = data.decode(encoding, "replace")
    return text.count("\ufffd") * 2 < len(text) - len(text.encode("ascii", "ignore"))


def clean_json(value: object) -> object:
    """The same value with every text in it clean; for values whose depth was checked."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(name)): clean_json(item) for name, item in value.items()}
    return [clean_json(item) for item in value] if isinstance(value, list) else value
