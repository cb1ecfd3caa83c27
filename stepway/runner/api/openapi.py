"""The interface as an OpenAPI document, with each flow's own start event as the body of its runs."""

from collections.abc import Iterable
from typing import Any

from workflows.events import Event

from stepway.runner.api import describe
from stepway.runner.live import Served

_TEXT = {"type": "string"}
_ANYTHING: dict[str, Any] = {"type": "object", "additionalProperties": True}


def document(flows: Iterable[Served], root: str) -> dict[str, Any]:
    """`root`: the path where the app is mounted."""
    schemas: dict[str, Any] = {"Error": _object({"detail": _TEXT}), "Envelope": _ENVELOPE, "Handler": _HANDLER}
    paths = dict(_PATHS)
    for served in flows:
        paths |= _runs(served, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Workflow server", "version": "1"},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _runs(served: Served, schemas: dict[str, Any]) -> dict[str, Any]:
    name = served.name
    body = _object(
        {
            "start_event": _event_schema(name, served.workflow.start_event_class, schemas),
            "context": {**_ANYTHING, "description": "A serialized context to begin with"},
            "handler_id": {**_TEXT, "description": "A handler to make or, when its run has ended, to go on with"},
            "kwargs": {**_ANYTHING, "description": "The start event's fields, where no start_event is given"},
        }
    )
    operation = {"tags": [name], "requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
    refused = {"400": _ERROR, "409": _ERROR, "413": _ERROR, "503": _ERROR}
    return {
        f"/workflows/{name}/run": {
            "post": operation
            | {
                "summary": f"Run {name} and wait for its end",
                "responses": {"200": _handler("It has completed"), "500": _handler("It has failed"), **refused},
            }
        },
        f"/workflows/{name}/run-nowait": {
            "post": operation
            | {"summary": f"Start {name}", "responses": {"200": _handler("It is running"), **refused}},
        },
    }


def _event_schema(name: str, event: type[Event], schemas: dict[str, Any]) -> dict[str, Any]:
    prefix = "".join(character if character.isalnum() and character.isascii() else "_" for character in name)
    made = describe.schema_of(event, ref_template=f"#/components/schemas/{prefix}.{{model}}")
    schemas |= {f"{prefix}.{key}": value for key, value in made.pop("$defs", {}).items()}
    return made


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _content(schema: dict[str, Any], description: str, kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _handler(description: str) -> dict[str, Any]:
    return _content({"$ref": "#/components/schemas/Handler"}, description)


def _query(name: str, description: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema or _TEXT}


def _get(
    summary: str, answer: dict[str, Any], *parameters: dict[str, Any], **responses: dict[str, Any]
) -> dict[str, Any]:
    others = {code.removeprefix("_"): one for code, one in responses.items()}
    return {"get": {"summary": summary, "parameters": list(parameters), "responses": {"200": answer, **others}}}


_ENVELOPE = _object(
    {
        "value": _ANYTHING,
        "qualified_name": {"type": ["string", "null"]},
        "type": {**_TEXT, "description": "The event's class"},
        "types": {"type": ["array", "null"], "items": _TEXT, "description": "Its parents, nearest first"},
    }
)
_TIME = {"type": ["string", "null"], "format": "date-time"}
_HANDLER = _object(
    {
        "handler_id": _TEXT,
        "workflow_name": _TEXT,
        "run_id": _TEXT,
        "error": {"type": ["string", "null"]},
        "result": {"anyOf": [{"$ref": "#/components/schemas/Envelope"}, {"type": "null"}]},
        "status": {"enum": ["running", "completed", "failed", "cancelled"]},
        "started_at": _TIME,
        "updated_at": _TIME,
        "completed_at": _TIME,
    }
)
_ERROR = _content({"$ref": "#/components/schemas/Error"}, "Why it was not done")
_ID = {"name": "handler_id", "in": "path", "required": True, "schema": _TEXT}
_FLOW = {"name": "name", "in": "path", "required": True, "schema": _TEXT}
_FLAG = {"type": "boolean"}
_MANY = {"type": "array", "items": _TEXT}
_HANDLER_CODES = {"_202": _handler("Running"), "_404": _ERROR, "_500": _handler("Failed or cancelled")}

_PATHS: dict[str, Any] = {
    "/health": _get("Whether the server takes runs", _content(_object({"status": _TEXT}), "It does"), _503=_ERROR),
    "/workflows": _get("The workflows' names", _content(_object({"workflows": _MANY}), "Names")),
    "/workflows/{name}/schema": _get(
        "Schemas of its start and stop events", _content(_object({"start": _ANYTHING, "stop": _ANYTHING}), "Schemas"),
        _FLOW, _404=_ERROR,
    ),
    "/workflows/{name}/events": _get(
        "Schemas of its events", _content(_object({"events": {"type": "array", "items": _ANYTHING}}), "Schemas"),
        _FLOW, _404=_ERROR,
    ),
    "/workflows/{name}/representation": _get(
        "Its graph of steps and events", _content(_object({"graph": _ANYTHING}), "Graph"), _FLOW, _404=_ERROR
    ),
    "/handlers": _get(
        "Handlers, newest first",
        _content(
            _object({"handlers": {"type": "array", "items": {"$ref": "#/components/schemas/Handler"}}, "next_cursor": _TEXT}),
            "A page of handlers",
        ),
        _query("status", "Repeatable", _MANY), _query("workflow_name", "Repeatable", _MANY),
        _query("limit", "1 to 1000", {"type": "integer"}), _query("cursor", "`next_cursor` of the page before"),
    ),
    "/handlers/{handler_id}": _get("A handler", _handler("Completed"), _ID, **_HANDLER_CODES),
    "/handlers/{handler_id}/cancel": {
        "post": {
            "summary": "End a run",
            "parameters": [_ID, _query("purge", "Forget the handler, also one that has ended", _FLAG)],
            "responses": {"200": _content(_object({"status": _TEXT}), "cancelled or deleted"), "404": _ERROR},
        }
    },
    "/results/{handler_id}": _get("A handler, its result bare", _handler("Completed"), _ID, **_HANDLER_CODES),
    "/events/{handler_id}": _get(
        "The events of a run as they come",
        {
            "description": "Envelopes",
            "content": {kind: {"schema": _TEXT} for kind in ("text/event-stream", "application/x-ndjson")},
        },
        _ID, _query("sse", "Server-Sent Events (true), or lines of JSON", _FLAG),
        _query("after_sequence", "A number, `now` (the default), or -1 for all"),
        _query("include_internal", "The library's own events too", _FLAG),
        _query("include_qualified_name", "Name modules", _FLAG),
        _204={"description": "The run is over and nothing is left"}, _400=_ERROR, _404=_ERROR,
    )
    | {
        "post": {
            "summary": "Give a run an event",
            "parameters": [_ID],
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": _object({"event": {"anyOf": [_ANYTHING, _TEXT]}, "step": _TEXT}) | {"required": ["event"]}
                    }
                },
            },
            "responses": {
                "200": _content(_object({"status": _TEXT}), "sent"), "400": _ERROR, "404": _ERROR, "409": _ERROR,
            },
        }
    },
}  # fmt: skip
