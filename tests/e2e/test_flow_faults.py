"""kill -9 at every point of a flow: finished tasks do not run again, the result is right, who listens hears all, in order.

The points are those of the ledger: each task before it begins, and when its work is done and nobody knows. An ordinary run
takes a few of them.
"""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.e2e.conftest import Make
from tests.e2e.gate import Gate
from tests.e2e.instance import Stepway, alive, until
from tests.e2e.services import Services, running_services
from tests.e2e.test_flows import ended
from tests.serving import Fault, Server, send

TASKS = ("t1", "t2", "t3", "t4", "t5", "t6", "t7", "t8", "t9", "t10")
# A task that is more than one step has these beside its own.
INNER = ("t5[0]", "t5[2]", "t7:wait")
POINTS = [(key, state) for key in (*TASKS, *INNER) for state in ("running", "succeeded")]


class World(Server):
    """What the tasks ask, and where webhooks go. Answers with the last part of the path."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, Any]] = []
        self._told = threading.Lock()

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if request.path == "/hook":
            with self._told:
                self.told.append((request.headers["webhook-id"], json.loads(body)))
        send(request, 200, request.path.rpartition("/")[2].encode(), {"Content-Type": "text/plain"})

    def forget(self) -> None:
        self.calm()
        self.seen.clear()
        self.told.clear()

    def counted(self) -> Counter[str]:
        return Counter(one.path.removeprefix("/") for one in self.seen if one.path != "/hook")


@pytest.fixture
def world() -> Iterator[World]:
    with World() as server:
        yield server


def definition(url: str) -> dict[str, Any]:
    """Ten tasks, of which one is passed over, one is retried, one loops, and one waits for a person."""

    def ask(ref: str, word: str, **more: Any) -> dict[str, Any]:
        return {"ref": ref, "type": "http.request", "input": {"url": f"{url}/{word}"}, **more}

    return {
        "name": "ten tasks",
        "tasks": [
            ask("t1", "one"),
            {"ref": "t2", "type": "text.size", "input": {"text": "{{refs.t1.output.text}}"}},
            ask("t3", "never", condition={"left": "{{refs.t2.output.characters}}", "op": "gt", "right": 3}),
            ask("t4", "retried", retry={"attempts": 3, "delay": 0.1}),
            {"ref": "t5", "type": "flow.foreach", "input": {
                "items": ["a", "b", "c"], "concurrency": 1,
                "task": {"type": "http.request", "input": {"url": f"{url}/each-{{{{item}}}}"}},
            }},
            ask("t6", "six-{{refs.t5.output.count}}"),
            {"ref": "t7", "type": "flow.wait_event", "input": {"name": "answer"}},
            ask("t8", "{{refs.t7.output.data.word}}"),
            {"ref": "t9", "type": "text.template", "input": {
                "template": "\\{{a}}, \\{{b}}", "values": {"a": "{{refs.t8.output.text}}", "b": "{{refs.t6.output.text}}"},
            }},
            ask("t10", "ten"),
        ],
        "output": [
            {"name": "text", "type": "text", "value": "{{refs.t9.output.text}}"},
            {"name": "last", "type": "text", "value": "{{refs.t5.output.results.2.text}}"},
        ],
    }  # fmt: skip


def answered(stepway: Stepway, execution: str) -> None:
    """Give the answer that is waited for, as a person who sends it until somebody takes it."""
    until(lambda: _waits(stepway, execution), what="the wait for an answer")
    answer = stepway.ask("POST", f"/flow{execution}/events/answer", json={"word": "eight"})
    assert answer.status_code < 300, answer.text


def _waits(stepway: Stepway, execution: str) -> bool:
    tasks = {one["ref"]: one["status"] for one in stepway.get(f"/flow{execution}")["tasks"]}
    return tasks["t7"] in ("RUNNING", "COMPLETED")


def begun(stepway: Stepway, world: World) -> str:
    """A new execution of a new flow: its path."""
    world.fail(Fault("/retried", status=503))
    flow = stepway.post("/flow/workflows", definition(world.url))["workflow_id"]
    body = {"input": {}, "webhook_url": f"{world.url}/hook"}
    return f"/workflows/{flow}/executions/{stepway.post(f'/flow/workflows/{flow}/execute', body)['execution_id']}"


def is_late(key: str, state: str) -> bool:
    """Whether the point comes after the answer."""
    return _place(key) >= TASKS.index("t7") and (key, state) != ("t7:wait", "running")


def check(stepway: Stepway, world: World, execution: str, key: str, state: str) -> None:
    end = ended(stepway, execution)
    assert end["status"] == "COMPLETED", end
    assert end["output"] == {"text": "eight, six-3", "last": "each-c"}
    assert {one["ref"]: one["status"] for one in end["tasks"]} == {
        name: "SKIPPED" if name == "t3" else "COMPLETED" for name in TASKS
    }
    check_counts(world, key, state)
    check_webhooks(world)


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=2)
@pytest.mark.parametrize(("key", "state"), POINTS)
def test_a_kill_at_any_point(make: Make, world: World, key: str, state: str) -> None:
    stepway = make(trusted_hosts=f"127.0.0.1:{world.port}").start()
    with Gate(stepway.database(), "run_flow", key, state) as gate:
        execution = begun(stepway, world)
        late = is_late(key, state)
        if late:
            answered(stepway, execution)
        gate.wait()
        postgres = stepway.postgres()
        stepway.kill()
    until(lambda: not any(alive(pid) for pid in postgres), what="PostgreSQL to end")
    stepway.start()
    if not late:
        answered(stepway, execution)
    check(stepway, world, execution, key, state)


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with World() as server:
        yield server


@pytest.fixture(scope="module")
def services(shared_world: World) -> Iterator[Services]:
    with running_services({"trusted_hosts": f"127.0.0.1:{shared_world.port}"}, durable=True) as made:
        yield made


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=2)
@pytest.mark.parametrize(("key", "state"), POINTS)
def test_a_kill_of_services_at_any_point(services: Services, shared_world: World, key: str, state: str) -> None:
    """The flow service, its sidecar, and at every second point the app as well."""
    world = shared_world
    world.forget()
    victims = ["flow-0", *(["app-0"] if POINTS.index((key, state)) % 2 else [])]
    with Gate(services.database(), "run_flow", key, state) as gate:
        execution = begun(services, world)
        late = is_late(key, state)
        if late:
            answered(services, execution)
        gate.wait()
        for name in victims:
            services.kill_service(name)
        sidecar = services.made_of.replicas["flow-0"].daprd.name
        services.made_of.dapr.processes.kill(sidecar)
    services.made_of.dapr.processes.restart(sidecar)
    for name in reversed(victims):
        services.start_service(name)
    if not late:
        answered(services, execution)
    check(services, world, execution, key, state)


def _place(key: str) -> int:
    return TASKS.index(key.partition("[")[0].partition(":")[0])


def check_counts(world: World, key: str, state: str) -> None:
    """Each request was made once; only that of the very point may have been made once more, and at a step's begin that of
    the step before, whose success is recorded in the same commit.
    """
    wanted = {"one": 1, "retried": 2, "each-a": 1, "each-b": 1, "each-c": 1, "six-3": 1, "eight": 1, "ten": 1}
    counted = world.counted()
    assert counted.keys() == wanted.keys()
    more = {word for word in wanted if counted[word] > wanted[word]}
    at = {
        "t1": "one",
        "t4": "retried",
        "t5[0]": "each-a",
        "t5[2]": "each-c",
        "t6": "six-3",
        "t8": "eight",
        "t10": "ten",
    }
    before = {"t2": "one", "t5[0]": "retried", "t5[2]": "each-b", "t6": "each-c", "t7:wait": "six-3", "t9": "eight"}
    assert more <= {at.get(key), before.get(key) if state == "running" else None}, counted


def check_webhooks(world: World) -> None:
    """Each message at least once, under one id, in order."""
    until(lambda: any(body["type"] == "execution.completed" for _, body in world.told), what="the last webhook")
    names: dict[str, str] = {}
    for identity, body in world.told:
        assert names.setdefault(identity, body["type"]) == body["type"]
    assert len(set(names.values())) == len(names), world.told
    assert list(names.values()) == ["execution.running", "execution.completed"]
