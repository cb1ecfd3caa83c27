"""`openai.audio.transcription`: what is said in a recording."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from services.flow.openai_calls import PARAMETERS, PROVIDER, model_field, provider_client, request_body, understood
from services.flow.texts import clean
from stepway.tasks import Context, Field, TaskType

DEFAULT_MODEL = "whisper-1"
MAX_BYTES = 25 * 1024**2  # what OpenAI takes


class _Answer(BaseModel):
    text: str


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    file = inputs["file"]
    audio = await context.read(file, MAX_BYTES)
    name, media_type = str(file.get("name") or "audio"), str(file.get("media_type") or "application/octet-stream")
    async with provider_client(context, inputs) as client:
        body = request_body(inputs, DEFAULT_MODEL, own=frozenset({"response_format", "language"}))
        if inputs.get("language"):
            body["language"] = inputs["language"]
        raw = await client.audio.transcriptions.with_raw_response.create(
            file=(name, audio, media_type), response_format="json", **body
        )
        answer = understood(_Answer, raw.content)
    return {"text": clean(answer.text)}


TASK_TYPE = TaskType(
    name="openai.audio.transcription",
    title="Transcribe speech",
    description=f"Has a model of an OpenAI-compatible server write down what is said in a file of up to {MAX_BYTES >> 20} MiB.",
    inputs=(
        Field("file", "file", "The recording."),
        model_field(DEFAULT_MODEL),
        Field("language", "text", "The language that is spoken, by its ISO 639-1 code.", required=False, example="en"),
        PARAMETERS,
        *PROVIDER,
    ),
    outputs=(Field("text", "text", "What is said."),),
    run=run,
    timeout=600.0,
    attempts=3,
)
