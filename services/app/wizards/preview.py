"""What a draft would make, before its trigger: the same checks, then a question to the cluster. Nothing is changed."""

import asyncio
from uuid import UUID

from services.app import references
from services.app.context import AppContext
from services.app.identity.caller import Caller
from services.app.wizards import checks, repository, service
from services.app.wizards.access import check_may_change
from services.app.wizards.contract import Visit
from services.app.wizards.registry import WIZARDS
from services.app.wizards.steps import LOCKED
from shared.contracts.deployments import DeploySpec
from shared.contracts.previews import DeployPreview
from shared.errors import Problem

SECONDS = 25.0  # for the cluster; clients wait half a minute for an answer


async def preview(context: AppContext, caller: Caller, workflow_id: UUID) -> DeployPreview:
    """Refused as the trigger would be now. The cluster may be slow to answer: no transaction is open meanwhile."""
    async with context.database.transaction() as session:
        spec = await _draft(Visit(context, session, caller), workflow_id)
    try:
        async with asyncio.timeout(SECONDS):
            return await context.clusters.preview(spec)
    except TimeoutError:
        raise Problem("cluster_answer_timeout", f"The cluster did not tell within {SECONDS:g} seconds.") from None


async def _draft(visit: Visit, workflow_id: UUID) -> DeploySpec:
    workflow = await service.readable(visit, workflow_id)
    wizard = WIZARDS[workflow.type]
    visit.caller.require(wizard.role)
    check_may_change(visit.caller, workflow)
    if not wizard.has_preview:
        raise Problem("preview_not_offered", f"There is nothing to be seen before: {wizard.title.lower()}.")
    standing = await repository.standing(visit.session, workflow)
    if standing in LOCKED:
        code, why = LOCKED[standing]
        raise Problem(code, f"A preview is of what has not been started, and {why}.")
    named = references.named_in(workflow.fields, wizard.references)
    found = await references.find(visit.session, named)
    variant = await wizard.variant(visit, workflow.fields)
    refusal = await checks.check_trigger(visit, wizard, workflow, variant, found)
    if refusal is not None:
        raise refusal
    try:
        return await wizard.preview(visit, workflow)
    except Problem as problem:
        raise checks.placed(problem, wizard, variant) from None
