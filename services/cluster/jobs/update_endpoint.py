"""Serve something else from an endpoint: another configuration or model, worker by worker, with no request lost.

What ran before stays until each new worker is ready. An update that fails or is cancelled goes back by itself, to the very
plan that was served, under the update's own generation: the job may be retried.
"""

from dataclasses import replace

from pydantic import TypeAdapter

from services.cluster.jobs.deploy_model import (
    BRING_SECONDS,
    Planned,
    probe,
    publish,
    wait_ready,
    workload,
)
from services.cluster.jobs.deploy_model import apply as apply_it
from services.cluster.jobs.deploy_model import bring_model as bring_it
from services.cluster.jobs.deploy_model import verify as verify_it
from services.cluster.jobs.patience import PATIENT, undo_waits_for_cluster, waits_for_cluster
from services.cluster.jobs.tools import ClusterTools
from services.cluster.sites.base import Planned as Plan
from services.cluster.sites.base import silent
from shared.contracts.deployments import Deployment, DeploySpec, UpdateSpec
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step

_PLAN: TypeAdapter[Plan] = TypeAdapter(Plan)


class Change(Planned):
    """What shall be served, and what it goes back to."""

    before: Planned

    @property
    def moves(self) -> bool:
        """Whether it serves other files."""
        return self.spec.digest != self.before.spec.digest


@step("Verify", weight=1, retry=PATIENT)
@waits_for_cluster
async def verify(ctx: Step, spec: UpdateSpec) -> Change:
    """As for a deploy; what the endpoint has now counts as free."""
    planned: Planned = await verify_it.fn(ctx, spec)
    plan = planned.plan
    if spec.replicas is not None:
        plan = plan.model_copy(update={"replicas": spec.replicas})
    served = spec.before
    before = _PLAN.validate_python(served.plan).model_copy(update={"replicas": served.replicas})
    back = served.spec.model_copy(update={"generation": spec.generation})
    wanted = DeploySpec.model_validate(spec.model_dump(include=set(DeploySpec.model_fields)))
    return Change(spec=wanted, plan=plan, before=Planned(spec=back, plan=before))


@undo_waits_for_cluster
async def _forget_new_files(ctx: Step, change: Change, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    site = await tools.site_if_known(ctx.job_id, change.spec.cluster_id)
    if site is not None and change.moves:
        await site.forget(change.spec.endpoint_id, change.spec.digest)


@step("Bring the model to the cluster", weight=3, undo=_forget_new_files, retry=replace(PATIENT, timeout=BRING_SECONDS))
async def bring_model(ctx: Step, change: Change) -> None:
    await bring_it.fn(ctx, change)


@undo_waits_for_cluster
async def _go_back(ctx: Step, change: Change, _result: object) -> None:
    tools: ClusterTools = ctx.tools
    before = change.before
    site = await tools.site_if_known(ctx.job_id, before.spec.cluster_id)
    if site is None:
        return
    wanted = await workload(ctx, site, before)
    await site.bring(before.spec, wanted, silent)
    await site.runtime.apply(wanted)
    await site.runtime.wait_ready(wanted.endpoint_id, before.plan.replicas, before.plan.ready_seconds, ctx.progress)


@step("Apply", weight=1, undo=_go_back, retry=PATIENT)
async def apply(ctx: Step, change: Change) -> None:
    await apply_it.fn(ctx, change)


@step("Remove what is not served any more", weight=1, retry=PATIENT)
@waits_for_cluster
async def tidy(ctx: Step, change: Change) -> None:
    tools: ClusterTools = ctx.tools
    site = await tools.site(ctx.job_id, change.spec.cluster_id)
    if change.moves:
        await site.forget(change.spec.endpoint_id, change.before.spec.digest)


@job(
    "update_endpoint",
    steps=[verify, bring_model, apply, wait_ready, probe, publish, tidy],
    undo_on_failure=True,
    slots=4,
    deadline=8 * 3600,
)
async def update_endpoint(run: Run, spec: UpdateSpec) -> Deployment:
    change = await run.step(verify, spec)
    await run.step(bring_model, change)
    await run.step(apply, change)
    await run.step(wait_ready, change)
    await run.step(probe, change)
    made: Deployment = await run.step(publish, change)
    await run.step(tidy, change)
    return made
