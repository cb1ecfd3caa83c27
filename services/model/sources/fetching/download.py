"""One file over HTTP into a partial file: resumed by ranges, limited in size, verified by size and digests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from services.model.sources.fetching.failures import outcome_of_failure
from services.model.sources.fetching.partial import Note, PartialFile
from services.model.sources.fetching.statuses import outcome_of_status
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.objects.allocator import keep_freed_memory
from shared.security.addresses import AddressRefused

RECONNECTS = 100  # cut connections that are taken up again, each after some progress
StatusOutcome = Callable[[int, httpx.Headers], StepError]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file at a URL. `limit` and `size` in bytes. `headers` may hold a credential, and show in no repr."""

    url: str
    limit: int
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    size: int | None = None
    sha256: str | None = None
    git_oid: str | None = None
    etag: str | None = None  # that the content must still have, where no digest is known
    outcome: StatusOutcome = outcome_of_status

    @property
    def verified(self) -> bool:
        return self.sha256 is not None or self.git_oid is not None


@dataclass(frozen=True, slots=True)
class Downloaded:
    sha256: str
    size: int


async def download(
    client: httpx.AsyncClient, remote: Remote, target: Path, on_bytes: Callable[[int], None]
) -> Downloaded:
    """Bring the file to `target`, going on with what is there. `on_bytes` gets the bytes so far, which may fall.

    Raises `Retry` when the connection is lost without progress, and `Permanent` for what will not change; both leave
    the partial file, unless its bytes are wrong.
    """
    keep_freed_memory()
    git_size = remote.size if remote.git_oid else None
    partial = PartialFile(target, git_size=git_size, trust_unsynced=remote.verified)
    try:
        async with partial:
            resumed = partial.size > 0
            if remote.size is not None and partial.size > remote.size:
                await partial.restart()
            on_bytes(partial.size)
            await _complete(client, remote, partial, on_bytes)
            size = await partial.flush()
            sha256, git_oid = await partial.digests()
            _verify(remote, size, sha256, git_oid, resumed=resumed)
            return Downloaded(sha256, size)
    except _WrongBytes as wrong:
        partial.remove()
        raise wrong.outcome from None


async def _complete(
    client: httpx.AsyncClient, remote: Remote, partial: PartialFile, on_bytes: Callable[[int], None]
) -> None:
    """Ask for what is missing until it is all there."""
    for _ in range(RECONNECTS):
        if remote.size is not None and partial.size == remote.size and (partial.size or not remote.size):
            return
        before = partial.size
        try:
            if await _receive(client, remote, partial, on_bytes):
                return
        except (httpx.TransportError, httpx.TooManyRedirects, httpx.InvalidURL, AddressRefused) as error:
            outcome = outcome_of_failure(error)
            if isinstance(outcome, Permanent) or await partial.flush() <= before:
                raise outcome from None
    raise Retry("connection_lost", f"The connection to {httpx.URL(remote.url).host} breaks again and again.")


async def _receive(
    client: httpx.AsyncClient, remote: Remote, partial: PartialFile, on_bytes: Callable[[int], None]
) -> bool:
    """One request; whether the file is whole."""
    start = partial.size
    # bytes as they are stored: an encoding would break ranges, sizes and limits
    headers = {**remote.headers, "Accept-Encoding": "identity"}
    validator = _validator(partial.note)
    if start:
        headers["Range"] = f"bytes={start}-"
        if not remote.verified and validator:
            headers["If-Range"] = validator
    async with client.stream("GET", remote.url, headers=headers) as response:
        if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise Permanent("source_refused", "The server compresses the file although it was asked not to.")
        if response.status_code == 416 and start:
            if _total(response) == start:
                if remote.size not in (None, start):
                    raise _WrongBytes(Retry("size_mismatch", f"The file has {start} bytes instead of {remote.size}."))
                return True
            await partial.restart()
            return False
        if response.status_code == 206 and start:
            if _first_byte(response) != start or (not remote.verified and not _same(partial.note, response)):
                await partial.restart()
                return False
        elif response.status_code == 200:
            _check_unchanged(remote, response)
            await partial.restart(
                Note(etag=response.headers.get("etag"), modified=response.headers.get("last-modified"))
            )
        else:
            raise remote.outcome(response.status_code, response.headers)
        await _take(response, remote, partial, on_bytes)
    return True


async def _take(
    response: httpx.Response, remote: Remote, partial: PartialFile, on_bytes: Callable[[int], None]
) -> None:
    size = partial.size
    limit = remote.limit if remote.size is None else min(remote.limit, remote.size)
    announced = _announced(response, size)
    if announced is not None and announced > remote.limit:
        raise Permanent("model_too_large", f"The file has {announced} bytes; at most {remote.limit} are allowed.")
    async for data in response.aiter_raw():
        size += len(data)
        if size > limit:
            if remote.size is not None and size > remote.size:
                raise _WrongBytes(Retry("size_mismatch", "The server sends more bytes than it announced."))
            raise Permanent("model_too_large", f"The file has more than {remote.limit} bytes, which is the limit.")
        await partial.write(data)
        on_bytes(size)
    if remote.size is not None and size < remote.size:
        raise httpx.ReadError("the answer ended before the file did", request=response.request)


def _verify(remote: Remote, size: int, sha256: str, git_oid: str | None, *, resumed: bool) -> None:
    if remote.size is not None and size != remote.size:
        raise _WrongBytes(Retry("size_mismatch", f"The file has {size} bytes instead of {remote.size}."))
    if remote.sha256 not in (None, sha256) or (remote.git_oid is not None and remote.git_oid != git_oid):
        message = "The bytes that arrived do not have the announced checksum."
        # what an earlier attempt left may be at fault: once more from the beginning
        raise _WrongBytes((Retry if resumed else Permanent)("checksum_mismatch", message))


class _WrongBytes(Exception):
    """What was stored is of no use for another attempt."""

    def __init__(self, outcome: StepError) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def _check_unchanged(remote: Remote, response: httpx.Response) -> None:
    etag = response.headers.get("etag")
    if remote.etag is not None and etag is not None and etag != remote.etag and not remote.verified:
        raise Permanent("source_changed", "The file at the URL has changed since it was checked.")


def _validator(note: Note) -> str | None:
    """What If-Range may carry: a strong tag, else the date."""
    if note.etag and not note.etag.startswith("W/"):
        return note.etag
    return note.modified


def _same(note: Note, response: httpx.Response) -> bool:
    """Whether a part belongs to the bytes before it. Without any validator there is no telling: begin again."""
    if note.etag and "etag" in response.headers:
        return bool(note.etag == response.headers["etag"])
    if note.modified and "last-modified" in response.headers:
        return bool(note.modified == response.headers["last-modified"])
    return False


def _content_range(response: httpx.Response) -> tuple[str, str]:
    unit, _, rest = response.headers.get("content-range", "").partition(" ")
    place, _, total = rest.partition("/")
    return (place, total) if unit.lower() == "bytes" else ("", "")


def _first_byte(response: httpx.Response) -> int | None:
    return whole_number(_content_range(response)[0].partition("-")[0])


def _total(response: httpx.Response) -> int | None:
    return whole_number(_content_range(response)[1])


def _announced(response: httpx.Response, start: int) -> int | None:
    length = whole_number(response.headers.get("content-length", ""))
    return None if length is None else start + length


def whole_number(text: str) -> int | None:
    """The number in a header, None if it is none or absurd."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None
