"""One exchange with a chat model: what `llm.chat`, `openai.completion` and `openai.text.summarize` are made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic import Field as ModelField

from services.flow.openai_calls import DEFAULT_MODEL, provider_client, request_body, understood, usage_of
from services.flow.texts import clean, clean_json
from stepway.tasks import Context, TaskError


class _Message(BaseModel):
    role: str = "assistant"
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Answer(BaseModel):
    choices: list[_Choice] = ModelField(min_length=1)
    usage: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """`text` is empty where the model calls tools instead. `message` is as the provider gave it."""

    text: str
    message: dict[str, Any]
    usage: dict[str, Any]
    finish_reason: str


async def chat(
    context: Context,
    inputs: Mapping[str, Any],
    messages: list[Any],
    default_model: str | None = DEFAULT_MODEL,
) -> Said:
    """Raises `TaskError`; a model that refuses to answer is `refused_by_model`."""
    async with provider_client(context, inputs) as client:
        body = request_body(inputs, default_model)
        raw = await client.chat.completions.with_raw_response.create(messages=messages, **body)
        answer = understood(_Answer, raw.content)
    message = answer.choices[0].message
    if message.refusal and not message.content:
        raise TaskError("refused_by_model", f"The model refuses: {clean(message.refusal)[:500]}")
    if message.content is None and not message.tool_calls:
        raise TaskError("bad_answer", "The model has given no text.", retryable=True)
    text = clean(message.content or "")
    kept = message.model_dump(exclude_none=True) | {"content": text}
    return Said(
        text,
        {name: clean_json(part) for name, part in kept.items()},
        usage_of(answer.usage),
        answer.choices[0].finish_reason or "",
    )
