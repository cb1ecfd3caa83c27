"""Workloads and runtimes for tests, as jobs would make them."""

import contextlib
import hashlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from services.cluster.runtimes.base import Workload
from services.cluster.runtimes.containers import Container, Delivery, Probes, Resources
from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from shared.contracts.models import ModelFile
from tests.testbed.kube import LOOPBACK, ApiServer

MIB = 1024 * 1024
OWNER = "0b7a2f60-7f5e-4f0e-9d3c-3a5c6b8f1e21"
KEY = "sk-worker-0123456789abcdef"
PYTHON = "stepway-testbed/python:1"

# A server that says who it is, checks its key as engines do, and obeys its environment.
SERVER = """
import http.server, os, signal, sys, time
KEY = open("/etc/stepway/secrets/api-key").read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        if self.path == "/health":
            return self.answer(200 if not os.path.exists("/tmp/ill") else 503, "{}")
        if self.path == "/ill":
            open("/tmp/ill", "w").close()
        if self.headers.get("X-Api-Key") != KEY:
            return self.answer(401, '{"error": "key"}')
        if self.path.startswith("/models/"):
            with open(self.path, "rb") as data:
                return self.answer(200, data.read().decode())
        self.answer(200, os.uname().nodename)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            part = b"data: %d %s\\n\\n" % (number, body)
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(part), part))
            self.wfile.flush()
            time.sleep(float(os.environ.get("BETWEEN", "0")))
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, format, *args):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("listening", flush=True)
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""


def container(program: str = SERVER, **changes: Any) -> Container:
    values: dict[str, Any] = {
        "image": PYTHON,
        "command": ["python3", "-u", "-c", program],
        "secret_files": ["api-key"],
        "probes": Probes(start_seconds=60, interval=1, timeout=2),
        "resources": Resources(cpu_millis=50, memory_bytes=64 * MIB),
        "drain_seconds": 0,
        "stop_grace": 2,
    }
    return Container(**{**values, **changes})


def workload(endpoint_id: str, generation: int = 1, replicas: int = 1, **changes: Any) -> Workload:
    values: dict[str, Any] = {
        "container": container(),
        "memory_bytes": 64 * MIB,
        "api_key": SecretStr(KEY),
        "job": "11111111-2222-3333-4444-555555555555",
    }
    return Workload(endpoint_id=endpoint_id, generation=generation, replicas=replicas, **{**values, **changes})


def file_of(path: str, content: bytes) -> ModelFile:
    return ModelFile(path=path, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def digest_of(files: list[ModelFile]) -> str:
    lines = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256(lines.encode()).hexdigest()


def delivery(contents: dict[str, bytes], **changes: Any) -> Delivery:
    files = [file_of(path, content) for path, content in contents.items()]
    values: dict[str, Any] = {"mode": "fetch", "digest": digest_of(files), "files": files}
    return Delivery(**{**values, **changes})


@contextlib.asynccontextmanager
async def connected(server: ApiServer, owner: str = OWNER, **user: Any) -> AsyncIterator[KubernetesRuntime]:
    """A runtime with the least rights, those of deploy/cluster-access.yaml."""
    limits = Limits(connections=64)
    kubeconfig = server.kubeconfig(**user or {"token": server.token()})
    async with KubernetesClient(kubeconfig, addresses=LOOPBACK, limits=limits) as client:
        yield KubernetesRuntime(client, owner)


LOADER = Path(sys.modules[KubernetesRuntime.__module__].__file__ or "").with_name("loader.py")
