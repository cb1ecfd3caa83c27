"""What a flow is, as data: the JSON schemas of its events, and its graph of steps. `routes` serves it, `page` draws it."""

from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaValue
from workflows import Workflow
from workflows.context.serializers import BaseSerializer, JsonSerializer, PickleSerializer
from workflows.events import Event
from workflows.representation import get_workflow_representation

# Where a flow's resources come from may be a secret's place, and what they hold a secret.
_PRIVATE = ("source_file", "source_line", "config_file", "config_value")


def schema(workflow: Workflow) -> dict[str, Any]:
    return {"start": schema_of(workflow.start_event_class), "stop": schema_of(workflow.stop_event_class)}


def event_schemas(events: Iterable[type[Event]]) -> dict[str, Any]:
    return {"events": [schema_of(event) for event in events]}


def schema_of(event: type[Event], ref_template: str = DEFAULT_REF_TEMPLATE) -> dict[str, Any]:
    """The JSON schema of an event's fields; a field of a type that JSON schema has no words for may be anything."""
    return event.model_json_schema(ref_template=ref_template, schema_generator=_Lenient)


def graph(workflow: Workflow) -> dict[str, Any]:
    """Steps, events, resources and what is outside, and the edges between them, as the library has them."""
    made = get_workflow_representation(workflow).model_dump(mode="json")
    for node in made["nodes"]:
        for name in _PRIVATE:
            if node.get(name) is not None:
                node[name] = None
    return {"graph": made}


def reads_only_known(serializer: BaseSerializer) -> bool:
    """Whether a flow's serializer makes objects of listed classes only, so that it may read what a client sends."""
    return (
        isinstance(serializer, JsonSerializer)
        and not isinstance(serializer, PickleSerializer)
        and serializer._allowed_type_names is not None
    )


class _Lenient(GenerateJsonSchema):
    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}
