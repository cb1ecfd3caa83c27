"""The two tokens by which an endpoint's pods get the model's files, and nothing else.

A workload's secret holds the endpoint's own token, which is made from its worker key and is worth nothing when that key
or the endpoint is gone. `services.app.endpoints.model_files` exchanges it for a session, which names the endpoint and
the digest of the files, and ends after minutes. Neither is an API key, and neither is stored.
"""

import base64
import hashlib
import hmac
from datetime import timedelta
from uuid import UUID

import jwt

from shared import clock

_ALGORITHM = "HS256"
_AUDIENCE = "stepway:model-files"
_LONGEST = 2048  # characters of a session


def token_of(worker_key: str, endpoint_id: UUID) -> str:
    """The endpoint's token for as long as its worker key is this one: 43 characters of urlsafe base64."""
    digest = hmac.digest(worker_key.encode(), b"loader\0" + str(endpoint_id).encode(), hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def is_token_of(given: str, worker_key: str, endpoint_id: UUID) -> bool:
    """Whether it is the endpoint's token, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), token_of(worker_key, endpoint_id).encode())


def open_session(key: bytes, endpoint_id: UUID, digest: str, seconds: int) -> str:
    """A signed word that one endpoint may read the files of one digest for so many seconds."""
    claims = {
        "aud": _AUDIENCE,
        "sub": str(endpoint_id),
        "digest": digest,
        "exp": clock.now() + timedelta(seconds=seconds),
    }
    return jwt.encode(claims, key, algorithm=_ALGORITHM)


def digest_of_session(session: str, key: bytes, endpoint_id: UUID) -> str | None:
    """The digest that the session is for; None when it has ended, is another endpoint's, or was not signed by the key."""
    if len(session) > _LONGEST:
        return None
    try:
        claims = jwt.decode(
            session, key, algorithms=[_ALGORITHM], audience=_AUDIENCE, subject=str(endpoint_id),
            options={"require": ["exp", "aud", "sub"]},
        )  # fmt: skip
    except (jwt.InvalidTokenError, ValueError):
        return None
    digest = claims.get("digest")
    return digest if isinstance(digest, str) else None
