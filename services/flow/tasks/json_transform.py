"""`json.transform`: another shape of a value, by JMESPath."""

from collections.abc import Mapping
from typing import Any

from services.flow.parsing.computed import computed
from services.flow.parsing.messages import MAX_EXPRESSION, Found, Query
from services.flow.texts import clean_json
from stepway.tasks import Context, Field, TaskError, TaskType

SECONDS = 10.0
_TARGET = "services.flow.parsing.query:search"


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    expression = inputs["expression"]
    if not 1 <= len(expression.encode()) <= MAX_EXPRESSION:
        raise TaskError("bad_expression", f"The expression has 1 to {MAX_EXPRESSION} bytes.")
    query = Query(expression=expression, value=inputs["value"])
    found = await computed(_TARGET, query, Found, work="The expression", seconds=SECONDS)
    return {"result": clean_json(found.result)}


TASK_TYPE = TaskType(
    name="json.transform",
    title="Transform JSON",
    description="Selects and reshapes parts of a value by a JMESPath expression. The result has 1 MiB at most.",
    inputs=(
        Field("value", "any", "What to look into.", example={"items": [{"name": "a"}, {"name": "b"}]}),
        Field("expression", "text", "In JMESPath (jmespath.org), up to 4 KiB.", example="items[].name"),
    ),
    outputs=(Field("result", "any", "What the expression finds; null where it finds nothing.", example=["a", "b"]),),
    run=run,
)
