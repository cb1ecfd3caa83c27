"""A deploy on a real cluster of one node with real pods, against the same objects applied by plain HTTP, in turns.

What is counted of a deploy: from the moment in which its trigger is sent until the job's step `wait_ready` has ended,
by the ledger, less all of the step `bring_model`: making the claim and its loader, and the model's bytes. So verifying,
trying the objects on the server, applying them, the pod's start, and all of the engine's own time are in; the first
inference and publishing, which come later, are not. The peer's pods read a claim that a deploy has filled before.
What is judged is the pair of runs in the middle, by their difference: kubelets look only once a second.
"""

from datetime import datetime

from tests.bench.clusters import Applied, Json, Registered, model_file, need
from tests.bench.figures import Figure
from tests.bench.server import Stepway
from tests.testbed.cluster import Cluster

IMAGES = ("python", "llama")
SETTINGS = {
    "STEPWAY_IMAGE_LLAMA_CPP": "stepway-testbed/llama:1",
    "STEPWAY_IMAGE_LLAMA_CPP_PROGRAM": "xllamacpp",
    "STEPWAY_IMAGE_LOADER": "stepway-testbed/python:1",
}
ALLOWED_SECONDS = 1.0


def run(quick: bool) -> list[Figure]:
    need("kube", "coredns", pods=True, images=IMAGES)
    folder = model_file().parent
    with Cluster() as cluster:
        cluster.api.apply_access()
        cluster.load(*IMAGES)
        with Stepway(STEPWAY_MODEL_ROOTS=str(folder), **SETTINGS) as stepway:
            registered = Registered.on(stepway, cluster.api)
            return measure(registered, cluster, 2 if quick else 9)


def measure(registered: Registered, cluster: Cluster, rounds: int) -> list[Figure]:
    first, _, _ = registered.deploy("first")  # warms up, and its claim is the peer's
    pairs: list[tuple[float, float]] = []
    jobs: list[Json] = []

    def deploy(number: int) -> float:
        endpoint, sent, job = registered.deploy(f"number {number}")
        registered.delete(endpoint)
        jobs.append(job)
        return _end(job, "wait_ready") - sent - _seconds(job, "bring_model")

    def apply() -> float:
        applied = Applied.like(cluster.api, first)
        applied.apply(cluster.api.admin)
        applied.delete(cluster.api.admin)
        return applied.taken

    apply()  # warms up
    for number in range(rounds):
        if number % 2:
            plain = apply()
            pairs.append((deploy(number), plain))
        else:
            ours = deploy(number)
            pairs.append((ours, apply()))
    return _figures(pairs, jobs)


def _figures(pairs: list[tuple[float, float]], jobs: list[Json]) -> list[Figure]:
    by_difference = sorted(pairs, key=lambda pair: pair[0] - pair[1])
    ours, plain = by_difference[len(pairs) // 2]
    spread = [round(ours - plain, 2) for ours, plain in by_difference]
    steps = {key: _middle([_seconds(job, key) for job in jobs]) for key in ("verify", "bring_model", "apply", "probe")}
    own = ", ".join(f"{key} {1000 * seconds:.0f} ms" for key, seconds in steps.items())
    return [
        Figure(
            "trigger → pods ready, without bringing the model", ours, "s", plain, "s apply + wait", by="difference",
            at_most=ALLOWED_SECONDS, note=f"of {len(pairs)} pairs: {spread}",
        ),
        Figure("Stepway's own steps before the wait", steps["verify"] + steps["apply"], "s", note=own),
    ]  # fmt: skip


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _end(job: Json, key: str) -> float:
    """In seconds since 1970."""
    return datetime.fromisoformat(_step(job, key)["ended_at"]).timestamp()


def _seconds(job: Json, key: str) -> float:
    return _end(job, key) - datetime.fromisoformat(_step(job, key)["started_at"]).timestamp()


def _step(job: Json, key: str) -> Json:
    found: Json = next(one for one in job["steps"] if one["key"] == key)
    return found
