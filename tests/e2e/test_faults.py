"""Faults in the middle of jobs: kill -9, cancels, a frozen process. Nothing is lost, doubled or left behind.

A round takes one model from import to deletion, and each of its jobs meets the fault once. The points of a job are its
steps, before they begin and after their work is done but not recorded. Rounds differ in the point that is taken;
an ordinary run takes one round.
"""

import os
import shutil
import signal
import time
from hashlib import sha256
from pathlib import Path

import pytest

from services.cluster.jobs import JOBS as CLUSTER_JOBS
from services.model.jobs import JOBS as MODEL_JOBS
from tests.e2e.conftest import Make
from tests.e2e.gate import Gate
from tests.e2e.instance import Stepway, alive, until
from tests.hub import Hub
from tests.serving import Fault

STEPS = {job.kind: [step.key for step in job.steps] for job in (*MODEL_JOBS, *CLUSTER_JOBS)}
KINDS = ("import_model", "scan_model", "deploy_model", "add_worker", "delete_endpoint")
POINTS = {kind: [(key, state) for key in STEPS[kind] for state in ("running", "succeeded")] for kind in KINDS}
ROUNDS = max(map(len, POINTS.values()))
RESUMED_WITHIN = 60.0  # seconds, on a machine that is busy with other tests; alone it is a few
OLD = 7200.0


def point(kind: str, number: int) -> tuple[str, str]:
    return POINTS[kind][number % len(POINTS[kind])]


def trigger(stepway: Stepway, kind: str, made: dict[str, str], model_file: Path) -> dict[str, object]:
    match kind:
        case "import_model":
            workflow = stepway.import_model(str(model_file), name=made["name"])
        case "scan_model":
            workflow = stepway.scan(made["model"])
        case "deploy_model":
            workflow = stepway.deploy(made["model"], name=made["name"])
        case "add_worker":
            workflow = stepway.add_worker(made["endpoint"])
        case _:
            workflow = stepway.delete_endpoint(made["endpoint"])
    return dict(workflow)


def note(stepway: Stepway, kind: str, workflow: dict[str, object], made: dict[str, str]) -> None:
    names = {"import_model": "model", "deploy_model": "endpoint"}
    if kind in names:
        made[names[kind]] = str(stepway.get(f"/workflows/{workflow['workflow_id']}")["result"]["id"])


def wait_for_end(pids: list[int]) -> None:
    until(lambda: not any(map(alive, pids)), what="PostgreSQL to end")


def check_events(stepway: Stepway, job: str) -> None:
    """The job ended once, and its events have no gap and no double."""
    rows = stepway.sql("SELECT seq, type, data ->> 'state' FROM jobs.event WHERE job_id = %s ORDER BY seq", job)
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))
    ends = [row[2] for row in rows if row[1] == "job" and row[2] in ("succeeded", "failed", "cancelled")]
    assert len(ends) == 1, ends
    topics = stepway.sql(
        "SELECT e.topic_seq FROM jobs.event e JOIN jobs.job j ON j.topic = e.topic WHERE j.id = %s ORDER BY 1", job
    )
    assert [row[0] for row in topics] == list(range(1, len(topics) + 1))


def check_workers(stepway: Stepway, wanted: int) -> None:
    until(lambda: len(stepway.servers()) == wanted, what=f"{wanted} model servers")
    shims = stepway.processes(what="/endpoints/")
    folders = [line.split("/endpoints/")[1].split()[0] for line in shims.values() if "shim.py" in line]
    assert len(folders) == len(set(folders)) == wanted, shims


def left_behind(stepway: Stepway) -> list[str]:
    """Files of models, endpoints and unfinished work. What is unfinished is made old first, for the sweep to take it."""
    unfinished = [path for name in ("incoming", "scratch") for path in (stepway.data / "objects" / name).rglob("*")]
    long_ago = time.time() - OLD
    for path in unfinished:
        try:
            os.utime(path, (long_ago, long_ago))
        except FileNotFoundError:
            continue
    places = ("objects/blobs", "objects/incoming", "objects/scratch", "machine/models", "machine/workers/endpoints")
    found = [path for place in places for path in (stepway.data / place).rglob("*")]
    return [str(path) for path in found if path.is_file() or path.parent.name in ("scratch", "models", "endpoints")]


