"""Bounded chaos: many jobs that people, bots and operators ask for while what does them is killed and started again.

Whoever asks repeats what got no answer, as a bot does: each request has an Idempotency-Key. At the end all jobs have ended in
a state that is true, each once; every sequence of events is without a gap; and nothing is left over.
"""

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

from tests.e2e.instance import FINAL, ICON, Stepway, until
from tests.testbed.cluster import Cluster

PATIENCE = 120.0  # seconds that one request, or one job, may take with all that happens to it
PAUSES = (0.1, 1.0)  # seconds between two kills
AWAY = (0.0, 1.5)  # seconds until what was killed is started again

BOTS = 4
MOST = 4  # times as many rounds as are asked for, where the kills take longer

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Victim:
    """Something that is killed, and then started again and waited for."""

    name: str
    kill: Callable[[], None]
    start: Callable[[], None]


class Chaos(threading.Thread):
    """Kills one victim after the other, until it is told to stop; then all of them are there.

    The thread lives on to the end of the process, for what it has started ends with it.
    """

    def __init__(self, victims: Sequence[Victim], seed: int, kills: int) -> None:
        super().__init__(name="chaos", daemon=True)
        self._victims = victims
        self._random = random.Random(seed)
        self._kills = kills
        self.enough = threading.Event()
        self.over = threading.Event()
        self.killed: list[str] = []
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            while len(self.killed) < self._kills and not self.enough.wait(self._random.uniform(*PAUSES)):
                victim = self._random.choice(self._victims)
                victim.kill()
                self.killed.append(victim.name)  # said at once, for whoever reads why it failed
                sys.stderr.write(f"{time.strftime('%X')} killed {victim.name}\n")
                self.enough.wait(self._random.uniform(*AWAY))
                victim.start()
        except BaseException as fault:
            sys.stderr.write(f"{time.strftime('%X')} {type(fault).__name__}: {fault}"[:2000] + "\n")
            self.fault = fault
        self.over.set()
        threading.Event().wait()

    def end(self) -> None:
        self.enough.set()
        assert self.over.wait(PATIENCE), "what was killed does not come back"
        if self.fault is not None:
            raise self.fault


@dataclass
class Asker:
    """Asks one installation, and asks again whatever got no answer."""

    stepway: Stepway
    others: Sequence[Stepway] = ()

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {"Idempotency-Key": uuid4().hex, **options.pop("headers", {})} if method != "GET" else {}
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._once(method, path, headers=headers, **options)
            # A first try may still be at work: its answer is the one that counts.
            if answer is not None and answer.status_code < 500 and "idempotency_in_flight" not in answer.text:
                return answer
            sys.stderr.write(
                f"{time.strftime('%X')} {method} {path}: {answer.text[:200] if answer is not None else None}\n"
            )
            assert time.monotonic() < deadline, f"{method} {path} got no answer: {answer.text if answer else None}"
            time.sleep(0.2)

    def _once(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        for asked in self.others or (self.stepway,):
            try:
                with httpx.Client(base_url=asked.url, timeout=20, trust_env=False) as client:
                    headers = {"Authorization": f"Bearer {self.stepway.key}", **options.get("headers", {})}
                    return client.request(method, path, **{**options, "headers": headers})
            except httpx.HTTPError:
                continue
        return None

    def post(self, path: str, body: Json) -> Json:
        answer = self.ask("POST", path, json=body)
        assert answer.status_code < 300, f"{path}: {answer.text}"
        given: Json = answer.json()
        return given

    def get(self, path: str) -> Json:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, f"{path}: {answer.text}"
        given: Json = answer.json()
        return given

    def ended(self, job_id: str) -> Json:
        deadline = time.monotonic() + PATIENCE
        while True:
            job = self.get(f"/jobs/{job_id}?wait=5")
            if job["state"] in FINAL:
                return job
            assert time.monotonic() < deadline, f"it does not end: {job}"

    def succeeded(self, job_id: str) -> Json:
        """Retried as long as it fails, as whoever wants it would do."""
        for _ in range(20):
            job = self.ended(job_id)
            if job["state"] == "succeeded":
                return job
            self.ask("POST", f"/jobs/{job_id}/retry")
        raise AssertionError(f"it does not succeed: {job}")


@dataclass
class Tally:
    """What was asked for, and what is to be there afterwards."""

    jobs: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)  # models
    gone: set[str] = field(default_factory=set)


class Bot:
    """Brings models, scans, cancels, deletes: a seeded round of what it may do with each."""

    def __init__(self, asker: Asker, tally: Tally, seed: int, uri: Callable[[int], str]) -> None:
        self._asker = asker
        self._tally = tally
        self._random = random.Random(seed)
        self._uri = uri

    def round(self, number: int) -> None:
        importing = self._import(number)
        job = importing["job"]["id"]
        self._tally.jobs.add(job)
        if self._random.random() < 0.2:
            time.sleep(self._random.uniform(0.0, 1.0))
            self._asker.ask("POST", f"/jobs/{job}/cancel")
            if self._asker.ended(job)["state"] == "cancelled":
                return
        self._asker.succeeded(job)
        model = self._asker.get(f"/workflows/{importing['workflow_id']}")["result"]["id"]
        scanning = self._step("/models/security-scan", None, 1, 3, model_id=model, trigger_workflow=True)
        self._tally.jobs.add(scanning["job"]["id"])
        self._asker.succeeded(scanning["job"]["id"])
        if self._random.random() < 0.3:
            answer = self._asker.ask("DELETE", f"/models/{model}")
            assert answer.status_code in (200, 202, 204), answer.text
            self._tally.gone.add(model)
        else:
            self._tally.kept.add(model)

    def _import(self, number: int) -> Json:
        path = "/models/local-model-workflow"
        workflow = self._step(path, None, 1, 6, modality="llm")["workflow_id"]
        self._step(path, workflow, 2, 6, provider_type="url")
        details = {"name": f"m-{number}", "uri": self._uri(number), "icon": ICON}
        return self._step(path, workflow, 3, 6, **details, trigger_workflow=True)

    def _step(self, path: str, workflow: str | None, number: int, total: int, **fields: object) -> Json:
        begun = {"workflow_id": workflow} if workflow else {"workflow_total_steps": total}
        return self._asker.post(path, {**begun, "step_number": number, **fields})


