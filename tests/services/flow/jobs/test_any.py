"""Whatever is accepted as a flow comes to an end, whatever its tasks say of each other; what ends it is said in words."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.flow.jobs import run_flow
from services.flow.known import task_types
from shared.contracts.flows import FlowRun
from shared.db.engine import Database
from shared.flows.faults import FlowFaults
from shared.flows.validation import accept
from shared.jobs.declare import Registry
from shared.jobs.ledger import FINAL
from tests.services.flow.jobs.app import MemoryApp
from tests.services.flow.jobs.test_run_flow import ID, app, echo, registry
from tests.shared.jobs.engines import embedded

__all__ = ["app", "echo", "registry"]

Json = dict[str, Any]
GIVEN: Json = {"word": "steam", "list": [1, "two", {"three": 3}]}
OUTPUTS = {
    "text.size": ("characters", "words"), "text.truncate": ("text", "truncated"), "text.template": ("text",),
    "flow.foreach": ("results", "results.1", "results.0.characters", "count"), "flow.delay": (),
}  # fmt: skip


@st.composite
def flows(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Json:
    """Tasks that mostly fit together: what is left to chance is whether values are there, and of the right kind."""
    named = ["{{input.word}}", "{{input.list}}", "{{input.list.0}}", "{{input.list.2.three}}", "{{input.list.7}}"]
    tasks: list[Json] = []

    def text(*more: str) -> str:
        """Rendered, so that it fits a text whatever it names."""
        return str(draw(st.sampled_from(["some text", "", *(f"<{one}>" for one in [*named, *more])])))

    def kind(depth: int = 0, *more: str) -> Json:
        match draw(st.sampled_from([*OUTPUTS][: 5 if depth == 0 else 3])):
            case "text.size":
                return {"type": "Text.Size", "input": {"text": text(*more)}}
            case "text.truncate":
                return {
                    "type": "text.truncate",
                    "input": {"text": text(*more), "max_characters": draw(st.integers(0, 5))},
                }
            case "text.template":
                values = {"a": draw(st.sampled_from([*named, *more, 1, None]))}
                return {"type": "text.template", "input": {"template": "\\{{a}} \\{{b}}", "values": values}}
            case "flow.delay":
                return {"type": "flow.delay", "input": {"seconds": draw(st.sampled_from([0, 0.01]))}}
            case _:
                items = draw(st.sampled_from(["{{input.list}}", [], [[1], None, "x"]]))
                body = {**kind(1, "{{item}}", "{{index}}", "{{item.three}}"), **more_of("continue", "fail")}
                return {"type": "flow.foreach", "input": {"items": items, "task": body, "concurrency": 2}}

    def more_of(*errors: str) -> Json:
        condition = draw(st.sampled_from([
            None, True, False, {"left": draw(st.sampled_from(named)), "op": draw(st.sampled_from(["eq", "lt", "in", "exists"]))},
        ]))  # fmt: skip
        if isinstance(condition, dict) and condition["op"] != "exists":
            condition["right"] = draw(st.sampled_from([1, "steam", None, "{{input.list}}"]))
        return {"on_error": draw(st.sampled_from(errors))} | ({} if condition is None else {"condition": condition})

    for ref in ("a", "b", "c", "d")[: draw(st.integers(1, 4))]:
        task = {"ref": ref, **kind(), **more_of("fail", "continue", "default")}
        if task["on_error"] == "default":
            task["fallback"] = {}
        tasks.append(task)
        named += [f"{{{{refs.{ref}.output.{one}}}}}" for one in OUTPUTS[task["type"].lower()]]
    output = [{"name": "x", "type": "any", "value": draw(st.sampled_from(named))}]
    execution = draw(st.sampled_from(["sequential", "parallel"]))
    return {
        "name": "any", "tasks": tasks, "output": output, "execution": execution,
        "input": [{"name": "word", "type": "text"}, {"name": "list", "type": "list"}],
    }  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=flows())
async def test_any_flow_is_refused_or_comes_to_an_end(
    database: Database, registry: Registry, app: MemoryApp, body: Json
) -> None:
    try:
        _, flow = accept(body, task_types())
    except FlowFaults:
        return
    async with embedded(database, registry) as engine:
        run = FlowRun(flow_id=ID, version=1, flow=flow, inputs=GIVEN)
        view = await engine.until(await engine.submit(run_flow, run))
    assert view["state"] in FINAL - {"cleanup_required"}
    assert (view["error"] or {}).get("code") != "internal", view["error"]
