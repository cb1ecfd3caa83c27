"""Add a cloud model: there is nothing to bring, so the app records this job as done."""

from shared.contracts.deployments import CloudModelAdded, CloudModelSpec
from shared.jobs.declare import job, step
from shared.jobs.run import Run, Step


@step("Add the model")
async def save(ctx: Step, spec: CloudModelSpec) -> CloudModelAdded:
    return CloudModelAdded(model_id=spec.model_id)


@job("add_cloud_model", steps=[save])
async def add_cloud_model(run: Run, spec: CloudModelSpec) -> CloudModelAdded:
    added: CloudModelAdded = await run.step(save, spec)
    return added
