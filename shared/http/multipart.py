"""Strict multipart/form-data: small forms, held in memory (`shared.http.bodies` feeds them the body in chunks), and forms
of one file of any size, which is passed on as it comes.

Refused: a part that comes twice, more parts or bytes than allowed, a body that stops short, text that is not UTF-8.
"""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from shared.errors import Problem
from shared.http.strict_json import SHOWN_KEY, check_text

CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Limits of one form; sizes in bytes. `total_bytes` counts the whole body, boundaries included."""

    parts: int = 20
    text_bytes: int = 64 * 1024
    file_bytes: int = 256 * 1024
    total_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A small uploaded file. `name` is for display only (no folders, no control characters), never a path."""

    name: str
    size: int
    sha256: str  # lower-case hex
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, name: str, content: bytes) -> "UploadedFile":
        return cls(name, len(content), hashlib.sha256(content).hexdigest(), content)

    def text(self) -> str:
        """The content as UTF-8. UnicodeDecodeError when it is not."""
        return self.content.decode()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.is_instance_schema(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "format": "binary"}


@dataclass(slots=True)
class _Part:
    name: str
    file_name: str | None
    limit: int
    data: bytearray = field(default_factory=bytearray)


class FormReader:
    """Push parser of one form: `write` each chunk, then `finish`. Problems: `invalid_request`, `body_too_large`."""

    def __init__(self, content_type: str, limits: FormLimits) -> None:
        self._limits = limits
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = bytearray(), bytearray()
        self._part: _Part | None = None
        self._ended = False
        self._parts: dict[str, str | UploadedFile | None] = {}
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:
            raise unreadable("The content type of the form has no usable boundary.")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_done,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all_done,
            },
        )

    def write(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError:
            raise unreadable("The form is not valid multipart/form-data.") from None

    def finish(self) -> dict[str, str | UploadedFile | None]:
        """The parts by name, in their order. Empty text is None; a file field left empty is absent."""
        if not self._ended:
            raise unreadable("The form stops before its closing boundary.")
        return self._parts

    def _begin(self) -> None:
        if len(self._parts) >= self._limits.parts:
            raise Problem("body_too_large", f"A form has at most {self._limits.parts} parts.")
        self._headers = {}
        self._part = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        name = bytes(self._name).lower()
        if name in self._headers:
            raise unreadable("A part of the form has a header twice.")
        self._headers[name] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _headers_done(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or not options.get(b"name"):
            raise unreadable("A part of the form has no name.")
        if self._headers.get(b"content-transfer-encoding", b"8bit").strip().lower() not in (
            b"7bit",
            b"8bit",
            b"binary",
        ):
            raise unreadable("A part of the form has a transfer encoding; send it as it is.")
        name = _text(options[b"name"], None)
        if name in self._parts:
            shown = f" {name!r}" if SHOWN_KEY.fullmatch(name) else ""
            raise unreadable(f"The part{shown} comes twice.", name)
        self._parts[name] = None
        file_name = options.get(b"filename")
        self._part = _Part(
            name,
            None if file_name is None else display_name(_text(file_name, name)),
            self._limits.text_bytes if file_name is None else self._limits.file_bytes,
        )

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        assert part is not None
        if len(part.data) + end - start > part.limit:
            raise Problem("body_too_large", f"This part may have at most {part.limit} bytes.", _shown(part.name))
        part.data += data[start:end]

    def _end(self) -> None:
        part, self._part = self._part, None
        assert part is not None
        if part.file_name is None:
            self._parts[part.name] = unquote(_text(bytes(part.data), part.name)) or None
        elif part.file_name or part.data:
            self._parts[part.name] = UploadedFile.of(part.file_name or "file", bytes(part.data))
        else:  # what a browser sends for a file input that was left empty
            self._parts[part.name] = ABSENT

    def _all_done(self) -> None:
        self._ended = True
        self._parts = {name: value for name, value in self._parts.items() if value is not ABSENT}


class FileReader(FormReader):
    """Push parser of a form of one part, `file`, of any size: `write` a chunk, `take` what of the file was in it.

    `name` and `media_type` are what the part's headers say, once they have come.
    """

    def __init__(self, content_type: str) -> None:
        super().__init__(content_type, FormLimits())
        self.name: str | None = None
        self.media_type: str | None = None
        self._taken: list[bytes] = []

    def take(self) -> bytes:
        taken, self._taken = b"".join(self._taken), []
        return taken

    def finish(self) -> dict[str, str | UploadedFile | None]:
        if self._ended and not self._parts:
            raise unreadable("The form has no part `file`.", "file")
        return super().finish()

    def _begin(self) -> None:
        if self._parts:
            raise unreadable("The form has one part, `file`, and no other.")
        super()._begin()

    def _headers_done(self) -> None:
        super()._headers_done()
        assert self._part is not None
        if self._part.name != "file":
            raise unreadable("The form has one part, `file`, and no other.", self._part.name)
        self.name = self._part.file_name
        self.media_type = self._headers.get(b"content-type", b"").decode("latin-1") or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._taken.append(data[start:end])

    def _end(self) -> None:
        self._part = None


ABSENT = UploadedFile("", 0, "", b"")


def unquote(text: str) -> str:
    """`text` without one pair of surrounding double quotes: some shells and scripts pass them on to the form."""
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] == '"' else text


def unreadable(detail: str, param: str | None = None) -> Problem:
    return Problem("invalid_request", detail, _shown(param))


def _shown(name: str | None) -> str | None:
    return name if name and SHOWN_KEY.fullmatch(name) else None


def _text(raw: bytes, part: str | None) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise unreadable("The form holds text that is not UTF-8.", part) from None
    if fault := check_text(text):
        raise unreadable(f"The form holds {fault}.", part)
    return text


def display_name(name: str) -> str:
    """The last part of a path, without control characters; at most 255 characters, none for a name that has no others."""
    last = re.split(r"[/\\]", name)[-1]
    return CONTROL.sub("", last).strip()[:255]