def check_nothing_left(stepway: Stepway) -> None:
    assert not stepway.servers()
    try:
        until(lambda: not left_behind(stepway), what="the sweep")
    except AssertionError:
        raise AssertionError(left_behind(stepway)) from None


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", range(ROUNDS))
def test_a_kill_at_any_point_loses_doubles_and_leaves_nothing(make: Make, model_file: Path, number: int) -> None:
    stepway = make(maintenance_seconds=0.5).start()
    made = {"name": "killed"}
    workers = {"deploy_model": 1, "add_worker": 2, "delete_endpoint": 0}
    for kind in KINDS:
        key, state = point(kind, number)
        with Gate(stepway.database(), kind, key, state) as gate:
            workflow = trigger(stepway, kind, made, model_file)
            gate.wait()
            postgres = stepway.postgres()
            stepway.kill()
        wait_for_end(postgres)
        stepway.start()
        began = time.monotonic()
        job = stepway.ended_job(workflow)
        assert job["state"] == "succeeded", (kind, key, state, job)
        assert time.monotonic() - began < RESUMED_WITHIN
        check_events(stepway, job["id"])
        note(stepway, kind, workflow, made)
        check_workers(stepway, workers.get(kind, 0))
        if kind in ("deploy_model", "add_worker"):
            assert stepway.chat(made["endpoint"])
            assert len(stepway.get("/endpoints")["data"]) == 1
    assert stepway.ask("DELETE", f"/models/{made['model']}").status_code == 204
    check_nothing_left(stepway)


@pytest.mark.timeout(600)
@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", range(max(map(len, STEPS.values()))))
def test_a_cancel_at_any_step_leaves_nothing(make: Make, model_file: Path, number: int) -> None:
    stepway = make(maintenance_seconds=0.5).start()
    made = {"name": "cancelled"}
    workers = {"deploy_model": 0, "add_worker": 1, "delete_endpoint": 1}
    for kind in KINDS:
        key = STEPS[kind][number % len(STEPS[kind])]
        with Gate(stepway.database(), kind, key, "running") as gate:
            workflow = trigger(stepway, kind, made, model_file)
            gate.wait()
            job = workflow["job"]["id"]  # type: ignore[index]
            gate.cancel(stepway, job)
        ended = stepway.ended_job(workflow)
        assert ended["state"] == "cancelled", (kind, key, ended)
        check_events(stepway, ended["id"])
        check_workers(stepway, workers.get(kind, 0))
        if kind == "import_model":
            check_nothing_left(stepway)
        if kind == "deploy_model":
            assert not list((stepway.data / "machine" / "models").glob("*"))
        # the same again, by the same name, to its end
        if kind == "delete_endpoint":
            until(lambda: stepway.chats(made["endpoint"]), what="the endpoint that was not deleted")
        workflow = trigger(stepway, kind, made, model_file)
        assert stepway.ended_job(workflow)["state"] == "succeeded"
        note(stepway, kind, workflow, made)
        if kind == "add_worker":
            workers["delete_endpoint"] = 2
    assert stepway.ask("DELETE", f"/models/{made['model']}").status_code == 204
    check_nothing_left(stepway)


@pytest.mark.faults(sample=1)
@pytest.mark.parametrize("number", range(len(POINTS["import_model"])))
def test_a_kill_at_any_point_of_an_import_from_a_hub(make: Make, number: int) -> None:
    key, state = point("import_model", number)
    with Hub() as hub:
        hub.add("org/model", {"config.json": b"{}", "model.safetensors": safetensors(os.urandom(1_000_000))})
        stepway = make(hf_endpoint=hub.url, maintenance_seconds=0.5).start()
        with Gate(stepway.database(), "import_model", key, state) as gate:
            workflow = stepway.import_model("org/model", source="hugging_face")
            gate.wait()
            stepway.kill()
        stepway.start()
        model = stepway.made(workflow)
        check_events(stepway, workflow["job"]["id"])
        assert [one["id"] for one in stepway.get("/models")["data"]] == [model]
        assert stepway.ask("DELETE", f"/models/{model}").status_code == 204
        check_nothing_left(stepway)


def test_a_download_goes_on_after_a_kill(make: Make) -> None:
    body = os.urandom(6_000_000)
    with Hub() as hub:
        hub.add("org/model", {"config.json": b"{}", "model.safetensors": safetensors(body)})
        hub.fail(Fault(at=sha256(safetensors(body)).hexdigest(), pause_after=3_000_000, method="GET"))
        stepway = make(hf_endpoint=hub.url, maintenance_seconds=0.5).start()
        workflow = stepway.import_model("org/model", source="hugging_face")
        assert hub.paused.wait(30)
        stepway.kill()
        hub.resume.set()
        stepway.start()
        job = stepway.ended_job(workflow)
        assert job["state"] == "succeeded", job
        check_events(stepway, job["id"])
        assert not list((stepway.data / "objects" / "scratch").iterdir())
        model = stepway.get(f"/workflows/{workflow['workflow_id']}")["result"]["id"]
        assert stepway.ask("DELETE", f"/models/{model}").status_code == 204
        check_nothing_left(stepway)


def safetensors(content: bytes) -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (len(content), len(content))
    return len(header).to_bytes(8, "little") + header + content


