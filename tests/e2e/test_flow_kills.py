"""kill -9 of the app, the flow service and its sidecar under what starts executions: sub-flows, schedules, signed messages.

Two replicas of the app. Sub-flows are killed at points of the ledger (`tests.e2e.gate`), all else by seeded chaos.
Each finished task is done once, each time and each message starts one execution, and no sub-flow is left running.
"""

import hashlib
import hmac
import itertools
import json
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from tests.e2e.bots import Asker
from tests.e2e.chaos import Chaos, Victim
from tests.e2e.gate import Gate
from tests.e2e.instance import PATIENCE, until
from tests.e2e.services import Services, running_services
from tests.e2e.test_chaos import of_services
from tests.e2e.test_flow_faults import World
from tests.e2e.test_flows import ended

SEEDS = range(5)
APPS = ("app-0", "app-1")
KILLS = 8 if os.environ.get("STEPWAY_FAULTS") == "all" else 3
BOTS = 4
ITEMS = ("a", "b", "c")
WORDS = ("s", *ITEMS)  # one for each sub-flow

PARENT_KEYS = ("first", "sub:start", "sub:wait", "sub", "each[1]:start", "each[1]:wait", "each[1]", "each", "last")
CHILD_KEYS = ("begin", "pause:wait", "end")
POINTS = [(key, state) for key in (*PARENT_KEYS, *CHILD_KEYS) for state in ("running", "succeeded")]
# What is killed there, one after the other by the point's number; the sidecar goes with its service.
HIT: tuple[tuple[str, ...], ...] = (("flow-0", "daprd-flow-0"), ("flow-0", "daprd-flow-0", *APPS), APPS)


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with World() as server:
        yield server


@pytest.fixture
def world(shared_world: World) -> World:
    shared_world.forget()
    return shared_world


@pytest.fixture(scope="module")
def services(shared_world: World) -> Iterator[Services]:
    settings = {"trusted_hosts": f"127.0.0.1:{shared_world.port}"}
    with running_services(settings, replicas={"app": 2}, durable=True) as made:
        yield made


def victims_of(services: Services, *names: str) -> list[Victim]:
    return [one for one in of_services(services) if one.name in names]


def together(victims: Sequence[Victim]) -> Victim:
    """All of them at once."""

    def kill() -> None:
        for one in victims:
            one.kill()

    def start() -> None:
        for one in victims:
            one.start()

    return Victim(
        " and ".join(one.name for one in victims), kill, start, ready=lambda: all(one.ready() for one in victims)
    )


@contextmanager
def chaos(victims: Sequence[Victim], seed: int) -> Iterator[Chaos]:
    """Kills go on beside the block; after it all are back, and as many were killed as should be."""
    at_once = threading.Event()
    at_once.set()
    thread = Chaos(victims, seed, KILLS, at_once)
    thread.start()
    try:
        yield thread
        assert thread.over.wait(PATIENCE)
    finally:
        thread.end()
    assert len(thread.killed) == KILLS


def execution_of(flow: str, answer: dict[str, Any]) -> str:
    return f"/workflows/{flow}/executions/{answer['execution_id']}"


def made_flow(services: Services, name: str, tasks: list[dict[str, Any]], **more: Any) -> str:
    return str(services.post("/flow/workflows", {"name": name, "tasks": tasks, **more})["workflow_id"])


def executions(services: Services, flow: str) -> list[tuple[str, str]]:
    """(id, status) of all that there are of a flow."""
    statement = (
        "SELECT e.slug, e.status FROM flow.execution e JOIN flow.flow f ON f.id = e.flow_id WHERE f.slug = %s "
        "ORDER BY e.created_at"
    )
    return [(slug, status) for slug, status in services.sql(statement, flow)]


# ---- sub-flows


@dataclass(frozen=True)
class Family:
    """A flow that calls another, once by itself and once for each item."""

    parent: str
    child: str


