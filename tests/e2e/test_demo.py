"""The demo as a newcomer runs it: in an empty home, to its end, again, and when something is wrong."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.e2e.lives import SERVES, left_in
from tests.testbed.certificates import Authority, as_yaml, encoded, kubeconfig
from tests.testbed.cluster import Cluster
from tests.testbed.machine import need
from tests.testbed.processes import free_ports

DEMO = [sys.executable, "-m", "stepway", "demo"]
TARGET = 30.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def left_behind(folder: Path) -> list[str]:
    """The command lines of processes that have to do with a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            where = str((process / "cwd").readlink())
        except OSError:  # it has ended meanwhile
            continue
        if str(folder) in words or where.startswith(str(folder)):
            found.append(words)
    return found


def until_nothing_is_left(folder: Path) -> list[str]:
    deadline = time.monotonic() + 5
    while (left := left_behind(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.fixture(scope="module")
def first(home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DEMO, "--exit"], env=environment(home), capture_output=True, text=True, timeout=150, check=False
    )


def test_it_goes_all_the_way_and_ends_by_itself(first: subprocess.CompletedProcess[str], home: Path) -> None:
    assert first.returncode == 0, first.stderr
    for word in ("Adding a model", "Scanning it", "Deploying it", "Asking it", "Adding a worker", "safe", "2 workers"):
        assert word in first.stderr
    answer, _, farewell = first.stdout.partition("Endpoint: ")
    assert len(answer.split()) > 5
    key_file = home / ".local" / "share" / "stepway-demo" / "admin.key"
    assert str(key_file) in farewell
    assert "curl -sN http://127.0.0.1:" in farewell
    assert key_file.read_text().strip() not in first.stdout + first.stderr
    assert until_nothing_is_left(home) == []


def test_the_first_token_comes_in_time(first: subprocess.CompletedProcess[str]) -> None:
    found = re.search(r"First token after ([\d.]+) s", first.stderr)
    assert found is not None
    assert float(found[1]) < TARGET


def test_again_it_uses_what_is_there_and_stays_until_it_is_interrupted(
    first: subprocess.CompletedProcess[str], home: Path
) -> None:
    with subprocess.Popen(
        DEMO, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stderr is not None
        assert demo.stdout is not None
        seen = []
        for line in demo.stderr:
            seen.append(line)
            if "stays up" in line:
                break
        assert "".join(seen).count("from an earlier run") == 3, "".join(seen)
        answer = demo.stdout.readline()
        url = demo.stdout.readline().removeprefix("Endpoint: ").strip()
        key = Path(demo.stdout.readline().removeprefix("Key:").strip()).read_text().strip()
        assert answer.strip()
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}
        asked = httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert asked.json()["choices"][0]["message"]["content"]
        demo.send_signal(signal.SIGINT)
        assert demo.wait(15) == 0
    assert until_nothing_is_left(home) == []


def test_interrupted_on_its_way_it_leaves_nothing(tmp_path: Path) -> None:
    command = [*DEMO, "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        assert any("Adding a model" in line for line in demo.stderr)
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(15) == 130
        assert "Traceback" not in demo.stderr.read()
    assert until_nothing_is_left(tmp_path) == []


def test_a_taken_port_is_told_with_the_log(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [*DEMO, "--exit", "--data-dir", str(tmp_path / "data"), "--port", str(taken.getsockname()[1])]
        ended = subprocess.run(
            command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert "Cannot listen on" in ended.stderr
    assert str(tmp_path / "data" / "server.log") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert until_nothing_is_left(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [*DEMO, "--exit", "--data-dir", str(tmp_path / "file" / "data")]
    ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert str(tmp_path / "file") in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- on a cluster

IMAGES = {f"STEPWAY_{name.upper()}": value for name, value in SERVES.items()}


def on_cluster(folder: Path, kubeconfig: bytes, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The demo to its end on the cluster of a kubeconfig, with a data directory in `folder`."""
    (folder / "kubeconfig").write_bytes(kubeconfig)
    command = [*DEMO, "--exit", "--cluster", str(folder / "kubeconfig"), "--data-dir", str(folder / "data")]
    given = environment(folder) | variables
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.timeout(900)
def test_on_a_cluster_it_goes_all_the_way_and_leaves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    need(images=("llama",))
    cluster.load("llama")
    before = left_in(cluster)
    ended = on_cluster(tmp_path, cluster.api.access_kubeconfig(), **IMAGES)
    assert ended.returncode == 0, ended.stderr
    for word in (
        "Registering the cluster",
        "safe",
        "Deploying it to the cluster",
        "2 workers",
        "Nothing of the demo is left",
    ):
        assert word in ended.stderr
    answer, _, farewell = ended.stdout.partition("Endpoint: ")
    assert len(answer.split()) > 5
    assert "curl -sN http://127.0.0.1:" in farewell
    assert left_in(cluster) == before
    assert until_nothing_is_left(tmp_path) == []

    stranger = on_cluster(tmp_path, cluster.api.kubeconfig_file(token=cluster.api.token("default")))
    assert stranger.returncode == 1
    assert "The account may not: " in stranger.stderr
    assert "Traceback" not in stranger.stderr


def unreachable() -> bytes:
    """A kubeconfig of a server on a port where nothing listens."""
    ca = encoded(Authority.make("nobody").pair.certificate)
    place = {"server": f"https://127.0.0.1:{free_ports(1)[0]}", "certificate-authority-data": ca}
    return as_yaml(kubeconfig(cluster=place, user={"token": "none"}))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("content", "words"),
    [(lambda: b"[not, a: kubeconfig", "not valid YAML"), (unreachable, "register_cluster ended as failed: 127.0.0.1:")],
    ids=["refused", "unreachable"],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_told(content: Callable[[], bytes], words: str, tmp_path: Path) -> None:
    ended = on_cluster(tmp_path, content())
    assert ended.returncode == 1
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
    assert until_nothing_is_left(tmp_path) == []
