"""What the routes of flows take: bodies that are told apart by their members, and how the description of the API shows them."""

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request

from shared.errors import Problem
from shared.flows.dialects.words import DialectName
from shared.http.bodies import read_json

Json = dict[str, Any]
_KEY = re.compile(r"[!-~]{1,4096}", re.ASCII)


async def body_if_any(request: Request) -> Json:
    """The body, {} where there is none."""
    is_chunked = "transfer-encoding" in request.headers
    if not is_chunked and request.headers.get("content-length", "0") == "0":
        return {}
    return await read_json(request)


async def _provider_key(
    x_provider_key: Annotated[
        str | None,
        Header(description="A key for the models' provider, for this execution only; it is forgotten with its end."),
    ] = None,
) -> str | None:
    if x_provider_key is not None and _KEY.fullmatch(x_provider_key) is None:
        raise Problem("invalid_request", "X-Provider-Key must be 1 to 4096 visible ASCII characters.")
    return x_provider_key


ProviderKey = Annotated[str | None, Depends(_provider_key)]
Dialect = Annotated[
    DialectName | None,
    Query(description="The way of writing of the answer; by default the one in which the workflow was created."),
]


def described(schema: Json, *, required: bool = True) -> Json:
    """`openapi_extra` of a route that reads such a body by hand."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


def _object(properties: Json, *required: str) -> Json:
    return {"type": "object", "properties": properties, "required": list(required)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


_TEXT: Json = {"type": "string"}
_ANY: Json = {"description": "Any JSON, with references such as {{input.x}}."}
_VALUES: Json = {"type": "object", "additionalProperties": True}
_TYPE: Json = {"enum": ["text", "string", "number", "boolean", "file", "object", "list", "any"]}
_INPUT = _object(
    {"name": _TEXT, "type": _TYPE, "required": {"type": "boolean"}, "default": _ANY, "description": _TEXT},
    "name",
    "type",
)
_OUTPUT = _object({"name": _TEXT, "type": _TYPE, "value": _ANY, "description": _TEXT}, "name", "type", "value")
_RETRY = _object({
    name: {"type": "number"} for name in ("attempts", "delay", "multiplier", "max_delay", "jitter")
})  # fmt: skip
_COMMON: Json = {
    "type": _TEXT, "condition": _ANY, "retry": _RETRY, "timeout": {"type": "number"},
    "on_error": {"enum": ["fail", "continue", "default"]}, "fallback": _VALUES, "description": _TEXT,
    "depends_on": _list(_TEXT),
}  # fmt: skip
_HEAD: Json = {
    "description": _TEXT, "execution": {"enum": ["sequential", "parallel"]},
    "project_id": {"type": "string", "format": "uuid"},
}  # fmt: skip
_REFS = _object(
    {"name": _TEXT, "input": _list(_INPUT), "output": _list(_OUTPUT), **_HEAD,
     "tasks": _list(_object({"ref": _TEXT, "input": _VALUES, **_COMMON}, "ref", "type"))},
    "name", "tasks",
)  # fmt: skip
_TASKS = _object(
    {"title": _TEXT, "inputs": _list(_INPUT), "outputs": _list(_OUTPUT), **_HEAD,
     "tasks": _list(_object({"name": _TEXT, "inputs": _VALUES, **_COMMON}, "name", "type"))},
    "title", "tasks",
)  # fmt: skip
_VERSION: Json = {"expected_version": {"type": "integer"}}

DEFINITION: Json = {"anyOf": [_REFS, _TASKS]}
CHANGE: Json = {
    "anyOf": [{**one, "properties": {**one["properties"], **_VERSION}} for one in (_REFS, _TASKS)]
}  # fmt: skip
ORDER: Json = {
    "anyOf": [
        _object({"input": _VALUES, "webhook_url": _TEXT}),
        _object({"inputs": _VALUES, "monitoring": _object({"webhook": _TEXT})}),
    ]
}
ANSWER: Json = _VALUES