def family(services: Services, world: World) -> Family:
    def ask(ref: str, word: str) -> dict[str, Any]:
        return {"ref": ref, "type": "http.request", "input": {"url": f"{world.url}/{word}"}}

    child = made_flow(
        services, "child",
        [ask("begin", "begin-{{input.word}}"), {"ref": "pause", "type": "flow.delay", "input": {"seconds": 0.2}},
         ask("end", "end-{{input.word}}")],
        input=[{"name": "word", "type": "text"}],
        output=[{"name": "text", "type": "text", "value": "{{refs.begin.output.text}} {{refs.end.output.text}}"}],
    )  # fmt: skip
    called = {"workflow_id": child, "input": {"word": "{{input.who}}-s"}}
    each = {"type": "flow.subworkflow", "input": {"workflow_id": child, "input": {"word": "{{input.who}}-{{item}}"}}}
    parent = made_flow(
        services, "parent",
        [ask("first", "first-{{input.who}}"), {"ref": "sub", "type": "flow.subworkflow", "input": called},
         {"ref": "each", "type": "flow.foreach", "input": {"items": list(ITEMS), "concurrency": 2, "task": each}},
         ask("last", "last-{{input.who}}")],
        input=[{"name": "who", "type": "text"}],
        output=[{"name": "sub", "type": "text", "value": "{{refs.sub.output.output.text}}"},
                {"name": "each", "type": "list", "value": "{{refs.each.output.results}}"}],
    )  # fmt: skip
    return Family(parent, child)


def check_parent(services: Services, made: Family, execution: str, who: str) -> None:
    """Its result is that of its four sub-flows, each its own."""
    end = ended(services, execution)
    assert end["status"] == "COMPLETED", end
    assert end["output"]["sub"] == f"begin-{who}-s end-{who}-s"
    given = end["output"]["each"]
    assert [one["output"]["text"] for one in given] == [f"begin-{who}-{item} end-{who}-{item}" for item in ITEMS]
    children = services.sql(
        "SELECT c.slug, c.parent_task FROM flow.execution c JOIN flow.execution p ON p.id = c.parent WHERE p.slug = %s",
        end["execution_id"],
    )
    assert sorted(task for _, task in children) == sorted(["sub", *(f"each[{index}]" for index in range(len(ITEMS)))])
    assert {one["execution_id"] for one in given} < {slug for slug, _ in children}


def check_all_ended(services: Services, made: Family, parents: int) -> None:
    """There are no other executions than those that were asked for, and none of them is left running, or was."""
    assert [status for _, status in executions(services, made.parent)] == ["COMPLETED"] * parents
    assert [status for _, status in executions(services, made.child)] == ["COMPLETED"] * (parents * len(WORDS))
    assert services.sql("SELECT j.id FROM jobs.job j WHERE state NOT IN ('succeeded', 'failed', 'cancelled')") == []
    ends = services.sql(
        "SELECT job_id, data->>'key', count(*) FROM jobs.event WHERE type = 'step' AND data->>'state' = 'succeeded' "
        "GROUP BY 1, 2 HAVING count(*) > 1"
    )
    assert ends == []  # no task has ended twice
    services.until_forgotten()


def requests_of(who: str) -> list[str]:
    """What the tasks of one parent and of its sub-flows ask."""
    children = [f"{task}-{who}-{word}" for task in ("begin", "end") for word in WORDS]
    return [f"first-{who}", *children, f"last-{who}"]


def check_requests(world: World, who: str) -> None:
    """All were made; a task that was under way at a kill is done again, but never once it has ended: the next has begun."""
    asked = [one.path.removeprefix("/") for one in world.seen if one.path.split("-")[1] == who]
    assert set(asked) == set(requests_of(who))
    check_order(asked, f"first-{who}", f"begin-{who}-s", f"end-{who}-s")
    for item in ITEMS:
        check_order(asked, f"end-{who}-s", f"begin-{who}-{item}", f"end-{who}-{item}", f"last-{who}")


def check_order(asked: list[str], *words: str) -> None:
    """All requests of a word come before the first of the next."""
    seen = [word for word in asked if word in words]
    assert seen == sorted(seen, key=words.index), seen


