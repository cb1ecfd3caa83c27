"""Many endpoints on a large cluster of fake nodes: how fast they come, what they cost, how soon a change is seen.

The control plane is a real one; KWOK plays the nodes and says at once that a pod is ready, and nothing runs in it. So
nothing fetches a model, and `Prober` stands in for inference: it is the address of the cluster's ingress, and answers
each worker's first question itself. All else of a deploy is as it is anywhere.

The peer of a deploy is the same objects, applied under other names by plain HTTP, and a watch until its pod is ready:
batches take turns. State lag: a pod's readiness is changed at the API server, and the endpoint's state is asked for
until it follows; the floor is when a plain watch shows the same change.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler

from tests.bench.clusters import DEPLOY, Applied, Registered, model_file, need
from tests.bench.clusters_calls import Calls
from tests.bench.clusters_lag import Seen, measure_lag
from tests.bench.figures import Figure, percentile
from tests.bench.memory import of_service
from tests.bench.server import Stepway
from tests.serving import Fault, Server, send
from tests.testbed.kwok import KwokCluster

SETTLED_SECONDS = 5.0
ALLOWED_LAG = 2.0


@dataclass(frozen=True, slots=True)
class Sizes:
    nodes: int = 1000
    batches: int = 4  # of each, Stepway's and the peer's
    batch: int = 25
    in_flight: int = 8  # deploys of a batch at a time
    at_once: int = 100
    changes: int = 60  # rounds, of `changed` endpoints each, there and back
    changed: int = 5


QUICK = Sizes(nodes=200, batches=1, batch=10, at_once=10, changes=5, changed=2)


class Prober(Server):
    """Answers the first question to a worker, with words that say that no model runs."""

    def answer(self, request: BaseHTTPRequestHandler, fault: Fault | None) -> None:
        request.rfile.read(int(request.headers.get("Content-Length", "0")))
        known = request.headers.get("Host", "").endswith(".stepway.internal")
        if request.path != "/v1/chat/completions" or not known:
            send(request, 404, b"{}", {})
            return
        message = {"role": "assistant", "content": "This is the bench; no model runs here."}
        send(request, 200, json.dumps({"choices": [{"index": 0, "message": message}]}).encode(), {})


def run(quick: bool) -> list[Figure]:
    need("kube", "kwok")
    return measure(QUICK if quick else Sizes())


def measure(sizes: Sizes) -> list[Figure]:
    with Prober() as prober:
        settings = {"STEPWAY_ALLOW_LOOPBACK_CLUSTERS": "true", "STEPWAY_ADVERTISED_URL": prober.url}
        with Stepway(STEPWAY_MODEL_ROOTS=str(model_file().parent), **settings) as stepway:
            calls = Calls(stepway.root)
            with KwokCluster(sizes.nodes, flags=calls.flags) as cluster:
                cluster.api.apply_access()
                registered = Registered.on(stepway, cluster.api, prober.url)
                return _Scale(registered, cluster, calls, sizes).figures()


class _Scale:
    """One run. `endpoints` are those of Stepway that are there."""

    def __init__(self, registered: Registered, cluster: KwokCluster, calls: Calls, sizes: Sizes) -> None:
        self._registered = registered
        self._stepway = registered.stepway
        self._api = cluster.api
        self._calls = calls
        self._sizes = sizes
        self.endpoints: list[str] = []

    def figures(self) -> list[Figure]:
        sizes = self._sizes
        self._deploy(1, 1)  # warms up
        self._apply(1, 1)
        self._registered.delete(self.endpoints.pop())
        idle = self._memory()
        ours, plain, calls = self._turns()
        apart = sizes.batches * sizes.batch
        together = self._deploy(sizes.at_once, sizes.at_once)
        together_plain = self._apply(sizes.at_once, sizes.at_once)
        grown, made = self._memory() - idle, len(self.endpoints)
        seen = asyncio.run(measure_lag(self._stepway, self._api, self.endpoints, sizes.changes, sizes.changed))
        each = len(Applied.like(self._api, self.endpoints[0]).objects)
        return [
            Figure(
                f"deploys, {sizes.in_flight} at a time, {sizes.nodes:,} nodes", 60 * sizes.batch / _middle(ours), "1/min",
                60 * sizes.batch / _middle(plain), "1/min apply + wait", note=f"{sizes.batches} batches of {sizes.batch}",
            ),
            Figure(
                f"{sizes.at_once} deploys at once, until all are ready", together, "s", together_plain, "s apply + wait",
            ),
            Figure(
                "requests to the API server per deploy", calls.total() / apart, "", each + 1, "apply + wait",
                note=_commonest(calls, apart),
            ),
            Figure(f"memory for {made} endpoints more", grown, "MB", note="of all processes but PostgreSQL's"),
            *_lag(seen, len(self.endpoints)),
        ]  # fmt: skip

    def _turns(self) -> tuple[list[float], list[float], Counter[str]]:
        """Seconds of each batch, Stepway's and the peer's, and what Stepway asked for in its own."""
        ours, plain, calls = [], [], Counter[str]()
        for _ in range(self._sizes.batches):
            self._calls.since()
            ours.append(self._deploy(self._sizes.batch, self._sizes.in_flight))
            calls += self._calls.since()
            plain.append(self._apply(self._sizes.batch, self._sizes.in_flight))
        return ours, plain, calls

    def _deploy(self, count: int, in_flight: int) -> float:
        """Seconds from the first trigger until the last job has succeeded. Raises RuntimeError unless all are running."""
        there = len(self.endpoints)
        drafts = [self._registered.draft(f"endpoint {there + number}") for number in range(count)]
        made: list[str] = []

        def one(number: int) -> None:
            workflow = self._stepway.finish(self._stepway.post(DEPLOY, drafts[number]))
            made.append(str(workflow["result"]["id"]))

        seconds = _together(one, count, in_flight)
        if odd := [one for one in made if self._stepway.get(f"/endpoints/{one}")["state"] != "running"]:
            raise RuntimeError(f"{len(odd)} of {count} endpoints are not running")
        self.endpoints += made
        return seconds

    def _apply(self, count: int, in_flight: int) -> float:
        """Seconds from the first apply until the last pod was ready; nothing of it is left."""
        applied = [Applied.like(self._api, self.endpoints[0]) for _ in range(count)]
        seconds = _together(lambda number: applied[number].apply(self._api.admin), count, in_flight)
        _together(lambda number: applied[number].delete(self._api.admin), count, in_flight)
        return seconds

    def _memory(self) -> float:
        time.sleep(SETTLED_SECONDS)
        return of_service(self._stepway)


def _together(work: Callable[[int], None], count: int, in_flight: int) -> float:
    """Seconds until all of it is done, so many at a time."""
    with ThreadPoolExecutor(in_flight) as pool:
        began = time.perf_counter()
        list(pool.map(work, range(count)))
        return time.perf_counter() - began


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _commonest(calls: Counter[str], deploys: int) -> str:
    return ", ".join(f"{name} {count / deploys:.1f}" for name, count in calls.most_common(8))


def _lag(seen: Seen, endpoints: int) -> list[Figure]:
    """The target is for what a client of Stepway sees; the plain watch tells what of it is the cluster's."""
    (p50, p99), (floor50, floor99) = (
        tuple(1000 * percentile(values, share) for share in (0.5, 0.99)) for values in (seen.ours, seen.floor)
    )
    note = f"{len(seen.ours)} changes; p50 {p50:.0f} ms; a plain watch p50 {floor50:.0f}, p99 {floor99:.0f} ms"
    name = f"change of a pod → endpoint's state, {endpoints} endpoints, p99"
    return [Figure(name, p99 / 1000, "s", at_most=ALLOWED_LAG, note=note)]
