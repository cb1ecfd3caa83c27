"""`flow.delay`: a pause. The engine of flows does it."""

from stepway.tasks import Field, TaskType

TASK_TYPE = TaskType(
    name="flow.delay",
    title="Wait some time",
    description="Pauses the execution, which holds nothing meanwhile and survives restarts.",
    inputs=(Field("seconds", "number", "How long: 0 to 2592000 (30 days).", example=60),),
    outputs=(),
)