def may_repeat(key: str) -> set[str]:
    """What may have been under way at a point: its own task, and those of the sub-flows that run meanwhile."""
    words = ITEMS if key.startswith("each") else ("s",) if key.startswith("sub") else ()
    beside = {f"{task}-w-{word}" for task in CHILD_KEYS for word in words}
    return {word for word in requests_of("w") if word in beside or word.startswith(f"{key}-")}


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=2)
@pytest.mark.parametrize(("key", "state"), POINTS)
def test_a_kill_under_a_flow_that_calls_flows(services: Services, world: World, key: str, state: str) -> None:
    made = family(services, world)
    victims = victims_of(services, *HIT[POINTS.index((key, state)) % len(HIT)])
    with Gate(services.database(), "run_flow", key, state) as gate:
        execution = execution_of(
            made.parent, services.post(f"/flow/workflows/{made.parent}/execute", {"input": {"who": "w"}})
        )
        gate.wait()
        for one in victims:
            one.kill()
    for one in victims:
        one.start()
    until(lambda: all(one.ready() for one in victims), what="what was killed to be back")
    check_parent(services, made, execution, "w")
    check_all_ended(services, made, parents=1)
    check_requests(world, "w")
    assert {word for word, count in world.counted().items() if count > 1} <= may_repeat(key)


# ---- schedules


def due(services: Services, schedules: Sequence[str], seconds: float) -> None:
    """They come in so many seconds, or came so many seconds ago: the time that counts is the database's."""
    statement = (
        "UPDATE flow.schedule SET next_at = clock_timestamp() + make_interval(secs => %s) WHERE id::text = ANY(%s)"
    )
    services.sql(statement, seconds, list(schedules))


def scheduled(services: Services, misfire: str) -> tuple[str, str]:
    """A flow of its own that comes once a year; its id and that of its schedule."""
    flow = made_flow(services, "scheduled", [{"ref": "size", "type": "text.size", "input": {"text": "{{input.text}}"}}],
                     input=[{"name": "text", "type": "text"}])  # fmt: skip
    body = {"cron": "0 0 29 2 *", "input": {"text": "on time"}, "misfire": misfire}
    return flow, str(services.post(f"/flow/workflows/{flow}/schedules", body)["id"])


def until_fired(services: Services, schedules: Sequence[str]) -> None:
    is_due = "SELECT 1 FROM flow.schedule WHERE next_at < clock_timestamp() + interval '1 day' AND id::text = ANY(%s)"
    until(lambda: not services.sql(is_due, list(schedules)), what="the schedules to have been looked at")


def shown(services: Services, flow: str, schedule: str) -> Any:
    return Asker(services).get(f"/flow/workflows/{flow}/schedules/{schedule}")


@pytest.mark.timeout(900)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("seed", SEEDS)
def test_times_that_come_while_the_app_is_away_or_killed(services: Services, seed: int) -> None:
    chance = random.Random(seed)
    made = {misfire: [scheduled(services, misfire) for _ in range(3)] for misfire in ("run_once", "skip")}
    flows = [one for both in made.values() for one in both]
    schedules = [schedule for _, schedule in flows]

    apps = victims_of(services, *chance.sample(APPS, len(APPS)))
    for one in apps:
        one.kill()
    due(services, schedules, -chance.uniform(600, 7200))
    for one in apps:
        one.start()  # both at once: they look at the same schedules
    until(lambda: all(one.ready() for one in apps), what="the apps to be back")
    until_fired(services, schedules)
    for flow, schedule in made["run_once"]:
        ((slug, _),) = executions(services, flow)
        assert shown(services, flow, schedule)["last"]["execution_id"] == slug
    for flow, schedule in made["skip"]:
        assert executions(services, flow) == []
        last = shown(services, flow, schedule)["last"]
        assert last["execution_id"] is None
        assert "missed" in last["reason"]

    times = 0
    with chaos(victims_of(services, *APPS), seed) as kills:
        while not kills.over.is_set() or times == 0:
            due(services, schedules, chance.uniform(0, 1))
            times += 1
            until_fired(services, schedules)
    for misfire, all_of_it in made.items():
        for flow, schedule in all_of_it:
            wanted = times + (1 if misfire == "run_once" else 0)
            slugs = [slug for slug, _ in executions(services, flow)]
            assert len(slugs) == wanted, shown(services, flow, schedule)
            assert slugs[-1] == shown(services, flow, schedule)["last"]["execution_id"]
            for slug in slugs:
                assert ended(services, f"/workflows/{flow}/executions/{slug}")["status"] == "COMPLETED"


