"""The bucket of an S3 store, by blocking calls: the one place that speaks with the server, by the `minio` SDK.

Every call is tried again after passing faults, for so many seconds (`Patience`), and what it raises is the interface's
own. `s3_upload` and `s3_reading` hold what takes more than one request; `s3` is the store.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import certifi
import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, CopySource, Filter
from minio.datatypes import Part
from minio.helpers import DictType
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from shared.objects.s3_faults import FAULTS, code_of, outcome_of
from shared.objects.store import StoreUnavailable

T = TypeVar("T")

PATIENCE = 20.0  # seconds in which a call is tried again
CONNECT, ANSWER = 5.0, 60.0  # seconds
PAGE = 1000  # objects of one answer
RULE = "stepway-unfinished-uploads"
RULE_DAYS = 7


@dataclass(frozen=True, slots=True)
class S3Place:
    """Where the objects are, and as whom. `prefix` is empty or ends with a slash; the secret shows in no repr."""

    endpoint: str  # http(s)://host[:port]
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    prefix: str = ""
    region: str = "us-east-1"
    ca: Path | None = None  # PEM of the authorities, where they are not public ones

    @property
    def url(self) -> str:
        """For a person: which objects these are."""
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Stat:
    name: str  # without the prefix
    size: int
    modified: float
    etag: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Unfinished:
    name: str
    upload: str
    begun: float


class Patience:
    """How long one call is tried again: with growing, scattered pauses, for so many seconds from the first fault."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._begun: float | None = None
        self._pause = 0.1

    def after(self, fault: Exception, stop: threading.Event) -> None:
        """Wait for the next try. Raises the fault when there shall be none."""
        now = time.monotonic()
        self._begun = self._begun or now
        self._pause = min(2 * self._pause, 3.0)
        pause = self._pause * random.uniform(0.5, 1.0)  # noqa: S311 (to scatter, not to hide)
        if not isinstance(fault, StoreUnavailable) or now + pause > self._begun + self._seconds or stop.wait(pause):
            raise fault from None


