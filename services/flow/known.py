"""The types of tasks that this process knows: looked for once, as looking imports what others have installed."""

from collections.abc import Mapping
from functools import cache

from services.flow.tasks.registry import find_all
from stepway.tasks import TaskType


@cache
def task_types() -> Mapping[str, TaskType]:
    """By name."""
    return find_all()
