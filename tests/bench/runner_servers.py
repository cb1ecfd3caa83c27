"""The processes of `tests.bench.runner`: ours and the public server, both with the flows of `runner_flows`, one process each."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.bench import peers
from tests.testbed.processes import free_ports

FLOWS = Path(__file__).with_name("runner_flows.py")
PEER = Path(__file__).with_name("runner_peer.py")
START_SECONDS = 60.0
IDLE = 2.0  # seconds after which both release a run that waits; ours by default


class Server:
    """Started when it is made. `steps`: the file in which runs of the flow `long` tell that they are in their last step."""

    def __init__(self, folder: Path, *, ours: bool, url: str | None) -> None:
        self._folder = folder
        self._ours = ours
        self._url = url
        self.name = f"{'ours' if ours else 'peer'}-{'postgres' if url else 'memory'}"
        self.steps = folder / f"{self.name}.steps"
        self.start()

    def start(self) -> None:
        """Again, too, after `kill`; on another port. RuntimeError when it does not come up."""
        [port] = free_ports(1)
        self.host = ("127.0.0.1", port)
        self.steps.write_bytes(b"")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(peers.ROOT) if self._ours else "",
            "STEPS": str(self.steps),
        }
        log = self._folder / f"{self.name}.log"
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self._command(port), env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self._folder
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.name} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def resident(self) -> float:
        """Megabytes of its process."""
        line = next(one for one in Path(f"/proc/{self.process.pid}/status").read_text().splitlines() if "VmRSS" in one)
        return int(line.split()[1]) * 1024 / 1e6

    def steps_seen(self) -> int:
        return self.steps.stat().st_size

    def wait_for_steps(self, count: int, seconds: float) -> bool:
        """Whether so many runs have come to their last step within the time."""
        deadline = time.monotonic() + seconds
        while self.steps_seen() < count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _command(self, port: int) -> list[str]:
        if self._ours:
            command = [sys.executable, "-m", "stepway", "serve", str(FLOWS), "--host", "127.0.0.1", "--port", str(port)]
            return [*command, "--idle-release", str(IDLE), *(["--database", self._url] if self._url else [])]
        command = [str(peers.environment() / "python"), str(PEER), str(port), str(IDLE)]
        return [*command, *([self._url] if self._url else [])]

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.host[1]}/health", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False