def test_a_lost_machine_folder_is_made_again_and_orphans_are_removed(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    stepway.stop()
    cluster = (stepway.data / "machine" / "cluster-id").read_text()
    shutil.rmtree(stepway.data / "machine")
    stepway.start()
    until(lambda: stepway.chats(endpoint), what="the endpoint to answer")
    assert (stepway.data / "machine" / "cluster-id").read_text() == cluster
    assert len(stepway.get("/clusters")["data"]) == 1

    # its row is gone, as after the restore of an older database: what serves it is nobody's
    stepway.kill()
    stepway.start()
    stepway.sql("UPDATE platform.endpoint SET phase = 'deleted', state = 'deleted' WHERE id = %s", endpoint)
    stepway.kill()
    stepway.start()
    until(lambda: not stepway.servers(), what="the orphan to end")
    until(lambda: not list((stepway.data / "machine" / "models").iterdir()), what="its files to go")


# ---- two processes


@pytest.fixture
def pair(make: Make, database_url: str, folder: Path) -> tuple[Stepway, Stepway]:
    """Two processes that share a database, the objects, the key and this machine."""
    shared = {"database_url": database_url, "objects_dir": folder / "objects", "key_file": folder / "shared.key",
              "machine_dir": folder / "machine"}  # fmt: skip
    first, second = make("one", **shared), make("two", **shared)
    first.start()
    second.start()
    assert second.admin_key_file is None  # the first has made the admin for both
    second.key = first.key
    return first, second


def holder(stepway: Stepway) -> int:
    """The pid of the process that looks after this machine's workers."""
    rows = stepway.sql("""SELECT p.pid FROM jobs.lease l JOIN jobs.process p ON p.id = l.holder
                           WHERE l.name LIKE 'cluster:%%' AND p.lease_until > clock_timestamp()""")
    assert len(rows) <= 1
    return int(rows[0][0]) if rows else 0


def owner(stepway: Stepway, job: str) -> int:
    rows = stepway.sql("SELECT p.pid FROM jobs.job j JOIN jobs.process p ON p.id = j.worker WHERE j.id = %s", job)
    return int(rows[0][0]) if rows else 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_another_process_takes_over(pair: tuple[Stepway, Stepway], model_file: Path, fault: str) -> None:
    first, second = pair
    by_pid = {first.pid: first, second.pid: second}
    model = first.made(first.import_model(str(model_file)))
    first.made(first.scan(model))
    assert len(first.get("/clusters")["data"]) == 1
    with Gate(first.database(), "deploy_model", "wait_ready", "succeeded") as gate:
        workflow = first.deploy(model)
        gate.wait()
        job = workflow["job"]["id"]
        victim = by_pid[owner(first, job)]
        other = second if victim is first else first
        began = time.monotonic()
        victim.signal(signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
        # the connection of a frozen process still holds the step's row; the server lets it go when the gate opens
    assert other.ended_job(workflow)["state"] == "succeeded"
    if fault == "kill":
        assert time.monotonic() - began < RESUMED_WITHIN
    check_events(other, job)
    until(lambda: holder(other) == other.pid, what="the other to look after the workers")
    endpoint = other.get(f"/workflows/{workflow['workflow_id']}")["result"]["id"]
    assert other.chat(endpoint)
    check_workers(other, 1)

    if fault == "freeze":
        victim.signal(signal.SIGCONT)
        until(lambda: "lease_lost" in victim.said(), what="the frozen one to be refused")
        assert holder(other) == other.pid
        until(lambda: victim.chats(endpoint), what="it to rejoin")
    else:
        victim.wait()
        victim.start()
    check_workers(other, 1)
    check_events(other, job)

    # the workers stay as long as somebody uses them
    other.stop()
    check_workers(victim, 1)
    until(lambda: victim.chats(endpoint), what="the endpoint to answer")
    victim.stop()
    assert not victim.servers()


def test_a_stop_in_the_middle_of_a_deploy_is_gone_on_with(stepway: Stepway, model_file: Path) -> None:
    model = stepway.made(stepway.import_model(str(model_file)))
    stepway.made(stepway.scan(model))
    workflow = stepway.deploy(model)
    job = workflow["job"]["id"]
    begun = "SELECT state FROM jobs.step WHERE job_id = %s AND key = 'apply' AND state <> 'pending'"
    until(lambda: stepway.sql(begun, job), what="the workers to be started")
    assert stepway.stop() < 5.0
    assert not stepway.processes()

    stepway.start()
    assert stepway.ended_job(workflow)["state"] == "succeeded"
    check_events(stepway, job)
    check_workers(stepway, 1)
    assert stepway.chat(stepway.get(f"/workflows/{workflow['workflow_id']}")["result"]["id"])


def test_workers_whose_removal_is_cancelled_come_back(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    stepway.made(stepway.add_worker(endpoint))
    with Gate(stepway.database(), "remove_worker", "scale_down", "succeeded") as gate:
        job = stepway.ask("DELETE", f"/endpoints/{endpoint}/workers").json()
        gate.wait()
        check_workers(stepway, 1)  # it is done, and not recorded
        gate.cancel(stepway, job["id"])
    assert stepway.ended_job({"job": job})["state"] == "cancelled"
    check_workers(stepway, 2)
    until(lambda: stepway.get(f"/endpoints/{endpoint}")["state"] == "running", what="both workers to be ready")
