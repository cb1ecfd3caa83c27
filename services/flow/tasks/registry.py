"""Every type of task that there is: ours, and those that installed packages add by the entry point group `stepway.tasks`.

A package names a `TaskType` or a list of them. What is wrong with a package's types is logged and leaves out that type only.
"""

import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

import structlog

from services.flow.tasks import (
    flow_delay,
    flow_foreach,
    flow_subworkflow,
    flow_wait_event,
    http_request,
    json_transform,
    json_validate,
    llm_chat,
    llm_embeddings,
    openai_audio_transcription,
    openai_audio_tts,
    openai_completion,
    openai_text_summarize,
    pdf_extract_text,
    text_size,
    text_template,
    text_truncate,
    web_download,
    web_extract_text,
)
from stepway.tasks import ENTRY_POINTS, VALUE_TYPES, Field, TaskType

log = structlog.get_logger(__name__)

TASK_TYPES: tuple[TaskType, ...] = (
    web_download.TASK_TYPE,
    web_extract_text.TASK_TYPE,
    openai_text_summarize.TASK_TYPE,
    openai_completion.TASK_TYPE,
    openai_audio_tts.TASK_TYPE,
    openai_audio_transcription.TASK_TYPE,
    llm_chat.TASK_TYPE,
    llm_embeddings.TASK_TYPE,
    http_request.TASK_TYPE,
    json_transform.TASK_TYPE,
    json_validate.TASK_TYPE,
    text_size.TASK_TYPE,
    text_truncate.TASK_TYPE,
    text_template.TASK_TYPE,
    pdf_extract_text.TASK_TYPE,
    flow_foreach.TASK_TYPE,
    flow_subworkflow.TASK_TYPE,
    flow_delay.TASK_TYPE,
    flow_wait_event.TASK_TYPE,
)

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", re.ASCII)
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}", re.ASCII)
_ENGINE = "flow"  # the family of what the engine itself does


def find_all() -> dict[str, TaskType]:
    """By name: all of ours, then those of packages. Looks at what is installed, and imports it, at each call."""
    found = {one.name: one for one in TASK_TYPES}
    spellings = {_squeezed(name) for name in found}
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda point: (_package(point), point.name)):
        for one in _loaded(point):
            fault = fault_of(one)
            if fault is None and _squeezed(one.name) in spellings:
                fault = "there is another type of this name"
            if fault is not None:
                log.warning("task type left out", package=_package(point), entry_point=point.name, reason=fault)
                continue
            found[one.name] = one
            spellings.add(_squeezed(one.name))
    return found


def fault_of(one: TaskType) -> str | None:
    """What keeps a package's type from being used, or None."""
    if not isinstance(one.name, str) or not _NAME.fullmatch(one.name) or len(one.name) > 128:
        return "its name is not `family.action` in lower case"
    if one.name.partition(".")[0] == _ENGINE:
        return f"the family `{_ENGINE}` is of the engine alone"
    if not callable(one.run):
        return f"{one.name} has nothing to run"
    for fields in (one.inputs, one.outputs):
        if fault := _fault_of_fields(fields):
            return f"{one.name} {fault}"
    if any(one.input(name) is None for group in one.one_of for name in group):
        return f"{one.name} has a group of inputs that names one that is not there"
    if not (
        isinstance(one.timeout, int | float) and one.timeout > 0 and isinstance(one.attempts, int) and one.attempts > 0
    ):
        return f"{one.name} has a timeout or attempts that are not above zero"
    return None


def _fault_of_fields(fields: tuple[Field, ...]) -> str | None:
    if not isinstance(fields, tuple | list) or not all(isinstance(one, Field) for one in fields):
        return "has inputs or outputs that are not fields"
    for one in fields:
        if not isinstance(one.name, str) or not _FIELD.fullmatch(one.name):
            return "has a field without a proper name"
        if one.type not in VALUE_TYPES:
            return f"has a field `{one.name}` of no known type"
    if len({one.name for one in fields}) != len(fields):
        return "has two fields of one name"
    return None


def _loaded(point: EntryPoint) -> Iterator[TaskType]:
    try:
        given = point.load()
        several = list(given) if isinstance(given, list | tuple) else [given]
    except (Exception, SystemExit) as error:  # whatever a stranger's import does: its types are not there
        reason = f"it cannot be imported: {type(error).__name__}: {error}"[:500]
        log.warning("task type left out", package=_package(point), entry_point=point.name, reason=reason)
        return
    for one in several:
        if isinstance(one, TaskType):
            yield one
        else:
            reason = f"it names a {type(one).__name__}, not a TaskType"
            log.warning("task type left out", package=_package(point), entry_point=point.name, reason=reason)


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


def _squeezed(name: str) -> str:
    """Names are told apart by letters and digits only: a flow may spell `web.extract_text` as `Web.ExtractText`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