class Bucket:
    """Names are those of the store, without the prefix. Everything blocks, and stops trying when `stop` is set."""

    def __init__(self, place: S3Place, patience: float = PATIENCE) -> None:
        parts = urlsplit(place.endpoint)
        self.place = place
        self.patience = patience
        self._bucket = place.bucket
        self._client = Minio(
            parts.netloc,
            access_key=place.access_key,
            secret_key=place.secret_key,
            secure=parts.scheme == "https",
            region=place.region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=CONNECT, read=ANSWER),
                maxsize=32,
                retries=False,  # ours know when to stop, and what they say
                cert_reqs="CERT_REQUIRED",
                ca_certs=str(place.ca) if place.ca else certifi.where(),
            ),
        )

    def __repr__(self) -> str:
        return f"Bucket({self.place.endpoint}, {self.place.url})"

    def fault(self, error: Exception) -> Exception:
        return outcome_of(error, self.place.endpoint, self._bucket)

    def attempt(self, stop: threading.Event, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """The call's result, after as many tries as patience has."""
        patience = Patience(self.patience)
        while True:
            try:
                return function(*args, **kwargs)
            except FAULTS as error:
                patience.after(self.fault(error), stop)

    # ---- single requests: each raises the SDK's own errors, for `attempt`

    def stat(self, name: str) -> Stat:
        found = self._client.stat_object(self._bucket, self._full(name))
        modified = found.last_modified.timestamp() if found.last_modified else 0.0
        metadata = found.metadata or {}
        return Stat(name, int(found.size or 0), modified, str(found.etag), metadata.get("x-amz-meta-sha256"))

    def put(self, name: str, data: bytes | memoryview, sha256: str | None = None) -> None:
        headers: DictType = {"Content-Type": "application/octet-stream"}
        if sha256 is not None:
            headers["x-amz-meta-sha256"] = sha256
        self._client._put_object(self._bucket, self._full(name), _body(data), headers)

    def open(self, name: str, start: int, length: int | None, etag: str | None) -> urllib3.BaseHTTPResponse:
        """An answer that is not read yet. `length` is more than 0. With `etag`, only of that very object."""
        headers: DictType = {"If-Match": f'"{etag}"'} if etag else {}
        return self._client.get_object(
            self._bucket, self._full(name), offset=start, length=length or 0, request_headers=headers
        )

    def remove(self, name: str) -> None:
        self._client.remove_object(self._bucket, self._full(name))

    def page(self, prefix: str, after: str) -> list[Stat]:
        """At most `PAGE` objects whose name begins with the prefix and comes after another, sorted."""
        found = self._client.list_objects(
            self._bucket, prefix=self._full(prefix), recursive=True, start_after=self._full(after) if after else None
        )
        return [
            Stat(
                str(one.object_name).removeprefix(self.place.prefix), int(one.size or 0), _seconds(one.last_modified),
                str(one.etag), None,
            )
            for one in islice(found, PAGE)
        ]  # fmt: skip

    def copy_here(self, source: "Bucket", name: str) -> None:
        """Copy within the server, above 5 GiB in parts."""
        stat = source.stat(name)
        metadata: DictType | None = {"sha256": stat.sha256} if stat.sha256 else None
        self._client.copy_object(
            self._bucket, self._full(name), CopySource(source._bucket, source._full(name), match_etag=stat.etag),
            metadata=metadata, metadata_directive="REPLACE" if metadata else None,
        )  # fmt: skip

    def link(self, name: str, seconds: float) -> str:
        return str(
            self._client.presigned_get_object(self._bucket, self._full(name), expires=timedelta(seconds=seconds))
        )

    # ---- uploads in parts

    def begin(self, name: str, sha256: str) -> str:
        return str(self._client._create_multipart_upload(self._bucket, self._full(name), {"x-amz-meta-sha256": sha256}))

    def send(self, name: str, upload: str, number: int, data: memoryview) -> Part:
        """The server checks a digest of the part that goes with it: sha256 over http, md5 over https."""
        return Part(
            number,
            self._client._upload_part(self._bucket, self._full(name), _body(data), None, upload, number),
            size=len(data),
        )

    def parts(self, name: str, upload: str) -> dict[int, Part]:
        found: dict[int, Part] = {}
        marker: str | None = None
        while True:
            answer = self._client._list_parts(self._bucket, self._full(name), upload, part_number_marker=marker)
            found |= {part.part_number: part for part in answer.parts}
            if not answer.is_truncated or answer.next_part_number_marker in (None, marker):
                return found
            marker = answer.next_part_number_marker

    def finish(self, name: str, upload: str, parts: list[Part]) -> None:
        self._client._complete_multipart_upload(self._bucket, self._full(name), upload, parts)

    def abort(self, name: str, upload: str) -> None:
        self._client._abort_multipart_upload(self._bucket, self._full(name), upload)

    def unfinished(self, prefix: str) -> list[Unfinished]:
        """Unfinished uploads of names that begin so. MinIO tells of a whole name or of all, and of all that it remembers."""
        full = self._full(prefix)
        found = list(self._uploads(full)) or (list(self._uploads("")) if full else [])
        return [
            Unfinished(str(one.object_name).removeprefix(self.place.prefix), str(one.upload_id), _seconds(one.initiated_time))
            for one in found
            if str(one.object_name).startswith(full)
        ]  # fmt: skip

    def unfinished_of(self, name: str) -> list[Unfinished]:
        """Of this very name, the newest first."""
        full = self._full(name)
        found = [one for one in self._uploads(full) if one.object_name == full]
        made = [Unfinished(name, str(one.upload_id), _seconds(one.initiated_time)) for one in found]
        return sorted(made, key=lambda one: (-one.begun, one.upload))

    def _uploads(self, prefix: str) -> Iterator[Any]:
        key_marker: str | None = None
        upload_marker: str | None = None
        while True:
            answer = self._client._list_multipart_uploads(
                self._bucket, prefix=prefix, key_marker=key_marker, upload_id_marker=upload_marker
            )
            yield from answer.uploads
            following = (answer.next_key_marker, answer.next_upload_id_marker)
            if not answer.is_truncated or following == (key_marker, upload_marker):
                return
            key_marker, upload_marker = following

    # ---- the bucket itself

    def exists(self) -> bool:
        return bool(self._client.bucket_exists(self._bucket))

    def look(self) -> None:
        """Ask for a list of nothing: what the answer says of endpoint, keys, region, clock and bucket is raised."""
        next(iter(self._client.list_objects(self._bucket, prefix=self._full("blobs/"), recursive=True)), None)

    def rule(self) -> bool | None:
        """Whether unfinished uploads of ours end by a rule of the bucket; None where the bucket has no rule at all."""
        found = self._client.get_bucket_lifecycle(self._bucket)
        if found is None or not found.rules:
            return None
        return any(
            rule.status == ENABLED
            and rule.abort_incomplete_multipart_upload is not None
            and self.place.prefix.startswith((rule.rule_filter.prefix or "") if rule.rule_filter else "")
            for rule in found.rules
        )

    def set_rule(self) -> bool:
        """Let the server end what is never finished, where the bucket has no rules that this would replace.

        False where the server will not: MinIO refuses such a rule, and ends them by itself after a day.
        """
        try:
            if (known := self.rule()) is not None:
                return known
            ends = AbortIncompleteMultipartUpload(days_after_initiation=RULE_DAYS)
            rule = Rule(
                ENABLED,
                rule_filter=Filter(prefix=self.place.prefix),
                rule_id=RULE,
                abort_incomplete_multipart_upload=ends,
            )
            self._client.set_bucket_lifecycle(self._bucket, LifecycleConfig([rule]))
        except FAULTS as error:
            if isinstance(self.fault(error), StoreUnavailable):
                raise
            return False
        return True

    def versioned(self) -> bool:
        """Whether deleted objects stay as old versions, and cost on."""
        return str(self._client.get_bucket_versioning(self._bucket).status) == ENABLED

    def is_minio(self) -> bool:
        response = self._client._execute("HEAD", self._bucket)
        return "minio" in str(response.headers.get("server", "")).lower()

    def _full(self, name: str) -> str:
        return self.place.prefix + name


def _body(data: bytes | memoryview) -> bytes:
    """The SDK hashes and sends any buffer; its types know only bytes, which would be a copy."""
    return cast(bytes, data)


def _seconds(when: datetime | None) -> float:
    return when.timestamp() if when else 0.0


def replaced(error: Exception) -> bool:
    """Whether a read was refused because the object is another one by now."""
    return code_of(error) == "PreconditionFailed"


def past_the_end(error: Exception) -> bool:
    return code_of(error) == "InvalidRange"
