"""A real `stepway up` in a process of its own, with its durable embedded PostgreSQL, and what a bench asks of it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

START_SECONDS = 60.0
END_SECONDS = 10.0
FINAL = ("succeeded", "failed", "cancelled", "cleanup_required")


class Stepway:
    """Use as `with Stepway() as stepway`. The data directory is below `folder` or the temporary files; it goes at the end."""

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._folder = tempfile.TemporaryDirectory(prefix="stepway-bench-", ignore_cleanup_errors=True)
        self.root = Path(self._folder.name)
        self.data = self.root / "data"
        self.models = self.root / "models"  # from here models may be added by path
        self.models.mkdir()

    def __enter__(self) -> Self:
        ready, home = self.root / "ready.json", self.root / "home"
        home.mkdir()
        # Far more requests and streams than a client may have in earnest: the limits are counted, but never met.
        settings = {
            "STEPWAY_RATE_QUOTA": "100000000",
            "STEPWAY_STREAMS_PER_KEY": "1000",
            "STEPWAY_MODEL_ROOTS": str(self.models),
            **self._environment,
        }
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **settings}
        command = [sys.executable, "-m", "stepway", "up", "--data-dir", str(self.data), "--port", "0"]
        with (self.root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--ready-file", str(ready)], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            self._wait_until(ready)
        except BaseException:
            self._end()
            raise
        told = json.loads(ready.read_text())
        self.url: str = told["url"]
        self.key = Path(told["admin_key_file"]).read_text().strip()
        self.pid: int = told["pid"]
        self.client = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=90, trust_env=False
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self._end()

    @property
    def host(self) -> tuple[str, int]:
        url = httpx.URL(self.url)
        return url.host, url.port or 80

    @property
    def database_url(self) -> str:
        return f"postgresql://stepway@/stepway?host={quote(str(self.data / 'postgres' / 'socket'))}&port=5432"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return _checked(self.client.post(path, json=body))

    def get(self, path: str) -> dict[str, Any]:
        return _checked(self.client.get(path))

    def finish(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """The workflow when its job has ended; RuntimeError unless it has succeeded."""
        while (job := self.get(f"/jobs/{workflow['job']['id']}?wait=30"))["state"] not in FINAL:
            pass
        if job["state"] != "succeeded":
            raise RuntimeError(f"the job {job['kind']} has ended {job['state']}: {job['error']}")
        return self.get(f"/workflows/{workflow['workflow_id']}")

    def processes(self) -> list[int]:
        """Stepway's own process and all below it."""
        return with_descendants(self.pid)

    def _wait_until(self, ready: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Stepway did not start:\n{(self.root / 'log').read_text()[-4000:]}")
            time.sleep(0.02)

    def _end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def with_descendants(first: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, parent = int(status.parent.name), int(status.read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue  # it has just ended
        children.setdefault(parent, []).append(pid)
    found = [first]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _checked(response: httpx.Response) -> dict[str, Any]:
    if response.status_code >= 300:
        raise RuntimeError(f"{response.request.url.path} answered {response.status_code}: {response.text[:1000]}")
    answer: dict[str, Any] = response.json()
    return answer
