"""Following a real API server: what changes is told at once, what was missed is made up for, an outage is told and over."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.cluster.runtimes.base import Observation
from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from services.cluster.runtimes.kubernetes.objects import Objects
from services.cluster.runtimes.kubernetes.runtime import KubernetesRuntime
from services.cluster.runtimes.kubernetes.watcher import KINDS, Pace, Watcher
from shared.jobs.outcomes import Retry, StepError
from shared.security.kubeconfig import KubeconfigPolicy, parse
from tests.services.cluster.runtimes.kubernetes.support import OWNER, connected, workload
from tests.testbed.certificates import as_yaml, authority, encoded, kubeconfig
from tests.testbed.kube import LOOPBACK, ApiServer
from tests.testbed.tls_server import VERSION, Request, http, serving

REQUESTS = 2 * len(KINDS) - 1  # a list and a watch of each; this cluster knows no HTTPRoute
QUICK = Pace(watch=240, silence=300, first_retry=0.05, longest_retry=0.2, ask=0.2)


class Relay:
    """A TCP relay before the API server that can be cut and opened again."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._pipes: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.connections = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        await self._server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        self.connections += 1
        other: asyncio.StreamWriter | None = None
        try:
            back, other = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(_pipe(reader, other), _pipe(back, writer))
        finally:
            self._pipes.discard(task)
            for one in (writer, other):
                if one is not None:
                    one.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
async def relay(api_server: ApiServer) -> AsyncIterator[Relay]:
    relay = Relay(api_server.url)
    await relay.open()
    yield relay
    await relay.cut()


@pytest.fixture
async def runtime(api_server: ApiServer) -> AsyncIterator[KubernetesRuntime]:
    async with connected(api_server) as runtime:
        yield runtime
        await runtime.remove_all()


@contextlib.asynccontextmanager
async def watching(api_server: ApiServer, relay: Relay) -> AsyncIterator[tuple[Watcher, KubernetesRuntime]]:
    """A watcher, and a runtime that has it, behind the relay."""
    ca = encoded(api_server.authority.pair.certificate)
    cluster = {"server": f"https://127.0.0.1:{relay.port}", "certificate-authority-data": ca}
    made = kubeconfig(cluster=cluster, user={"token": api_server.token()})
    limits = Limits(connections=64, connect=1, read=2)
    client = KubernetesClient(
        parse(as_yaml(made), KubeconfigPolicy(addresses=LOOPBACK)), addresses=LOOPBACK, limits=limits
    )
    async with client, Watcher(Objects(client), OWNER, pace=QUICK) as watcher:
        async with asyncio.timeout(10):
            await watcher.synced.wait()
        yield watcher, KubernetesRuntime(client, OWNER, watcher)


