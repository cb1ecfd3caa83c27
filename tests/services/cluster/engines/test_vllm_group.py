"""The program that makes one vLLM of several pods, with its own processes here and stand-ins for what cannot run here.

`ray` stands in for Ray's command: a head that listens, nodes that stay connected to it, and end with it. `vllm` for the
server: it answers its health path. Both are small real programs that are given the arguments that the real ones are given.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from services.cluster.engines import vllm_group
from tests.testbed.processes import free_ports

PROGRAM = Path(vllm_group.__file__)
RAY = """
import socket, sys, time
flags = dict(part.lstrip("-").partition("=")[::2] for part in sys.argv[2:])
if "head" in flags:
    server = socket.create_server((flags["node-ip-address"], int(flags["port"])))
    kept = []
    while True:
        kept.append(server.accept())
else:
    host, _, port = flags["address"].rpartition(":")
    sys.exit(1 if socket.create_connection((host, int(port))).recv(1) == b"" else 0)
"""
VLLM = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if os.path.exists(sys.argv[3]) else 200)
        self.end_headers()
http.server.ThreadingHTTPServer((os.environ["VLLM_HOST_IP"], int(sys.argv[2])), Handler).serve_forever()
"""


class Group:
    """Pods as processes, each on a loopback address of its own."""

    def __init__(self, folder: Path, pods: int) -> None:
        self.folder, self.pods = folder, pods
        self.port, self.ray, self.meeting = free_ports(3)
        self.ill = folder / "ill"
        self.processes: list[asyncio.subprocess.Process] = []
        for name, program in (("ray", RAY), ("vllm", VLLM)):
            path = folder / name
            path.write_text(f"#!{sys.executable}\n{program}")
            path.chmod(0o755)

    async def start(self, rank: int, template: str = "one") -> asyncio.subprocess.Process:
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}",
            "STEPWAY_RANK": str(rank),
            "STEPWAY_PODS": str(self.pods),
            "STEPWAY_POD_IP": address(rank),
            "STEPWAY_LEADER": address(0),
            "STEPWAY_TEMPLATE": template,
        }
        ports = [f"--port={self.port}", f"--ray-port={self.ray}", f"--meeting-port={self.meeting}"]
        serve = ["vllm", "serve", str(self.port), str(self.ill)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), *ports, "--", *serve, env=environment, start_new_session=True
        )
        self.processes.append(process)
        return process

    async def health(self, rank: int) -> int | None:
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(f"http://{address(rank)}:{self.port}/health", timeout=10)).status_code
        except httpx.TransportError:
            return None

    async def until(self, expected: list[int | None]) -> None:
        found: list[int | None] = []
        try:
            async with asyncio.timeout(60):
                while found != expected:
                    await asyncio.sleep(0.1)
                    found = [await self.health(rank) for rank in range(self.pods)]
        except TimeoutError:
            raise AssertionError(f"{found} is not {expected}") from None


def address(rank: int) -> str:
    return f"127.0.0.{rank + 1}"


def kill(process: asyncio.subprocess.Process) -> None:
    """The pod with all its processes, as when its node dies."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


async def ended(process: asyncio.subprocess.Process) -> int:
    """The exit code; what a pod's end takes along is taken along here too."""
    code = await asyncio.wait_for(process.wait(), 60)
    kill(process)
    return code


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Callable[[int], Group]]:
    made: list[Group] = []

    def make(pods: int) -> Group:
        made.append(Group(tmp_path, pods))
        return made[0]

    yield make
    for process in made[0].processes:
        kill(process)
        await process.wait()


async def test_a_group_serves_once_all_are_there_and_is_well_together(group: Callable[[int], Group]) -> None:
    it = group(3)
    await it.start(2)
    await it.start(0)
    await it.until([None, None, 503])
    await it.start(1)
    await it.until([200, 200, 200])
    it.ill.touch()
    await it.until([503, 503, 503])


async def test_who_loses_another_ends_and_a_new_one_is_formed(group: Callable[[int], Group]) -> None:
    it = group(3)
    leader, first, second = [await it.start(rank) for rank in range(3)]
    await it.until([200, 200, 200])
    kill(first)
    assert await ended(leader) == 1
    assert await ended(second) == 1
    leader, first, second = [await it.start(rank) for rank in range(3)]
    await it.until([200, 200, 200])
    kill(leader)
    assert [await ended(first), await ended(second)] == [1, 1]


async def test_pods_of_two_versions_do_not_work_together(group: Callable[[int], Group]) -> None:
    it = group(2)
    leader = await it.start(0, "new")
    old = await it.start(1, "old")
    await it.until([None, 503])
    kill(old)
    await old.wait()
    await it.start(1, "new")
    await it.until([200, 200])
    assert leader.returncode is None


async def test_a_leader_that_is_asked_to_end_takes_its_followers_along(group: Callable[[int], Group]) -> None:
    it = group(2)
    leader, follower = [await it.start(rank) for rank in range(2)]
    await it.until([200, 200])
    follower.terminate()
    await it.until([200, 200])  # it stays as long as its leader may need it
    leader.terminate()
    assert [await ended(leader), await ended(follower)] == [0, 0]
    alone = await it.start(1)
    await it.until([None, 503])
    alone.terminate()
    assert await ended(alone) == 0


async def test_a_server_that_ends_ends_the_group(group: Callable[[int], Group]) -> None:
    it = group(2)
    (it.folder / "vllm").write_text(f"#!{sys.executable}\nimport sys\nsys.exit(7)\n")
    leader, follower = [await it.start(rank) for rank in range(2)]
    assert [await ended(leader), await ended(follower)] == [1, 1]


async def test_nonsense_at_the_meeting_point_disturbs_nobody(group: Callable[[int], Group]) -> None:
    it = group(2)
    await it.start(0)
    for sent in (b"\n", b"[]\n", b'{"rank": "x"}\n', b'{"rank": 7, "template": "one"}\n', b"x" * 100_000 + b"\n"):
        async with asyncio.timeout(60):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(address(0), it.meeting)
                    break
                except OSError:
                    await asyncio.sleep(0.1)
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
    await it.start(1)
    await it.until([200, 200])