# ---- signed messages


@dataclass(frozen=True)
class Trigger:
    scheme: str
    url: str
    secret: str = field(repr=False)

    def signed(self, message: str) -> tuple[bytes, dict[str, str]]:
        """The bytes and headers of a delivery, as their sender makes them anew for each attempt."""
        body, moment = json.dumps({"message": {"id": message}}).encode(), datetime.now(UTC)
        if self.scheme == "github":
            digest = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
            return body, {"X-Hub-Signature-256": f"sha256={digest}", "X-GitHub-Delivery": message}
        signature = Webhook(self.secret).sign(message, moment, body.decode())
        stamp = str(int(moment.timestamp()))
        return body, {"webhook-id": message, "webhook-timestamp": stamp, "webhook-signature": signature}


def delivered(base: str, trigger: Trigger, message: str) -> str:
    """Sent until it is taken, as a bot does; the execution that the answer names."""
    deadline = time.monotonic() + PATIENCE
    while True:
        body, headers = trigger.signed(message)
        try:
            answer = httpx.post(
                base + trigger.url, content=body, headers={"Content-Type": "application/json", **headers},
                timeout=20, trust_env=False,
            )  # fmt: skip
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code < 500 and answer.status_code != 429:
            assert answer.status_code == 202, answer.text
            return str(answer.json()["execution_id"])
        assert time.monotonic() < deadline, f"{message} is not taken: {answer.text if answer is not None else None}"
        time.sleep(0.2)


def trigger_of(services: Services, flow: str, scheme: str) -> Trigger:
    body = {"scheme": scheme, "mapping": {"id": "message.id"}}
    made = services.post(f"/flow/workflows/{flow}/triggers", body)
    return Trigger(scheme, made["url"], made["secret"])


@pytest.mark.timeout(900)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("seed", SEEDS)
def test_signed_messages_while_the_app_is_killed(services: Services, seed: int) -> None:
    tasks = [{"ref": "size", "type": "text.template", "input": {"template": "got {{input.id}}", "values": {}}}]
    flow = made_flow(
        services, "told", tasks, input=[{"name": "id", "type": "text"}],
        output=[{"name": "id", "type": "text", "value": "{{refs.size.output.text}}"}],
    )  # fmt: skip
    triggers = [trigger_of(services, flow, scheme) for scheme in ("standard", "github")]
    apps = victims_of(services, *APPS)
    told: dict[tuple[Trigger, str], list[str]] = {}
    lock = threading.Lock()

    def deliver(trigger: Trigger, message: str) -> None:
        execution = delivered(services.url, trigger, message)
        with lock:
            told.setdefault((trigger, message), []).append(execution)

    def bot(number: int) -> None:
        """Two bots send the same messages at about the same time, each twice."""
        trigger, turns = triggers[number // 2], itertools.count()
        while (turn := next(turns)) == 0 or not kills.over.wait(0.5):
            for _ in range(2):
                deliver(trigger, f"m{seed}-{turn}")

    with chaos([*apps, together(apps)], seed) as kills, ThreadPoolExecutor(BOTS) as pool:
        for one in [pool.submit(bot, number) for number in range(BOTS)]:
            one.result()
    for trigger, message in list(told):
        deliver(trigger, message)
    assert all(len(set(slugs)) == 1 for slugs in told.values()), told
    found = [slug for slug, _ in executions(services, flow)]
    assert len(found) == len(told)
    assert set(found) == {slugs[0] for slugs in told.values()}
    for (_, message), slugs in told.items():
        end = ended(services, f"/workflows/{flow}/executions/{slugs[0]}")
        assert (end["status"], end["output"]) == ("COMPLETED", {"id": f"got {message}"}), end
