"""`llm.embeddings`: texts as vectors."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from services.flow.openai_calls import (
    PARAMETERS,
    PROVIDER,
    USAGE,
    model_field,
    provider_client,
    request_body,
    understood,
    usage_of,
)
from stepway.tasks import Context, Field, TaskError, TaskType

MAX_TEXTS = 2048
MAX_ANSWER = 64 * 1024**2  # bytes


class _Vector(BaseModel):
    index: int
    embedding: list[float]


class _Answer(BaseModel):
    data: list[_Vector]
    usage: dict[str, Any] | None = None


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    given = inputs["input"]
    texts = given if isinstance(given, list) else [given]
    if not 1 <= len(texts) <= MAX_TEXTS or not all(isinstance(text, str) and text for text in texts):
        raise TaskError("bad_input", f"`input` is a text, or a list of 1 to {MAX_TEXTS} texts, none of them empty.")
    async with provider_client(context, inputs) as client:
        body = request_body(inputs, default_model=None)
        raw = await client.embeddings.with_raw_response.create(input=texts, encoding_format="float", **body)
        answer = understood(_Answer, raw.content, MAX_ANSWER)
    vectors = {one.index: one.embedding for one in answer.data}
    if sorted(vectors) != list(range(len(texts))):
        raise TaskError("bad_answer", f"The provider has not given one vector for each of the {len(texts)} texts.")
    return {"embeddings": [vectors[index] for index in range(len(texts))], "usage": usage_of(answer.usage)}


TASK_TYPE = TaskType(
    name="llm.embeddings",
    title="Embed texts",
    description="Has an embedding model of an endpoint or of an OpenAI-compatible server turn texts into vectors.",
    inputs=(
        Field("input", "any", "A text, or a list of texts.", example=["first", "second"]),
        model_field(None),
        PARAMETERS,
        *PROVIDER,
    ),
    outputs=(Field("embeddings", "list", "One vector per text, in their order.", example=[[0.1, -0.2]]), USAGE),
    run=run,
    timeout=300.0,
    attempts=3,
)
