"""`json.validate`: whether a value is as a JSON Schema says."""

from collections.abc import Mapping
from typing import Any

from services.flow.parsing.computed import computed
from services.flow.parsing.messages import MAX_ERRORS, Question, Verdict
from stepway.tasks import Context, Field, TaskError, TaskType

SECONDS = 10.0
_TARGET = "services.flow.parsing.schema:validate"


async def run(context: Context, inputs: dict[str, Any]) -> Mapping[str, Any]:
    schema = inputs["schema"]
    if not isinstance(schema, dict | bool):
        raise TaskError("bad_schema", "`schema` is not a JSON Schema: that is an object, true or false.")
    question = Question(value=inputs["value"], schema_=schema)
    verdict = await computed(_TARGET, question, Verdict, work="The validation", seconds=SECONDS)
    return {"valid": not verdict.errors, "errors": [error.model_dump() for error in verdict.errors]}


TASK_TYPE = TaskType(
    name="json.validate",
    title="Validate JSON",
    description=(
        "Checks a value against a JSON Schema (2020-12, unless `$schema` names another draft). A value that does not fit "
        "does not fail the task: a condition can ask for `valid`."
    ),
    inputs=(
        Field("value", "any", "What to check."),
        Field("schema", "any", "The JSON Schema; it refers to nothing outside itself.", example={"type": "object"}),
    ),
    outputs=(
        Field("valid", "boolean", "Whether it fits."),
        Field("errors", "list", f"What does not fit, up to {MAX_ERRORS}.", example=[{"path": "$.age", "message": "…"}]),
    ),
    run=run,
)
