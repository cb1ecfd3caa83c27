"""`openai.audio.tts`: a text as speech."""

from collections.abc import Mapping
from typing import Any

from services.flow.openai_calls import PARAMETERS, PROVIDER, model_field, provider_client, request_body
from stepway.tasks import Context, Field, TaskError, TaskType

DEFAULT_MODEL = "tts-1"
_CHUNK = 64 * 1024
_MEDIA_TYPES = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip
_NO_AUDIO = ("application/json", "text/", "application/problem+json")


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    if not inputs["text"].strip():
        raise TaskError("no_text", "`text` is empty: there is nothing to say.")
    kind: Any = inputs.get("format") or "mp3"
    async with provider_client(context, inputs) as client:
        body = request_body(inputs, DEFAULT_MODEL, own=frozenset({"response_format"}))
        speech = client.audio.speech.with_streaming_response.create(
            input=inputs["text"], voice=inputs.get("voice") or "alloy", response_format=kind, **body
        )
        async with speech as answer:
            said = answer.headers.get("content-type", "").lower()
            if said.startswith(_NO_AUDIO):
                raise TaskError("bad_answer", "The provider has answered with text instead of audio.")
            audio = await context.save(f"speech.{kind}", _MEDIA_TYPES[kind], answer.iter_bytes(_CHUNK))
    if not audio["size"]:
        raise TaskError("bad_answer", "The provider has answered with no audio.", retryable=True)
    return {"audio": audio}


TASK_TYPE = TaskType(
    name="openai.audio.tts",
    title="Speak a text",
    description="Has a speech model of an OpenAI-compatible server read a text aloud.",
    inputs=(
        Field("text", "text", "What to say.", example="Hello, world!"),
        Field("voice", "text", "Whose voice.", required=False, default="alloy", example="alloy"),
        model_field(DEFAULT_MODEL),
        Field("format", "text", "The kind of the file.", required=False, default="mp3", choices=tuple(_MEDIA_TYPES)),
        PARAMETERS,
        *PROVIDER,
    ),
    outputs=(Field("audio", "file", "The speech."),),
    run=run,
    timeout=600.0,
    attempts=3,
)
