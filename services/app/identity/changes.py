"""Transactions that change who may do what: after each, the callers that this process remembers are looked up again.

Other processes forget within `authenticate.REMEMBER_SECONDS`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncSession

from services.app.context import AppContext, Context
from services.app.identity.authenticate import Authenticator


@asynccontextmanager
async def people_change(request: Request, context: AppContext) -> AsyncIterator[AsyncSession]:
    """A transaction; once it is committed, every caller is looked up again."""
    authenticator: Authenticator = request.app.state.authenticator
    async with context.database.transaction() as session:
        yield session
    authenticator.forget()


async def _session(request: Request, context: Context) -> AsyncIterator[AsyncSession]:
    async with people_change(request, context) as session:
        yield session


# Committed before the answer is sent, like `services.app.context.Session`.
PeopleSession = Annotated[AsyncSession, Depends(_session, scope="function")]
