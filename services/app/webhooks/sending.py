"""One attempt to deliver one message: signed, guarded, bounded in time, and what became of it in words.

Nothing of the answer is trusted: of its body the first KiB is kept, redirects are not followed, and what the guard of
addresses (`shared.security.addresses`) refuses is not sent. Of our own request nothing is kept.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

import httpx

from services.app.webhooks.secrets import signatures
from shared.clock import iso, now
from shared.security.addresses import AddressRefused, guarded_client
from shared.security.outgoing import outgoing
from shared.settings import Settings

ANSWER_BYTES = 1024
GONE = 410  # the receiver wants no more
LONGEST_WAIT = 86400.0  # seconds, of those that a receiver may ask for
_CONNECTIONS = 64


class Message(NamedTuple):
    message_id: str
    url: str
    body: str
    secrets: list[str]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of it. `status` is null where there was no answer; `retry_after` what the receiver asks for, in seconds."""

    delivered: bool
    at: datetime
    seconds: float
    status: int | None = None
    error: str | None = None
    answer: str | None = None
    retry_after: float | None = None

    def entry(self) -> dict[str, Any]:
        """As the delivery's log has it."""
        return {
            "at": iso(self.at), "seconds": round(self.seconds, 3), "status": self.status, "error": self.error,
            "answer": self.answer,
        }  # fmt: skip


class Sender:
    """A client for all receivers."""

    def __init__(self, settings: Settings) -> None:
        self._seconds = settings.webhook_timeout
        reach = outgoing(settings)
        self._client = guarded_client(
            reach.policy, headers={"User-Agent": "stepway-webhooks", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(self._seconds), verify=reach.tls, follow_redirects=False, max_connections=_CONNECTIONS,
        )  # fmt: skip

    async def send(self, message: Message) -> Attempt:
        at, begun = now(), time.monotonic()

        def failed(error: str) -> Attempt:
            return Attempt(False, at, time.monotonic() - begun, error=error)

        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(message, at, begun)
        except (TimeoutError, httpx.TimeoutException):
            return failed(f"The receiver did not answer within {self._seconds:g} s.")
        except AddressRefused as refused:
            return failed(f"The address is not allowed: {refused}.")
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            return failed(f"The receiver cannot be reached: {type(error).__name__}.")

    async def _post(self, message: Message, at: datetime, begun: float) -> Attempt:
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message.message_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": signatures(message.secrets, message.message_id, at, message.body),
        }
        content = message.body.encode()
        async with self._client.stream("POST", message.url, content=content, headers=headers) as response:
            answer = await _beginning(response)
        status = response.status_code
        return Attempt(
            delivered=200 <= status < 300, at=at, seconds=time.monotonic() - begun, status=status,
            error=_fault(status), answer=answer, retry_after=_retry_after(response.headers.get("retry-after"), at),
        )  # fmt: skip

    async def aclose(self) -> None:
        await self._client.aclose()


def _fault(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if status == GONE:
        return "The receiver answered 410: it wants no more messages."
    if 300 <= status < 400:
        return f"The receiver answered {status}: redirects are not followed; give the address that it leads to."
    return f"The receiver answered {status}."


async def _beginning(response: httpx.Response) -> str:
    """The first KiB of the body as text. It is not decompressed: that could make anything of it."""
    kept = b""
    async for chunk in response.aiter_raw():
        kept += chunk[: ANSWER_BYTES - len(kept)]
        if len(kept) >= ANSWER_BYTES:
            break
    return kept.decode("utf-8", "replace").replace("\0", "\ufffd")


def _retry_after(header: str | None, at: datetime) -> float | None:
    """Seconds, of a header with seconds or a date; at most a day, None for anything else."""
    if header is None:
        return None
    if header.isascii() and header.isdigit():
        return min(float(header[:9]), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return min(max((moment - at).total_seconds(), 0.0), LONGEST_WAIT)
