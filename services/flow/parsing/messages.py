"""What the children of this package are asked and answer, and their bounds; without their libraries."""

from typing import Any

from pydantic import BaseModel, JsonValue

MAX_EXPRESSION = 4096  # bytes
MAX_RESULT = 1024**2  # characters of JSON
MAX_DEPTH = 64  # of a result
MAX_ERRORS = 100
MAX_PAGES = 5000
MAX_TEXT = 8 * 1024**2  # characters of a PDF's text


class Page(BaseModel):
    html: str
    url: str | None = None
    include_links: bool = False


class PageText(BaseModel):
    text: str
    title: str


class Document(BaseModel):
    path: str


class DocumentText(BaseModel):
    text: str
    pages: int


class Query(BaseModel):
    expression: str
    value: Any


class Found(BaseModel):
    result: JsonValue


class Question(BaseModel):
    value: Any
    schema_: Any


class SchemaFault(BaseModel):
    path: str
    message: str


class Verdict(BaseModel):
    errors: list[SchemaFault]
