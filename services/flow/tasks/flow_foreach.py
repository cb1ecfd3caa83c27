"""`flow.foreach`: one task for each item of a list. The engine of flows does it."""

from stepway.tasks import Field, TaskType

TASK_TYPE = TaskType(
    name="flow.foreach",
    title="For each item",
    description="Runs one task for each item of a list, several at a time. Its inputs may use {{item}} and {{index}}.",
    inputs=(
        Field("items", "list", "What to go through.", example=["a", "b"]),
        Field(
            "task",
            "object",
            "The task: its `type` and its `input`, and what else a task may have.",
            example={"type": "text.size", "input": {"text": "{{item}}"}},
        ),
        Field("concurrency", "number", "How many run at a time, 1 to 100.", required=False, default=10),
    ),
    outputs=(
        Field("results", "list", "The outputs for each item, in the list's order.", example=[{"characters": 1}]),
        Field("count", "number", "How many items there were.", example=2),
    ),
)
