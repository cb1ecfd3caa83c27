"""Which service calls. Each shares a key with the app, and the app makes them all of one secret.

A sidecar's own word for who calls can be chosen by the caller where sidecars have no certificates; where they have,
their access-control list refuses before we do.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import SecretStr

APP = "app"
SERVICE_HEADER = "stepway-service"
KEY_HEADER = "stepway-service-key"


def service_key(secret: SecretStr, service: str) -> str:
    """What the app and this service show each other: `printf %s:%s SERVICE SECRET | sha256sum`, for charts and shells."""
    return hashlib.sha256(f"{service}:{secret.get_secret_value()}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are. The app has the secret; every other service has only the key that it shares with the app."""

    service: str
    secret: SecretStr | None = field(default=None, repr=False)
    key: SecretStr | None = field(default=None, repr=False)

    def headers_for(self, callee: str) -> dict[str, str]:
        return {SERVICE_HEADER: self.service, KEY_HEADER: self._shared_with(callee)}

    def caller_of(self, headers: Mapping[str, str]) -> str | None:
        """The service that calls, when it is that."""
        caller = headers.get(SERVICE_HEADER, "")
        if not caller or APP not in (self.service, caller):
            return None
        shown, wanted = headers.get(KEY_HEADER, ""), self._shared_with(caller)
        return caller if wanted and hmac.compare_digest(shown.encode(), wanted.encode()) else None

    def _shared_with(self, other: str) -> str:
        if self.secret is not None:
            return service_key(self.secret, other)
        return self.key.get_secret_value() if self.key is not None else ""
