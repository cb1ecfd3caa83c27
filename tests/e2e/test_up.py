"""`stepway up`: what it writes, what it refuses, how it ends, and what outlives it."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import Make
from tests.e2e.instance import Stepway, alive, until
from tests.hub import Hub
from tests.serving import Fault

STOPPED_WITHIN = 10.0  # seconds; five are promised, and a machine that runs other tests too is slower


def refused(stepway: Stepway) -> str:
    """Start it; it must end by itself with an error, leave nothing running, and say one sentence. The sentence."""
    before = stepway.processes()
    stepway.spawn()
    assert stepway.wait() != 0
    until(lambda: stepway.processes().keys() <= before.keys(), what="its processes to end")
    lines = [line for line in stepway.said().splitlines() if line.startswith("stepway: ")]
    assert len(lines) == 1, stepway.said()
    assert "Traceback" not in stepway.said()
    return lines[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_first_start_makes_a_private_installation_and_says_where_it_is(stepway: Stepway) -> None:
    ready = json.loads(stepway.ready_file.read_text())
    assert ready == {"url": stepway.url, "admin_key_file": str(stepway.data / "admin.key"), "pid": stepway.pid}
    assert httpx.get(f"{stepway.url}/readyz", trust_env=False).status_code == 200
    assert stepway.get("/clusters")["data"][0]["kind"] == "local"
    for folder in (".", "machine", "objects", "postgres", "machine/workers"):
        assert mode(stepway.data / folder) == 0o700, folder
    for file in ("admin.key", "encryption.key", "cluster-id", "machine/cluster-id"):
        assert mode(stepway.data / file) == 0o600, file
    assert mode(stepway.ready_file) == 0o600
    assert stepway.said().count(stepway.key) == 1

    assert stepway.stop() < STOPPED_WITHIN
    assert not stepway.ready_file.exists()
    assert not stepway.processes()

    key = stepway.key
    stepway.start()
    assert stepway.key == key
    assert stepway.said().count(key) == 1  # shown once, at the first start only


def test_its_log_has_only_what_an_operator_needs(stepway: Stepway) -> None:
    stepway.stop()
    for noise in ("alembic", "HTTP Request", "httpx", "uvicorn"):
        assert noise not in stepway.said()


def test_a_second_instance_on_the_same_directory_is_refused(stepway: Stepway) -> None:
    second = Stepway(stepway.folder, data=stepway.data)
    second.log = stepway.folder / "second.log"
    second.ready_file = stepway.folder / "second.ready"
    said = refused(second)
    assert "uses the data directory" in said
    assert str(stepway.pid) in said
    assert stepway.get("/me")


def test_a_taken_port_is_refused_before_anything_is_made(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stepway = make()
        done = stepway.command("up", "--data-dir", str(stepway.data), "--port", port)
    assert done.returncode != 0
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr
    assert not (stepway.data / "postgres").exists()


def test_a_directory_of_another_postgresql_is_refused(make: Make) -> None:
    stepway = make()
    pgdata = stepway.data / "postgres" / "pgdata"
    pgdata.mkdir(parents=True)
    (pgdata / "PG_VERSION").write_text("14\n")
    said = refused(stepway)
    assert "PostgreSQL 14" in said
    assert "stepway backup" in said


def test_a_lost_encryption_key_is_not_replaced(stepway: Stepway) -> None:
    stepway.stop()
    key = stepway.data / "encryption.key"
    kept = key.read_bytes()
    key.unlink()
    assert "encryption key" in refused(stepway)
    assert not key.exists()

    key.touch(mode=0o600)
    key.write_bytes(kept)
    stepway.start()


def test_a_key_of_another_installation_is_refused(make: Make, model_file: Path) -> None:
    stepway, other = make(), make("other")
    stepway.start().serve(model_file)
    other.start().stop()
    stepway.stop()
    shutil.copy(other.data / "encryption.key", stepway.data / "encryption.key")
    assert "another installation's" in refused(stepway)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["256k", "24m"])
def test_a_full_disk_is_named(make: Make, folder: Path, size: str) -> None:
    small = folder / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        stepway = make("small/data")
        stepway.log, stepway.ready_file = folder / "log", folder / "ready"
        said = refused(stepway)
        assert "disk is full" in said or "No space left" in said
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything_even_with_streams_open(make: Make, model_file: Path, number: int) -> None:
    with Hub() as hub:
        hub.add("org/slow", {"config.json": b"{}", "model.safetensors": bytes(4_000_000)})
        hub.fail(Fault(at=sha256(bytes(4_000_000)).hexdigest(), times=99, pause_after=1_000_000, method="GET"))
        stepway = make(hf_endpoint=hub.url).start()
        _, endpoint = stepway.serve(model_file)
        slow = stepway.import_model("org/slow", source="hugging_face", name="slow")["job"]["id"]
        flowing: set[int] = set()
        follow = [threading.Thread(target=_follow, args=(stepway, slow, flowing), daemon=True) for _ in range(5)]
        chat = [threading.Thread(target=_chat_forever, args=(stepway, endpoint, flowing), daemon=True) for _ in "ab"]
        for thread in follow + chat:
            thread.start()
        until(lambda: len(flowing) == len(follow + chat), what="the streams to flow")
        assert hub.paused.wait(20)

        began = time.monotonic()
        stepway.signal(number, group=number == signal.SIGINT)  # Ctrl-C goes to the whole group
        assert stepway.wait() == 0, stepway.said()
        assert time.monotonic() - began < STOPPED_WITHIN
        assert not stepway.processes()
        for fault in ("Traceback", "Exception in ASGI", "CancelledError"):
            assert fault not in stepway.said()


def test_a_signal_during_the_start_stops_it_too(make: Make) -> None:
    stepway = make()
    stepway.spawn()
    until((stepway.data / "postgres").exists, what="PostgreSQL's folder")
    began = time.monotonic()
    stepway.signal(signal.SIGTERM)
    stepway.wait()
    assert time.monotonic() - began < STOPPED_WITHIN
    until(lambda: not stepway.processes(), what="its processes to end")
    assert not stepway.ready_file.exists()

    assert stepway.start().get("/me")


def test_workers_outlive_a_kill_and_are_adopted(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    servers, postgres = stepway.servers(), stepway.postgres()
    assert servers
    assert postgres

    stepway.kill()
    until(lambda: not any(map(alive, postgres)), what="PostgreSQL to end")
    assert all(map(alive, servers))
    assert stepway.ready_file.exists()

    stepway.start()
    assert stepway.servers() == servers
    assert stepway.chat(endpoint)
    assert stepway.get(f"/endpoints/{endpoint}")["state"] == "running"


def test_workers_that_were_stopped_come_back_with_the_next_start(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    stepway.stop()
    assert not stepway.servers()
    stepway.start()
    until(lambda: stepway.chats(endpoint), what="the endpoint to answer")


def test_a_database_that_ends_by_itself_is_started_again(stepway: Stepway, model_file: Path) -> None:
    _, endpoint = stepway.serve(model_file)
    servers, before = stepway.servers(), stepway.postgres()
    postmaster = int((stepway.data / "postgres" / "pgdata" / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: set(stepway.postgres()).isdisjoint(before) and stepway.postgres(), what="another PostgreSQL")
    until(lambda: stepway.ask("GET", "/readyz").status_code == 200, what="the service to be ready")
    until(lambda: stepway.ask("GET", "/me").status_code == 200, what="its answers")
    assert stepway.chat(endpoint)
    assert stepway.ended_job(stepway.add_worker(endpoint))["state"] == "succeeded"
    assert set(servers) < set(stepway.servers())
    assert stepway.stop() < STOPPED_WITHIN


def test_an_idle_process_is_small(stepway: Stepway) -> None:
    rollup = Path(f"/proc/{stepway.pid}/smaps_rollup").read_text()
    resident = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident < 220 * 1024, f"{resident / 1024:.0f} MiB"


def _follow(stepway: Stepway, job: str, flowing: set[int]) -> None:
    headers = {"Authorization": f"Bearer {stepway.key}"}
    url = f"{stepway.url}/jobs/{job}/events"
    try:
        with httpx.stream("GET", url, headers=headers, timeout=60, trust_env=False) as answer:
            for _ in answer.iter_bytes():
                flowing.add(threading.get_ident())
    except httpx.HTTPError:
        pass


def _chat_forever(stepway: Stepway, endpoint: str, flowing: set[int]) -> None:
    body = {"messages": [{"role": "user", "content": "Count to a million."}], "max_tokens": 2000, "stream": True}
    headers = {"Authorization": f"Bearer {stepway.key}"}
    url = f"{stepway.url}/endpoints/{endpoint}/v1/chat/completions"
    try:
        while True:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=60, trust_env=False) as answer:
                for _ in answer.iter_bytes():
                    flowing.add(threading.get_ident())
    except httpx.HTTPError:
        pass
