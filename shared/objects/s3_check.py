"""Whether a bucket can be used as these settings have it: reached, let in, allowed every verb. For `stepway check`.

It stores one small object and one in parts under `checks/`, and removes them.
"""

import email.utils
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import certifi
import urllib3

from shared.findings import Findings
from shared.objects.blocking import Threads
from shared.objects.s3_bucket import Bucket, S3Place
from shared.objects.s3_faults import FAULTS
from shared.objects.store import ObjectNotFound, StoreRefused, StoreUnavailable

PATIENCE = 2.0  # seconds: whoever waits is a person
SKEW = 60.0  # seconds that clocks may differ; S3 refuses from 900
PROBE = b"a probe of `stepway check`"


async def check(place: S3Place, findings: Findings) -> None:
    threads = Threads(1)
    stop = threading.Event()
    await threads.run(_Probe(place, findings, stop).run, stop=stop.set, settle=True)


class _Probe:
    def __init__(self, place: S3Place, findings: Findings, stop: threading.Event) -> None:
        self._place = place
        self._findings = findings
        self._stop = stop
        self._bucket = Bucket(place, PATIENCE)
        self._name = f"checks/{uuid4().hex}"

    def run(self) -> None:
        if self._reached() and self._let_in():
            self._clocks()
            self._verbs()
            self._rule()

    def _reached(self) -> bool:
        parts = urlsplit(self._place.endpoint)
        try:
            socket.getaddrinfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        except (OSError, UnicodeError):
            self._findings.wrong(
                f"No address is known for {parts.hostname}, the host of the object store.",
                "Correct STEPWAY_S3_ENDPOINT.",
            )
            return False
        return True

    def _let_in(self) -> bool:
        """The first request: what it says of address, TLS, keys, clock, region and bucket is one finding."""
        try:
            self._bucket.attempt(self._stop, self._bucket.look)
        except (StoreRefused, StoreUnavailable) as fault:
            if isinstance(fault, StoreRefused) and fault.denied:
                return True  # of the list alone, perhaps: the verbs tell
            self._tell(fault)
            return False
        self._findings.ok(f"{self._place.endpoint} answers, and lets us into the bucket {self._place.bucket}.")
        return True

    def _tell(self, fault: StoreRefused | StoreUnavailable) -> None:
        message, _, remedy = fault.message.rpartition(": ")
        if message:
            self._findings.wrong(f"{message}.", f"{remedy[:1].upper()}{remedy[1:]}")
        else:
            self._findings.wrong(fault.message, "Start the server, or correct STEPWAY_S3_ENDPOINT.")

    def _clocks(self) -> None:
        skew = _skew(self._place.endpoint, self._place.ca)
        if skew is not None and abs(skew) > SKEW:
            self._findings.wrong(
                f"The object store's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's.",
                "Set the clocks by NTP: requests are refused from 15 minutes on.",
            )

    def _verbs(self) -> None:
        name, bucket = self._name, self._bucket
        parts = f"{name}-parts"
        allowed = [
            self._may("put objects", "s3:PutObject", bucket.put, name, PROBE),
            self._may("read objects", "s3:GetObject", self._read, name),
            self._may("list objects", "s3:ListBucket", bucket.page, "checks/", ""),
            self._may("upload in parts", "s3:PutObject, s3:AbortMultipartUpload, s3:ListMultipartUploadParts and "
                      "s3:ListBucketMultipartUploads", self._in_parts, parts),
            self._may("delete objects", "s3:DeleteObject", self._remove, name, parts),
        ]  # fmt: skip
        if all(allowed):
            self._findings.ok(f"We may put, read, list, upload in parts and delete in {self._place.url}.")

    def _may(self, what: str, right: str, function: Callable[..., object], *args: Any) -> bool:
        try:
            self._bucket.attempt(self._stop, function, *args)
        except StoreRefused as refused:
            if refused.denied:
                self._findings.wrong(
                    f"The access key may not {what} in {self._place.url}.", f"Allow it {right} there, in its policy."
                )
            else:
                self._tell(refused)
            return False
        except StoreUnavailable as away:
            self._tell(away)
            return False
        except ObjectNotFound:  # it could not be put, which is told
            return False
        except OSError:
            self._findings.wrong("The object store is full.", "Make room there.")
            return False
        return True

    def _read(self, name: str) -> None:
        answer = self._bucket.open(name, 0, None, None)
        try:
            if answer.read() != PROBE:
                raise StoreRefused("The object store gives back other bytes than were put: look what is behind it.")
        finally:
            answer.close()

    def _in_parts(self, name: str) -> None:
        upload = self._bucket.begin(name, "")
        try:
            part = self._bucket.send(name, upload, 1, memoryview(PROBE))
            self._bucket.unfinished_of(name)
            self._bucket.parts(name, upload)
            self._bucket.finish(name, upload, [part])
        except BaseException:
            self._bucket.abort(name, upload)
            raise

    def _remove(self, *names: str) -> None:
        for name in names:
            self._bucket.remove(name)

    def _rule(self) -> None:
        """Whether what is never finished goes away. MinIO sees to it by itself."""
        try:
            if self._bucket.rule():
                self._findings.ok("A rule of the bucket ends uploads that are never finished.")
            elif self._bucket.is_minio():
                self._findings.ok("MinIO ends uploads that are never finished by itself, after a day.")
            else:
                self._findings.note(
                    "No rule of the bucket ends uploads that are never finished, which cost until then.",
                    "Add a lifecycle rule with AbortIncompleteMultipartUpload after 7 days.",
                )
            if self._bucket.versioned():
                self._findings.note(
                    "The bucket keeps old versions: what is deleted costs on.",
                    "Suspend versioning, or add a lifecycle rule that ends old versions.",
                )
        except FAULTS:
            self._findings.note(
                "The rules of the bucket may not be read by this access key, so this is not known.",
                "Allow it s3:GetLifecycleConfiguration and s3:GetBucketVersioning, or look yourself.",
            )


def _skew(endpoint: str, ca: Path | None) -> float | None:
    """Seconds that the server's clock is ahead of ours, None when it does not tell."""
    try:
        pool = urllib3.PoolManager(retries=False, timeout=5.0, ca_certs=str(ca) if ca else certifi.where())
        answer = pool.request("GET", endpoint, redirect=False)
        return email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time()
    except (urllib3.exceptions.HTTPError, KeyError, ValueError, TypeError):
        return None
