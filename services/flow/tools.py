"""What the steps of the flow service reach the world with."""

from dataclasses import dataclass
from functools import cached_property

from services.flow.context import Credentials, TaskContext
from shared.contracts.flows import FlowPort
from shared.jobs.run import Step
from shared.objects.store import ObjectStore
from shared.security.outgoing import Outgoing, outgoing
from shared.settings import Settings


@dataclass(frozen=True)
class FlowTools:
    app: Credentials
    flows: FlowPort
    objects: ObjectStore
    settings: Settings

    @cached_property
    def outgoing(self) -> Outgoing:
        """Who may be asked, and who is believed."""
        return outgoing(self.settings)

    def context(self, step: Step, task: str) -> TaskContext:
        return TaskContext(
            step.job_id, task, outgoing=self.outgoing, openai_base_url=self.settings.flow_openai_base_url,
            store=self.objects, flows=self.flows, app=self.app, on_progress=step.progress,
        )  # fmt: skip