class Operator:
    """Registers a cluster, has it inspected, and leaves it."""

    def __init__(self, asker: Asker, tally: Tally, cluster: Cluster) -> None:
        self._asker = asker
        self._tally = tally
        self._cluster = cluster

    def round(self) -> None:
        cluster_id = self._registered()
        inspecting = self._asker.ask("POST", f"/clusters/{cluster_id}/inspect")
        assert inspecting.status_code in (200, 202), inspecting.text
        self._done(inspecting.json())
        self._done(self._asker.ask("DELETE", f"/clusters/{cluster_id}").json())

    def _registered(self) -> str:
        fields = {"step_number": "1", "workflow_total_steps": "3", "name": "chaos", "trigger_workflow": "true"}
        file = ("kubeconfig.yaml", self._cluster.api.access_kubeconfig(), "application/yaml")
        form = {name: (None, value) for name, value in fields.items()} | {"configuration_file": file}
        answer = self._asker.ask("POST", "/clusters/clusters", files=form)
        assert answer.status_code == 200, answer.text
        workflow = answer.json()
        self._done(workflow["job"])
        return str(workflow["job"]["resource"]["id"])

    def _done(self, job: Json) -> None:
        self._tally.jobs.add(job["id"])
        self._asker.succeeded(job["id"])


def run(
    asker: Asker, victims: Sequence[Victim], uri: Callable[[int], str], *, seed: int, rounds: int, kills: int,
    cluster: Cluster | None = None,
) -> tuple[Tally, list[str]]:  # fmt: skip
    """All of it at once; returns when all jobs have ended and all victims are back."""
    tally = Tally()
    chaos = Chaos(victims, seed, kills)
    numbers = itertools.count()

    def work() -> None:
        """At least `rounds` by all together, and as long as something is being killed."""
        while (number := next(numbers)) < rounds or (number < MOST * rounds and not chaos.over.is_set()):
            Bot(asker, tally, seed * 1000 + number, uri).round(number)

    chaos.start()
    try:
        with ThreadPoolExecutor(max_workers=BOTS) as pool:
            bots = [pool.submit(work) for _ in range(BOTS)]
            if cluster is not None:
                operator = Operator(asker, tally, cluster)
                for _ in range(max(rounds // 10, 1)):
                    operator.round()
            for one in bots:
                one.result()
    finally:
        chaos.end()
    return tally, chaos.killed


def check(asker: Asker, tally: Tally) -> None:
    """Every job ended once, in a state that is true; every sequence of events is whole."""
    stepway = asker.stepway
    states = dict(stepway.sql("SELECT id::text, state FROM jobs.job"))
    assert tally.jobs <= states.keys()
    assert set(states.values()) <= {"succeeded", "cancelled"}
    assert stepway.sql("SELECT job_id FROM jobs.event WHERE job_id IS NOT NULL GROUP BY job_id "
                       "HAVING count(*) <> max(seq) OR min(seq) <> 1") == []  # fmt: skip
    assert stepway.sql("SELECT topic FROM jobs.event WHERE topic IS NOT NULL GROUP BY topic "
                       "HAVING count(*) <> max(topic_seq) OR min(topic_seq) <> 1") == []  # fmt: skip
    ends = stepway.sql("SELECT job_id, count(*) FROM jobs.event WHERE type = 'job' "
                       "AND data->>'state' IN ('succeeded', 'cancelled') GROUP BY job_id HAVING count(*) <> 1")  # fmt: skip
    assert ends == []
    assert stepway.sql("SELECT id FROM jobs.job WHERE worker IS NOT NULL") == []
    models = {one["id"] for one in _all(asker, "/models?state=active") if one["provider_type"] == "url"}
    assert models == tally.kept


def empty(asker: Asker, tally: Tally, objects: Callable[[], list[str]]) -> None:
    """Delete what is there: then no object and no upload is left, once what is unused was looked for."""
    for model in tally.kept:
        answer = asker.ask("DELETE", f"/models/{model}")
        assert answer.status_code in (200, 202, 204), answer.text
    until(lambda: not objects(), seconds=PATIENCE, what="the objects to go")


def _all(asker: Asker, path: str) -> list[Json]:
    found: list[Json] = []
    joint = "&" if "?" in path else "?"
    query = f"{joint}limit=100"
    while True:
        page = asker.get(path + query)
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        query = f"{joint}limit=100&cursor={page['next_cursor']}"
