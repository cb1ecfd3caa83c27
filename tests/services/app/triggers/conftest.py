"""The same project, person and flows as the tests of flows have."""

from tests.services.app.flows.conftest import flows

__all__ = ["flows"]
