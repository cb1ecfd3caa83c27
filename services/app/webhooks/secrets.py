"""The secrets that webhooks are signed with (Standard Webhooks): made, sealed, rotated, used.

A subscription's are kept as one sealed value, so that a rotation of the encryption keys finds them: JSON
`[{"secret": "whsec_…", "until": time or null}]`, the newest first. After a rotation the old one signs beside the new
one for a day, so that a receiver may change over when it likes.
"""

import base64
import json
import secrets
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from standardwebhooks import Webhook

from shared.clock import iso, now
from shared.security.envelope import Keyring, Sealed

OVERLAP = timedelta(hours=24)
PREFIX = "whsec_"
_BYTES = 24

_MAKE = text("""
    INSERT INTO platform.webhook_signing_secret (id, sealed) VALUES (:project, :sealed) ON CONFLICT (id) DO NOTHING""")
_FIND = text("SELECT sealed FROM platform.webhook_signing_secret WHERE id = :project")

_LOCK = text("SELECT sealed FROM platform.webhook_signing_secret WHERE id = :project FOR UPDATE")
_CHANGE = text("UPDATE platform.webhook_signing_secret SET sealed = :sealed WHERE id = :project")


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def context_of(webhook_id: UUID) -> str:
    return f"webhook:{webhook_id}"


def project_context(project_id: UUID) -> str:
    return f"webhook_signing_secret:{project_id}"


def sealed_first(keyring: Keyring, context: str, secret: str) -> Sealed:
    return _seal(keyring, context, [{"secret": secret, "until": None}])


def sealed_next(keyring: Keyring, context: str, sealed: bytes, secret: str) -> Sealed:
    """With a new secret; the newest of those before it stays valid for `OVERLAP`, older ones are forgotten."""
    before = _open(keyring, context, sealed)[0]["secret"]
    return _seal(
        keyring, context, [{"secret": secret, "until": None}, {"secret": before, "until": iso(now() + OVERLAP)}]
    )


def opened(keyring: Keyring, context: str, sealed: bytes) -> list[str]:
    """The secrets to sign with now. Raises SealError."""
    moment = now()
    return [
        str(one["secret"])
        for one in _open(keyring, context, sealed)
        if one["until"] is None or datetime.fromisoformat(one["until"]) > moment
    ]


def signatures(signing: list[str], message_id: str, moment: datetime, body: str) -> str:
    """The header `webhook-signature`: one signature for each secret."""
    return " ".join(Webhook(secret).sign(message_id, moment, body) for secret in signing)


async def of_project(session: AsyncSession, keyring: Keyring, project_id: UUID) -> list[str]:
    """What the project signs with now, made at its first use. A project that is gone is a violated constraint."""
    sealed = await session.scalar(_FIND, {"project": project_id})
    context = project_context(project_id)
    if sealed is None:
        await session.execute(_MAKE, {"project": project_id, "sealed": sealed_first(keyring, context, new_secret())})
        sealed = await session.scalar(_FIND, {"project": project_id})  # ours, or that of who was faster
    return opened(keyring, context, sealed)


async def renew_of_project(session: AsyncSession, keyring: Keyring, project_id: UUID) -> str:
    """A new secret of the project's. One that there was signs beside it for a day."""
    secret, context = new_secret(), project_context(project_id)
    await of_project(session, keyring, project_id)
    sealed = await session.scalar(_LOCK, {"project": project_id})
    values = {"project": project_id, "sealed": sealed_next(keyring, context, sealed, secret)}
    await session.execute(_CHANGE, values)
    return secret


def _seal(keyring: Keyring, context: str, kept: list[dict[str, str | None]]) -> Sealed:
    return keyring.seal(json.dumps(kept).encode(), context)


def _open(keyring: Keyring, context: str, sealed: bytes) -> list[dict[str, str]]:
    kept: list[dict[str, str]] = json.loads(keyring.open(sealed, context))
    return kept