async def until(
    runtime: KubernetesRuntime, endpoint_id: str, holds: Callable[[Observation | None], bool], seconds: float = 2.0
) -> float:
    """How long it takes the watcher to tell; at most 2 s is promised."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    async with asyncio.timeout(seconds):
        async for told in runtime.changes(every=0.5):
            if endpoint_id in told and holds(told[endpoint_id]):
                return clock() - begin
    raise AssertionError("changes have no end")


def reason(expected: str | None) -> Callable[[Observation | None], bool]:
    return lambda seen: seen is not None and seen.reason == expected


async def test_changes_are_told_within_two_seconds(
    api_server: ApiServer, relay: Relay, runtime: KubernetesRuntime
) -> None:
    async with watching(api_server, relay) as (watcher, watched):
        await runtime.apply(workload("w"))
        await until(watched, "w", reason(None))
        await runtime.scale("w", 4, 2)
        await until(watched, "w", lambda seen: seen is not None and (seen.replicas, seen.generation) == (4, 2))
        api_server.admin.delete("/api/v1/namespaces/stepway/services/ep-w").raise_for_status()
        await until(watched, "w", reason("removed_by_others"))
        await runtime.heal("w")
        await until(watched, "w", reason(None))
        requests = watcher.requests
        gone = asyncio.create_task(until(watched, "w", lambda seen: seen is None, 5.0))
        await asyncio.sleep(0)  # it listens from now on
        await runtime.remove("w")
        await gone
        assert watcher.requests == requests == REQUESTS
        assert await watched.observe() == {}


async def test_who_waits_by_a_watcher_that_ends_is_told_to_try_again(
    api_server: ApiServer, relay: Relay, runtime: KubernetesRuntime
) -> None:
    """A job may wait by the watch of its process, which another process may take over."""
    await runtime.apply(workload("waits"))
    async with watching(api_server, relay) as (watcher, watched):
        messages: list[str] = []
        waiting = asyncio.create_task(watched.wait_ready("waits", 1, 600, lambda _, said: messages.append(said)))
        await _within(lambda: messages)
        assert watcher.requests == REQUESTS  # it asks for nothing that the watcher knows
    with pytest.raises(Retry) as raised:
        await asyncio.wait_for(waiting, 30)
    assert raised.value.code == "cluster_unavailable"


async def test_one_endpoint_is_observed_alone(api_server: ApiServer, runtime: KubernetesRuntime) -> None:
    for name in ("this", "that"):
        await runtime.apply(workload(name))
    one = await runtime.observe_one("this")
    assert one is not None
    assert (one.endpoint_id, one.replicas, one.reason) == ("this", 1, None)
    assert await runtime.observe_one("thi") is None


async def test_an_outage_is_told_and_what_happened_meanwhile_is_made_up_for(
    api_server: ApiServer, relay: Relay, runtime: KubernetesRuntime
) -> None:
    await runtime.apply(workload("stays"))
    await runtime.apply(workload("goes"))
    async with watching(api_server, relay) as (watcher, watched):
        await until(watched, "goes", reason(None))
        await relay.cut()
        fault = await _within(lambda: watcher.fault)
        assert isinstance(fault, StepError)
        assert fault.code in ("cluster_refused", "cluster_unavailable")
        assert (await watched.observe())["stays"].replicas == 1  # what was last known
        await runtime.remove("goes")
        await runtime.scale("stays", 5, 2)
        await asyncio.sleep(0.3)
        attempts = relay.connections
        await relay.open()
        await until(watched, "stays", lambda seen: seen is not None and seen.replicas == 5)
        await _within(lambda: watcher.fault is None)
        assert "goes" not in await watched.observe()
        assert relay.connections - attempts < 60  # backoff, and no herd


@pytest.mark.parametrize("by_status", [True, False])
async def test_a_history_that_is_too_short_is_listed_anew(by_status: bool) -> None:
    lists: list[str] = []

    def answer(request: Request) -> bytes:
        path = request.target.partition("?")[0].rpartition("/")[2]
        if path == "version":
            return http(VERSION)
        if "watch=true" not in request.target:
            lists.append(path)
            labels = {"stepway/endpoint": f"seen-{lists.count(path)}"}
            item = {"metadata": {"uid": "1", "name": "x", "labels": labels, "resourceVersion": str(len(lists))}}
            return http({"metadata": {"resourceVersion": "7"}, "items": [item]})
        if lists.count(path) > 1:
            return http({"kind": "Status"}, 503)
        gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
        return http(gone, 410) if by_status else http({"type": "ERROR", "object": gone})

    async with serving(answer) as server:
        cluster = {"server": server.url, "certificate-authority-data": encoded(authority().pair.certificate)}
        parsed = parse(as_yaml(kubeconfig(cluster=cluster)), KubeconfigPolicy(addresses=LOOPBACK))
        client = KubernetesClient(parsed, addresses=LOOPBACK)
        async with client, Watcher(Objects(client), OWNER, pace=QUICK) as watcher:
            await _within(lambda: "seen-2" in watcher.looks())
    assert max(lists.count(path) for path in lists) >= 2


async def _within(ask: Callable[[], Any], seconds: float = 5.0) -> Any:
    async with asyncio.timeout(seconds):
        while not (found := ask()):
            await asyncio.sleep(0.02)
    return found
