"""Two replicas of each service: readers at either app see all events, work spreads, and that of a killed one moves."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.e2e.instance import PATIENCE, Stepway, until
from tests.e2e.services import Services, running_services
from tests.e2e.test_secrets import WEIGHTS
from tests.hub import Hub
from tests.otlp import Receiver
from tests.serving import Fault

IMPORTS = 8


@dataclass
class World:
    services: Services
    hub: Hub
    traces: Receiver

    def app(self, number: int) -> Stepway:
        """One replica of the app, asked directly."""
        made = Stepway(self.services.folder)
        made.url = f"http://127.0.0.1:{self.services.made_of.replicas[f'app-{number}'].port}"
        made.key = self.services.key
        return made

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """No file of the hub comes to its end meanwhile."""
        self.hub.resume.clear()
        self.hub.fail(Fault(at="", times=10_000, pause_after=1))
        try:
            yield
        finally:
            self.hub.calm()
            self.hub.resume.set()

    def until_downloading(self, at: Stepway, job: str) -> None:
        def runs() -> bool:
            return any((one["key"], one["state"]) == ("download", "running") for one in at.get(f"/jobs/{job}")["steps"])

        until(runs, what="the download to have begun")

    def imported(self, at: Stepway, name: str) -> str:
        """Trigger an import there; its job."""
        self.hub.add(f"org/{name}", {"config.json": b"{}", "model.safetensors": WEIGHTS + name.encode()})
        return str(at.import_model(f"org/{name}", source="hugging_face", name=name)["job"]["id"])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with (
        Hub() as hub,
        Receiver() as traces,
        running_services({"hf_endpoint": hub.url, "otlp_endpoint": traces.url}, replicas=2) as services,
    ):
        yield World(services, hub, traces)


class Reader(threading.Thread):
    """Follows a job's events at one app, from its first to the end of the stream."""

    def __init__(self, app: Stepway, path: str, after: int | None = None) -> None:
        super().__init__(daemon=True)
        self._app, self._path, self._after = app, path, after
        self.seen: list[tuple[int, str]] = []
        self.start()

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._app.key}"}
        if self._after is not None:
            headers["Last-Event-ID"] = str(self._after)
        try:
            with (
                httpx.Client(base_url=self._app.url, timeout=60, trust_env=False) as client,
                client.stream("GET", self._path, headers=headers) as answer,
            ):
                number = 0
                for line in answer.iter_lines():
                    if line.startswith("id: "):
                        number = int(line[4:])
                    elif line.startswith("data: "):
                        self.seen.append((number, line))
        except httpx.HTTPError:
            return  # the app is gone

    def all(self) -> list[tuple[int, str]]:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.seen


def without_gaps(events: list[tuple[int, str]], after: int = 0) -> None:
    numbers = [number for number, _ in events]
    assert numbers == list(range(after + 1, after + len(numbers) + 1))
    assert numbers


def test_readers_at_either_app_see_all_that_the_other_began(world: World) -> None:
    apps = [world.app(0), world.app(1)]
    for begins in (0, 1):
        job = world.imported(apps[begins], f"seen-{begins}")
        readers = [Reader(app, f"/jobs/{job}/events") for app in apps for _ in range(2)]
        apps[1 - begins].ended_job({"job": {"id": job}})
        seen = [reader.all() for reader in readers]
        assert all(one == seen[0] for one in seen)
        without_gaps(seen[0])
        ((newest,),) = world.services.sql("SELECT max(seq) FROM jobs.event WHERE job_id = %s", job)
        assert seen[0][-1][0] == newest


def test_a_reader_of_a_killed_app_goes_on_at_the_other(world: World) -> None:
    apps = [world.app(0), world.app(1)]
    with world.stalled():
        job = world.imported(apps[0], "moved")
        world.until_downloading(apps[1], job)
        first, other = (Reader(app, f"/jobs/{job}/events") for app in apps)
        until(lambda: first.seen and other.seen, what="both to read")
        world.services.kill_service("app-0")
        first.join(PATIENCE)
        again = Reader(apps[1], f"/jobs/{job}/events", after=first.seen[-1][0])
    again_seen, other_seen = again.all(), other.all()
    assert first.seen + again_seen == other_seen
    without_gaps(other_seen)
    assert apps[1].get(f"/jobs/{job}")["state"] == "succeeded"
    world.services.start_service("app-0")


def test_work_spreads_and_that_of_a_killed_one_moves(world: World) -> None:
    """By the spans of steps: each tells its process."""
    apps = [world.app(0), world.app(1)]
    with ThreadPoolExecutor(4) as pool:
        jobs = list(pool.map(lambda number: world.imported(apps[number % 2], f"spread-{number}"), range(IMPORTS)))
    for job in jobs:
        assert apps[0].ended_job({"job": {"id": job}})["state"] == "succeeded"

    def processes() -> set[str]:
        return {span.process for span in world.traces.named("step import_model/download")}

    world.traces.until(lambda: len(processes()) == 2, what="both replicas' work")
    with world.stalled():
        jobs = [world.imported(apps[number % 2], f"killed-{number}") for number in range(4)]
        for job in jobs:
            world.until_downloading(apps[0], job)
        world.services.kill_service("model-0")
    for job in jobs:
        assert apps[1].ended_job({"job": {"id": job}})["state"] == "succeeded"
    world.services.start_service("model-0")
    for (seqs,) in world.services.sql(
        "SELECT array_agg(seq ORDER BY seq) FROM jobs.event WHERE seq IS NOT NULL GROUP BY job_id"
    ):
        assert seqs == list(range(1, len(seqs) + 1))
    world.services.until_forgotten()
    assert world.services.dapr_sql("SELECT count(*) FROM dapr_state") == [(0,)]
