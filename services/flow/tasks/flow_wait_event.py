"""`flow.wait_event`: a pause until somebody answers. The engine of flows does it."""

from stepway.tasks import Field, TaskType

TASK_TYPE = TaskType(
    name="flow.wait_event",
    title="Wait for an answer",
    description="Pauses the execution until a person or a program answers it.",
    inputs=(
        Field("name", "text", "What is waited for; the answer names it.", example="approval"),
        Field(
            "timeout", "number", "Seconds after which the task fails; without it the wait has no end.", required=False
        ),
        Field("message", "text", "What to ask of who answers.", required=False, example="Publish this summary?"),
    ),
    outputs=(Field("data", "any", "What the answer brings.", example={"approved": True}),),
)
