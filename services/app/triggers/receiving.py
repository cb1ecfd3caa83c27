"""Takes what comes by a trigger: the signature is looked at before anything else, and nothing tells whether it exists.

Standard Webhooks sign an id and a time with the body: the time may be five minutes off, and an id counts once in 24 h.
GitHub signs the body alone (`X-Hub-Signature-256`), so there the body itself counts once in 24 h.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from services.app.context import AppContext
from services.app.flows import behalf
from services.app.triggers.service import seal_context
from services.app.triggers.tables import TriggerRow
from services.app.webhooks.secrets import new_secret
from shared.errors import Problem
from shared.http.ratelimit import RateLimiter

MAX_ID = 256  # characters
REQUESTS, WINDOW = 120, 60.0  # messages of one trigger in so many seconds
TRIES = 1200  # from one address in the same time: it may be that of a proxy, and so of everyone
_NOBODY = new_secret()  # whoever names no trigger is checked all the same, against what nobody knows

_ARRIVED = text("""
    INSERT INTO flow.arrival AS known (trigger_id, message_id) VALUES (:trigger, :message)
    ON CONFLICT (trigger_id, message_id) DO UPDATE SET message_id = excluded.message_id
    RETURNING known.execution_id, known.created_at < clock_timestamp() - interval '24 hours' AS is_old""")
_STARTED = text("""
    UPDATE flow.arrival SET execution_id = :execution, created_at = clock_timestamp()
     WHERE trigger_id = :trigger AND message_id = :message""")
_FORGET = text("DELETE FROM flow.arrival WHERE created_at < clock_timestamp() - interval '48 hours'")


class Limits:
    """Of one process: by address before the signature is known, by trigger afterwards."""

    def __init__(self) -> None:
        self.addresses = RateLimiter(TRIES, WINDOW, name="address")
        self.triggers = RateLimiter(REQUESTS, WINDOW, name="trigger")


async def receive(
    context: AppContext, limits: Limits, token: str, headers: Mapping[str, str], raw: bytes, body: dict[str, Any]
) -> str:
    """The short id of the execution that the message has started, now or when it came first.

    Problems: `unauthenticated` for all that is not signed as it should be; then those of a start.
    """
    async with context.database.transaction() as session:
        trigger = (await session.execute(select(TriggerRow).where(TriggerRow.token == token))).scalar_one_or_none()
        secret, scheme = _NOBODY, "github" if "x-hub-signature-256" in headers else "standard"
        if trigger is not None and trigger.enabled:
            secret = context.keyring.open(trigger.sealed, seal_context(trigger.id)).decode()
            scheme = trigger.scheme
        message_id = (_github if scheme == "github" else _standard)(secret, headers, raw)
        if message_id is None or trigger is None:
            raise Problem("unauthenticated", "The message is not signed as it should be.")
        limits.triggers.take(token)
        return await _start_once(context, session, trigger, message_id, body)


async def _start_once(
    context: AppContext, session: AsyncSession, trigger: TriggerRow, message_id: str, body: dict[str, Any]
) -> str:
    """Of messages with one id that come at once, one waits here for the other."""
    key = {"trigger": trigger.id, "message": message_id}
    arrived = (await session.execute(_ARRIVED, key)).one()
    if arrived.execution_id is not None and not arrived.is_old:
        return str(arrived.execution_id)
    inputs = {"body": body} if trigger.mapping is None else mapped(trigger.mapping, body)
    execution_id = await behalf.start_for(context, session, trigger.flow_id, trigger.owner_id, inputs, "webhook")
    await session.execute(_STARTED, {**key, "execution": execution_id})
    return execution_id


def mapped(mapping: Mapping[str, str], body: Any) -> dict[str, Any]:
    """The inputs: each the value at its place; one whose place is not there is left out."""
    found: dict[str, Any] = {}
    for name, place in mapping.items():
        value, is_there = body, True
        for part in place.split("."):
            if isinstance(value, dict) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isascii() and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                is_there = False
                break
        if is_there:
            found[name] = value
    return found


def _standard(secret: str, headers: Mapping[str, str], raw: bytes) -> str | None:
    """The id of a message that is signed as Standard Webhooks are; else None."""
    message_id = headers.get("webhook-id", "")
    try:
        Webhook(secret).verify(raw, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError):  # ValueError: what is no base64, no text, no pair
        return None
    return message_id if len(message_id) <= MAX_ID and message_id.isprintable() else None


def _github(secret: str, headers: Mapping[str, str], raw: bytes) -> str | None:
    """What stands for a message that is signed as GitHub's are; else None. The secret is the whole text."""
    expected = "sha256=" + hmac.new(secret.encode(), raw, hashlib.sha256).hexdigest()
    given = headers.get("x-hub-signature-256", "")
    return expected if hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace")) else None


async def forget(context: AppContext) -> None:
    """Delete what may come again by now."""
    async with context.database.statement() as connection:
        await connection.execute(_FORGET)
