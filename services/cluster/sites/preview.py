"""A deployment before it begins: planned and tried as its job would do it, without a job, and without a secret."""

from collections.abc import Sequence

from services.cluster.engines.base import Unsupported
from services.cluster.sites.base import Site
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview, PlannedWorkers
from shared.error_codes import CODES
from shared.jobs.outcomes import Permanent


async def preview(site: Site, spec: DeploySpec, parameters: Sequence[str]) -> DeployPreview:
    """What the job's first step would find, as an answer: also that the model cannot be served there.

    `parameters` as in `Site.plan`. Raises Retry and Permanent where the cluster itself cannot be asked.
    """
    notes: list[str] = []
    shown: PlannedWorkers | None = None
    try:
        plan = await site.plan(
            spec, parameters=parameters, dry=True, on_progress=lambda _percent, message: notes.append(message)
        )
        shown = PlannedWorkers.model_validate(plan.model_dump(include=set(PlannedWorkers.model_fields)))
        workload = await site.workload(spec, plan, key=None)
    except Permanent as fault:
        if fault.code in CODES and not isinstance(
            fault, Unsupported
        ):  # faults of the cluster have answers of their own
            raise
        return DeployPreview(problems=[fault.message], code=fault.code, plan=shown, notes=notes)
    found = await site.preview(workload)
    return DeployPreview(**dict(found), plan=shown, notes=notes)
