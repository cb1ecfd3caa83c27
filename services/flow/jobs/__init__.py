"""The jobs of the flow service."""

from services.flow.jobs.run_flow import run_flow

__all__ = ["JOBS", "run_flow"]
JOBS = (run_flow,)
