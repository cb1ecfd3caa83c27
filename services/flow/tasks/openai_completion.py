"""`openai.completion`: what a chat model says to one prompt."""

from collections.abc import Mapping
from typing import Any

from services.flow.chatting import chat
from services.flow.openai_calls import PARAMETERS, PROVIDER, USAGE, model_field
from stepway.tasks import Context, Field, TaskType


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    prompt = inputs.get("prompt")
    if prompt is None:
        prompt = inputs["text"]
    said = await chat(context, inputs, [{"role": "user", "content": prompt}])
    return {"completion": said.text, "usage": said.usage}


TASK_TYPE = TaskType(
    name="openai.completion",
    title="Complete a prompt",
    description="Sends one prompt to a chat model of an OpenAI-compatible server.",
    inputs=(
        Field("prompt", "text", "What to say to the model.", required=False, example="Name three colours."),
        Field("text", "text", "The same; one of the two is given.", required=False),
        model_field(),
        PARAMETERS,
        *PROVIDER,
    ),
    outputs=(Field("completion", "text", "What the model says."), USAGE),
    run=run,
    one_of=(("prompt", "text"),),
    timeout=600.0,
    attempts=3,
)
