"""`flow.subworkflow`: another flow as a task. The engine of flows does it."""

from stepway.tasks import Field, TaskType

TASK_TYPE = TaskType(
    name="flow.subworkflow",
    title="Run another flow",
    description="Starts an execution of another flow and waits for its end. Its failure fails the task.",
    inputs=(
        Field("workflow_id", "text", "The flow to run.", example="wf-4g7h8j9k"),
        Field("version", "number", "Its version; without it the current one.", required=False),
        Field("input", "object", "What the flow gets.", required=False, default={}),
    ),
    outputs=(
        Field("output", "object", "What the flow gives."),
        Field("execution_id", "text", "The execution that was started.", example="ex-1a2b3c4d"),
    ),
)
