"""The description of the API, /openapi.json: what FastAPI finds, and what it cannot see from the routes' functions.

That is: how to authenticate, the statuses of refusals, the shape of lists, and the paths of the gateway, which stands
before the app under the same address.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from shared.http.problems import DESCRIPTION

ABOUT = "Stepway takes an AI model from found to served to used. Send `Authorization: Bearer <key>` with every request."
Json = dict[str, Any]
# GET /login is for who has a cookie; a trigger takes a signature in place of a key.
OPEN = {"/healthz", "/readyz", "/docs/errors", "/icons/{path}", "/login", "/flow/triggers/{token}"}
PROBLEM = {"$ref": "#/components/responses/Problem"}
OPENAI_ERROR = {"$ref": "#/components/responses/OpenAIError"}
WRITES = ("post", "put", "patch", "delete")
JSON = "application/json"


def describe(app: FastAPI) -> Json:
    """The whole description. Made once: it is the same as long as the process lives."""
    found = get_openapi(title=app.title, version=app.version, routes=app.routes, description=ABOUT)
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation)
    found["paths"].update(_gateway())
    components = found.setdefault("components", {})
    components["responses"] = {"Problem": DESCRIPTION, "OpenAIError": _OPENAI_ERROR}
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "A key, as POST /keys makes them."},
        "cookie": {
            "type": "apiKey",
            "in": "cookie",
            "name": "stepway_session",
            "description": "As POST /login sets it.",
        },
    }
    components.setdefault("schemas", {})["List"] = _LIST
    found["security"] = [{"key": []}, {"cookie": []}]
    return found


def _complete(path: str, method: str, operation: Json) -> None:
    is_open = path in OPEN and (path != "/login" or method != "get")
    if is_open:
        operation["security"] = []
    answers = operation["responses"]
    answers.pop("422", None)
    parameters = {(one["in"], one["name"]) for one in operation.get("parameters", [])}
    for status in _refusals(method, operation, parameters, is_open):
        answers.setdefault(status, PROBLEM)
    answers["default"] = PROBLEM
    content = answers.get("200", {}).get("content", {}).get(JSON)
    if content is not None and ("query", "cursor") in parameters:
        content["schema"] = {"$ref": "#/components/schemas/List"}
    for status, one in answers.items():
        schema = one.get("content", {}).get(JSON, {})
        if status < "3" and schema.get("schema") == {}:
            schema["schema"] = {"type": "object", "additionalProperties": True}


def _refusals(method: str, operation: Json, parameters: set[tuple[str, str]], is_open: bool) -> list[str]:
    """The statuses that this operation may refuse with."""
    places = {place for place, _ in parameters}
    named = {name.lower() for place, name in parameters if place == "header"}
    found = [] if is_open else ["401", "403", "429"]
    if "path" in places or ("requestBody" in operation and "idempotency-key" in named):
        found.append("404")
    if method in WRITES:
        found += ["409", "422"]
    if "query" in places or method in WRITES:
        found.append("400")
    if "if-match" in named:
        found.append("412")
    if "requestBody" in operation:
        found += ["413", "415"]
    return sorted([*found, "503"])


# ---- the gateway's paths


def _gateway() -> Json:
    endpoint = {"name": "endpoint_id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    root = "/endpoints/{endpoint_id}/v1"

    def operation(id_: str, summary: str, request: Json | None = None, *more: Json) -> Json:
        answer: Json = {JSON: {"schema": {"type": "object", "additionalProperties": True}}}
        if request is not None and "stream" in request["properties"]:
            answer["text/event-stream"] = {"schema": {"type": "string"}}
        statuses = ["400", "401", "403", "404", "429", "503"] if request is None else _INFERENCE
        shown: Json = {
            "tags": ["inference"], "operationId": id_, "summary": summary, "parameters": [endpoint, *more],
            "responses": {
                "200": {"description": "As OpenAI answers.", "content": answer},
                **dict.fromkeys([*statuses, "default"], OPENAI_ERROR),
            },
        }  # fmt: skip
        if request is not None:
            shown["requestBody"] = {"required": True, "content": {JSON: {"schema": request}}}
        return shown

    return {
        f"{root}/chat/completions": {"post": operation("create_chat_completion", "Chat", _body("messages", _MESSAGES))},
        f"{root}/completions": {"post": operation("create_completion", "Complete a prompt", _body("prompt", _TEXTS))},
        f"{root}/embeddings": {"post": operation("create_embedding", "Embed texts", _body("input", _TEXTS, False))},
        f"{root}/models": {"get": operation("list_served_models", "List what the endpoint serves")},
        f"{root}/models/{{model}}": {
            "get": operation("show_served_model", "Show what the endpoint serves", None, name)
        },
    }


_INFERENCE = ["400", "401", "403", "404", "413", "415", "422", "429", "502", "503", "504"]
_MESSAGES = {
    "type": "array", "minItems": 1,
    "items": {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}}},
}  # fmt: skip
_TEXTS = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def _body(name: str, schema: Json, streams: bool = True) -> Json:
    """What OpenAI takes; everything else of it goes to the engine as it is."""
    properties: Json = {name: schema, "model": {"type": ["string", "null"], "description": "May be left out."}}
    if streams:
        properties["stream"] = {"type": ["boolean", "null"]}
        properties["max_tokens"] = {"type": ["integer", "null"]}
    return {"type": "object", "required": [name], "properties": properties, "additionalProperties": True}


_LIST = {
    "type": "object",
    "required": ["object", "data", "total", "next_cursor"],
    "properties": {
        "object": {"const": "list"},
        "data": {"type": "array", "items": {"type": "object", "additionalProperties": True}},
        "total": {"type": "integer"},
        "total_capped": {"type": "boolean", "description": "There, and true, when there are more than 10,000."},
        "next_cursor": {"type": ["string", "null"]},
    },
}
_NULLABLE = {"type": ["string", "null"]}
_OPENAI_ERROR = {
    "description": "An error as OpenAI's clients read it.",
    "content": {
        JSON: {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": _NULLABLE,
                            "code": _NULLABLE,
                        },
                    }
                },
            }
        }
    },
}
