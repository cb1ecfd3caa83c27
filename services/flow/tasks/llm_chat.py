"""`llm.chat`: a conversation with a chat model, of an endpoint of Stepway or of a provider."""

from collections.abc import Mapping
from typing import Any

from services.flow.chatting import chat
from services.flow.openai_calls import PARAMETERS, PROVIDER, USAGE, model_field
from stepway.tasks import Context, Field, TaskError, TaskType

_ROLES = ("system", "developer", "user", "assistant", "tool")


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    prompt = inputs.get("prompt")
    messages = _checked(inputs["messages"]) if prompt is None else [{"role": "user", "content": prompt}]
    if inputs.get("system") is not None:
        messages = [{"role": "system", "content": inputs["system"]}, *messages]
    said = await chat(context, inputs, messages, default_model=None)
    return {"text": said.text, "message": said.message, "finish_reason": said.finish_reason, "usage": said.usage}


def _checked(messages: list[Any]) -> list[dict[str, Any]]:
    if not messages:
        raise TaskError("bad_messages", "`messages` is empty.")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise TaskError("bad_messages", f"`messages[{number}]` has no `role` of {', '.join(_ROLES)}.")
    return messages


TASK_TYPE = TaskType(
    name="llm.chat",
    title="Chat with a model",
    description=(
        "Sends messages to a chat model: of an endpoint (`endpoint`), of any OpenAI-compatible server (`base_url`), "
        "or of the installation's default provider."
    ),
    inputs=(
        Field("prompt", "text", "One message of the user.", required=False, example="Name three colours."),
        Field(
            "messages",
            "list",
            "The conversation; either this or `prompt` is given.",
            required=False,
            example=[{"role": "user", "content": "Name three colours."}],
        ),
        Field("system", "text", "How the model should behave; comes before the messages.", required=False),
        model_field(None),
        PARAMETERS,
        *PROVIDER,
    ),
    outputs=(
        Field("text", "text", "What the model says; empty where it calls tools instead."),
        Field("message", "object", "The whole message.", example={"role": "assistant", "content": "Red, green, blue."}),
        Field("finish_reason", "text", "Why the model stopped.", example="stop"),
        USAGE,
    ),
    run=run,
    one_of=(("prompt", "messages"),),
    timeout=600.0,
    attempts=3,
)
