"""One `stepway up` in a process of its own, as tests start, ask, kill and watch it.

It runs with an empty HOME and a small environment, so nothing of the machine's user gets in.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import psycopg

ROOT = Path(__file__).parents[2]
PATIENCE = 150.0  # seconds; far more than anything here should take, on a machine that is busy with much else too
ICON = "icons/providers/openai.png"

T = TypeVar("T")


class Stepway:
    """`folder` is the test's; the data directory is `folder/data` unless told otherwise. Settings as in `STEPWAY_*`."""

    def __init__(self, folder: Path, *, data: Path | None = None, **settings: object) -> None:
        self.folder = folder
        self.data = data or folder / "data"
        self.ready_file = self.data.with_name(f"{self.data.name}.ready")
        self.log = self.data.with_name(f"{self.data.name}.log")
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.key = ""
        self.admin_key_file: str | None = None
        self.answers: list[str] = []  # every body that came back

    def environment(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        given = {f"STEPWAY_{name.upper()}": str(value) for name, value in self.settings.items()}
        for plain in ("DATABASE_URL", "HF_ENDPOINT"):
            if (value := given.pop(f"STEPWAY_{plain}", None)) is not None:
                given[plain] = value
        return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT), **given}

    def command(self, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run `stepway …` on this installation, to its end."""
        return subprocess.run(
            [sys.executable, "-m", "stepway", *arguments], env=self.environment(), cwd=self.folder, text=True,
            capture_output=True, check=False, timeout=PATIENCE, **options,
        )  # fmt: skip

    def spawn(self) -> None:
        """Start it, and do not wait. It leads a process group of its own."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepway", "up", "--data-dir", str(self.data), "--port", "0",
                 "--ready-file", str(self.ready_file)],
                env=self.environment(), cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def start(self) -> "Stepway":
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        ready = until(lambda: self.ended or self._ready(), what="the ready file")
        assert isinstance(ready, dict), self.said()
        self.url, self.admin_key_file = ready["url"], ready["admin_key_file"]
        if self.admin_key_file is not None:
            self.key = Path(self.admin_key_file).read_text().strip()

    def _ready(self) -> dict[str, Any] | None:
        """What the ready file says, unless one that was killed has left it."""
        try:
            said: dict[str, Any] = json.loads(self.ready_file.read_text())
        except FileNotFoundError:
            return None
        return said if said["pid"] == self.pid else None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def ended(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, number: int, *, group: bool = False) -> None:
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> int:
        assert self.process is not None
        return self.process.wait(timeout)

    def stop(self) -> float:
        """SIGTERM; the seconds that it took to end."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        assert self.wait() == 0, self.said()
        return time.monotonic() - began

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()

    def clean_up(self) -> None:
        """At a test's end: nothing that was started here is left, whatever became of the test."""
        if self.process is not None and not self.ended:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            self.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    # ---- what it left on the machine

    def processes(self, *, what: str = "") -> dict[int, str]:
        """{pid: command line} of every process that has a path of this test's folder in its command line, but ourselves."""
        found = {}
        for path in Path("/proc").iterdir():
            if not path.name.isdigit() or int(path.name) == os.getpid():
                continue
            try:
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (path / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(self.folder) in line and what in line and state not in "ZX":
                found[int(path.name)] = line
        return found

    def postgres(self) -> list[int]:
        return [pid for pid, line in self.processes(what="/postgres").items() if "-D" in line]

    def servers(self) -> list[int]:
        """The model servers of this installation's workers."""
        return [pid for pid, line in self.processes(what=".gguf").items() if "up --data-dir" not in line]

    def database(self) -> str:
        if "database_url" in self.settings:
            return str(self.settings["database_url"])
        socket = (self.data / "postgres" / "socket").resolve()
        return f"postgresql://stepway@/stepway?host={quote(str(socket))}&port=5432"

    def sql(self, statement: str, *values: object) -> list[Any]:
        with psycopg.connect(self.database(), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    # ---- asking

    def ask(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.key}", **options.pop("headers", {})}
        with httpx.Client(base_url=self.url, headers=headers, timeout=70, trust_env=False) as client:
            answer = client.request(method, path, **options)
        self.answers.append(answer.text)
        return answer

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.ask("POST", path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    # ---- the main job

    def step(self, wizard: str, workflow: str | None, number: int, total: int, **fields: object) -> Any:
        begun = {"workflow_id": workflow} if workflow else {"workflow_total_steps": total}
        return self.post(wizard, {**begun, "step_number": number, **fields})

    def import_model(self, uri: str, *, source: str = "disk", name: str = "smol", credential: str | None = None) -> Any:
        """Trigger; the workflow."""
        path = "/models/local-model-workflow"
        workflow = self.step(path, None, 1, 6, modality="llm")["workflow_id"]
        self.step(path, workflow, 2, 6, provider_type=source)
        details = {"name": name, "uri": uri, "icon": ICON}
        if credential is None:
            return self.step(path, workflow, 3, 6, **details, trigger_workflow=True)
        self.step(path, workflow, 3, 6, **details)
        return self.step(path, workflow, 4, 6, proprietary_credential_id=credential, trigger_workflow=True)

    def scan(self, model_id: str) -> Any:
        return self.step("/models/security-scan", None, 1, 3, model_id=model_id, trigger_workflow=True)

    def deploy(
        self,
        model_id: str,
        *,
        name: str = "chat",
        cluster_id: str | None = None,
        config: dict[str, int] | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> Any:
        """Trigger; the workflow. To this machine unless told otherwise."""
        path = "/models/deploy-workflow"
        cluster_id = cluster_id or next(one["id"] for one in self.get("/clusters")["data"] if one["kind"] == "local")
        project = self.get("/projects")["data"][0]["id"]
        workflow = self.step(path, None, 1, 6, project_id=project, model_id=model_id)["workflow_id"]
        config = config or {"concurrent_requests": 1, "avg_sequence_length": 64, "avg_context_length": 64}
        self.step(path, workflow, 3, 6, endpoint_name=name, deploy_config=config, tuning=tuning)
        return self.step(path, workflow, 5, 6, cluster_id=cluster_id, trigger_workflow=True)

    def add_worker(self, endpoint_id: str) -> Any:
        path = "/endpoints/add-worker"
        workflow = self.step(path, None, 1, 5, endpoint_id=endpoint_id, additional_concurrency=1)["workflow_id"]
        return self.step(path, workflow, 3, 5, trigger_workflow=True)

    def delete_endpoint(self, endpoint_id: str) -> Any:
        answer = self.ask("DELETE", f"/endpoints/{endpoint_id}")
        assert answer.status_code == 202, answer.text
        return {"job": answer.json()}

    def ended_job(self, workflow: Any) -> Any:
        job = workflow["job"]["id"]
        return until(lambda: (one := self.get(f"/jobs/{job}?wait=10"))["state"] in FINAL and one, what=f"job {job}")

    def made(self, workflow: Any) -> str:
        """Wait for the job to succeed; the id of what it made."""
        job = self.ended_job(workflow)
        assert job["state"] == "succeeded", job
        return str(self.get(f"/workflows/{workflow['workflow_id']}")["result"]["id"])

    def serve(self, model_file: Path) -> tuple[str, str]:
        """Import, scan and deploy; the ids of the model and of the endpoint."""
        model = self.made(self.import_model(str(model_file)))
        self.made(self.scan(model))
        return model, self.made(self.deploy(model))

    def chat(self, endpoint_id: str) -> str:
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        answer = self.post(f"/endpoints/{endpoint_id}/v1/chat/completions", body)
        return str(answer["choices"][0]["message"]["content"])

    def chats(self, endpoint_id: str) -> bool:
        """Whether it answers now; for waiting until it does."""
        body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 2}
        return self.ask("POST", f"/endpoints/{endpoint_id}/v1/chat/completions", json=body).status_code == 200


FINAL = ("succeeded", "failed", "cancelled", "cleanup_required")


def until(look: Callable[[], T], *, seconds: float = PATIENCE, what: str = "that") -> T:
    """Wait until `look` returns something true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
