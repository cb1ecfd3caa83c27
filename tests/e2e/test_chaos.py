"""The chaos of `tests.e2e.chaos`, over services and over processes that share a database: one suite, two ways to run."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from stepway.postgres.embedded import EmbeddedPostgres
from tests.e2e.bots import Asker
from tests.e2e.chaos import Victim, check, empty, run
from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, until
from tests.e2e.lives import left_in
from tests.e2e.registered import SERVES
from tests.e2e.services import Services, running_services
from tests.e2e.test_demo import left_behind
from tests.e2e.test_faults import safetensors
from tests.serving import Fault, Server
from tests.testbed.cluster import Cluster
from tests.testbed.distributed import answers
from tests.testbed.machine import need
from tests.testbed.processes import Processes

SEEDS = range(4)
SAMPLE, WHOLE = (8, 8), (45, 40)  # rounds of bots, kills; a round is two or three jobs, and in each tenth one deploys


class Models(Server):
    """Small models, of which some have the same bytes as others. Each takes a moment, so that there is something to cut."""

    def uri(self, number: int) -> str:
        return f"{self.url}/m{number}.safetensors"

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        number = int(request.path.removeprefix("/m").removesuffix(".safetensors"))
        body = safetensors(bytes([number // 3 % 251]) * 60_000)
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body) - start))
        request.send_header("Accept-Ranges", "bytes")
        request.send_header("ETag", f'"{number // 3}"')
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        if request.command == "HEAD":
            return
        middle = (start + len(body)) // 2
        request.wfile.write(body[start:middle])
        time.sleep(0.3)
        request.wfile.write(body[middle:])


def settings_for(models: Models, model_file: Path) -> dict[str, object]:
    return {
        "trusted_hosts": f"127.0.0.1:{models.port}", "model_roots": model_file.parent, "maintenance_seconds": 2,
    }  # fmt: skip


def of_services(services: Services) -> list[Victim]:
    """A sidecar ends by itself when placement and the scheduler go one after the other, and is started again by what runs it."""
    made = services.made_of
    sidecars, victims = made.dapr.processes, []
    for name, replica in made.replicas.items():
        sidecar = replica.daprd.name
        ready = partial(answers, f"http://127.0.0.1:{replica.metrics_port}/readyz")
        victims.append(
            Victim(name, partial(made.processes.kill, name), partial(made.processes.restart, name), ready=ready)
        )
        victims.append(Victim(
            sidecar, partial(sidecars.kill, sidecar), partial(sidecars.restart, sidecar), partial(has_ended, sidecars, sidecar)
        ))  # fmt: skip
    for name in ("placement", "scheduler"):
        victims.append(Victim(name, partial(made.dapr.processes.kill, name), partial(made.dapr.restart, name)))
    return [*victims, Victim("minio", made.minio.kill, made.minio.restart), of_postgres(made.postgres)]


def has_ended(processes: Processes, name: str) -> bool:
    return name in processes.ended()


def of_postgres(postgres: EmbeddedPostgres) -> Victim:
    def kill() -> None:
        assert postgres.pid is not None
        os.kill(postgres.pid, signal.SIGKILL)
        postgres.stop()

    def start() -> None:
        postgres.start()

    return Victim("postgres", kill, start)


def of_process(stepway: Stepway) -> Victim:
    def start() -> None:
        key = stepway.key
        stepway.start()
        stepway.key = key

    return Victim(stepway.data.name, stepway.kill, start)


@contextmanager
def shared_postgres(folder: Path) -> Iterator[tuple[EmbeddedPostgres, str]]:
    postgres = EmbeddedPostgres(folder / "postgres")  # it is killed, and must not forget
    try:
        yield postgres, postgres.start()
    finally:
        postgres.stop()


@pytest.mark.faults(sample=1)
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", SEEDS)
def test_services(seed: int, cluster: Cluster, model_file: Path) -> None:
    need(images=("llama",))
    cluster.load("llama")
    rounds, kills = WHOLE if os.environ.get("STEPWAY_FAULTS") == "all" else SAMPLE
    before = left_in(cluster)
    with Models() as models:
        settings = {**settings_for(models, model_file), **SERVES, "allow_loopback_clusters": True}
        with running_services(settings, replicas=2, durable=True) as services:
            asker = Asker(services)
            tally, killed = run(
                asker, of_services(services), models.uri, seed=seed, rounds=rounds, kills=kills,
                model_file=model_file, cluster=cluster,
            )  # fmt: skip
            assert len(killed) == kills
            assert tally.served
            check(asker, tally)
            assert left_in(cluster) == before
            empty(asker, tally, partial(stored_in_bucket, services))
            services.until_forgotten()


@pytest.mark.faults(sample=1)
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", SEEDS)
def test_processes_that_share_a_database(seed: int, make: Make, folder: Path, model_file: Path) -> None:
    rounds, kills = WHOLE if os.environ.get("STEPWAY_FAULTS") == "all" else SAMPLE
    with Models() as models, shared_postgres(folder) as (postgres, url):
        shared = {"database_url": url, "objects_dir": folder / "objects", "key_file": folder / "shared.key",
                  "machine_dir": folder / "machine", **settings_for(models, model_file)}  # fmt: skip
        both = first, second = make("one", **shared).start(), make("two", **shared)
        second.start()
        second.key = first.key
        asker = Asker(first, both)
        victims = [*map(of_process, both), of_postgres(postgres)]
        tally, killed = run(asker, victims, models.uri, seed=seed, rounds=rounds, kills=kills, model_file=model_file)
        assert len(killed) == kills
        assert tally.served
        check(asker, tally)
        assert first.processes(what="/endpoints/") == {}
        empty(asker, tally, partial(stored_in, folder / "objects"))
        until(lambda: not stored_in(folder / "machine" / "models"), what="the models' copies to go")
        for one in both:
            one.stop()
        until(lambda: not running(folder), what="what was killed to have left no process")


def running(folder: Path) -> list[str]:
    """Processes that have to do with it, but those of PostgreSQL, which is the test's."""
    return [line for line in left_behind(folder) if "postgres" not in line]


def stored_in(objects: Path) -> list[str]:
    return [str(path) for path in objects.rglob("*") if path.is_file() and path.name != ".lock"]


def stored_in_bucket(services: Services) -> list[str]:
    """Objects, and uploads that are not finished."""
    made = services.made_of
    client = made.minio.client
    found = [str(one.object_name) for one in client.list_objects(made.bucket, recursive=True)]
    return found + [str(one.object_name) for one in client._list_multipart_uploads(made.bucket).uploads]
