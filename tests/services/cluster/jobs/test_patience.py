"""A cluster that is away is waited for in words; what waiting cannot mend is not."""

from typing import Any
from uuid import UUID

import pytest

from services.cluster.jobs import patience
from services.cluster.jobs.patience import PATIENT, undo_waits_for_cluster, waits_for_cluster
from shared.jobs.outcomes import Permanent, Retry, StepError


class Attempt:
    """What a step sees of itself."""

    job_id = UUID(int=1)
    key = "apply"
    tools: Any = None

    def __init__(self, attempt: int = 1) -> None:
        self.attempt = attempt
        self.said: list[str | None] = []

    def progress(self, percent: float | None = None, message: str | None = None) -> None:
        self.said.append(message)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(patience, "_LONGEST_PAUSE", 0.002)


def failing(*faults: Exception) -> Any:
    left = list(faults)

    async def step(_ctx: Attempt) -> str:
        if left:
            raise left.pop(0)
        return "done"

    return step


AWAY = Retry("cluster_refused", "10.0.0.1:6443 refuses connections.")


@pytest.mark.parametrize("around", [waits_for_cluster, undo_waits_for_cluster])
async def test_a_cluster_that_comes_back_costs_no_attempt(around: Any) -> None:
    ctx = Attempt()
    forbidden = Permanent("cluster_forbidden", "as an API server says that has just started")
    assert await around(failing(AWAY, AWAY, forbidden))(ctx) == "done"
    assert ctx.said[0] == "Waiting for the cluster: 10.0.0.1:6443 refuses connections."


async def test_one_that_stays_away_frees_the_place_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "IN_PLACE", 0.0)
    with pytest.raises(Retry) as raised:
        await waits_for_cluster(failing(*[AWAY] * 10))(Attempt())
    assert raised.value.code == "cluster_refused"
    waited = sum(PATIENT.backoff(number) for number in range(1, PATIENT.attempts))
    assert waited > 300


@pytest.mark.parametrize(
    "fault",
    [
        Permanent("cluster_unauthorized", "revoked"), Permanent("insufficient_capacity", "full"),
        Retry("not_gone_yet", "still there"), Permanent("cluster_gone", "not registered"),
    ],
    ids=lambda fault: fault.code,
)  # fmt: skip
async def test_what_waiting_does_not_mend_is_told_at_once(fault: StepError) -> None:
    ctx = Attempt()
    with pytest.raises(type(fault)) as raised:
        await waits_for_cluster(failing(fault))(ctx)
    assert raised.value is fault
    assert ctx.said == []


async def test_faults_of_ours_are_not_tried_for_a_quarter_of_an_hour() -> None:
    with pytest.raises(KeyError):
        await waits_for_cluster(failing(KeyError("x")))(Attempt(1))
    with pytest.raises(Permanent) as raised:
        await waits_for_cluster(failing(KeyError("x")))(Attempt(3))
    assert raised.value.code == "internal"
