"""What goes wrong with an S3 server, in words: what passes, what somebody must change, and what.

The sentences name the endpoint and the bucket; never a key, a header, or the text of an answer.
"""

import errno
import ssl
from collections.abc import Iterator
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from shared.objects.store import ObjectNotFound, StoreRefused, StoreUnavailable

FAULTS = (MinioException, HTTPError, ParseError)

_PASSING = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
    "OperationAborted", "XMinioServerNotInitialized", "OperationTimedOut", "IncompleteBody",
    "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch",  # broken on the way: sent anew
}  # fmt: skip
_FULL = {"XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded"}
_DENIED = {"AccessDenied", "AllAccessDisabled"}
_MISSING = {"NoSuchKey", "ResourceNotFound"}

# What somebody must change, as the rest of "The object store at <endpoint> ".
_REFUSALS = {
    "InvalidAccessKeyId": "does not know the access key: set STEPWAY_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "does not accept the secret key: set the one that belongs to the access key",
    "AccessDenied": "does not let this access key do that in the bucket {bucket}: give it the permission",
    "AllAccessDisabled": "does not let this access key do that in the bucket {bucket}: give it the permission",
    "ExpiredToken": "says that the credentials have expired: set new ones",
    "NoSuchBucket": "has no bucket {bucket}: make it, or set STEPWAY_S3_BUCKET",
    "InvalidBucketName": "does not accept {bucket} as the name of a bucket: set STEPWAY_S3_BUCKET",
    "AuthorizationHeaderMalformed": "is in another region{region}: set STEPWAY_S3_REGION",
    "InvalidRegion": "is in another region{region}: set STEPWAY_S3_REGION",
    "PermanentRedirect": "says that the bucket {bucket} is at another endpoint or in another region{region}",
    "Redirect": "says that the bucket {bucket} is at another endpoint or in another region{region}",
    "RequestTimeTooSkewed": "has another time than this machine: set the clocks, by NTP",
    "MethodNotAllowed": "does not know this call: it does not speak all of S3, or the endpoint is another service",
}


class Gone(Exception):
    """The unfinished upload is not there any more, or has other parts than it had: somebody else ended it."""


def code_of(error: BaseException) -> str:
    return (error.code or "") if isinstance(error, S3Error) else ""


def outcome_of(error: Exception, endpoint: str, bucket: str) -> Exception:
    """What to raise instead. `StoreUnavailable` is worth another try."""
    here = f"The object store at {endpoint}"
    code = code_of(error)
    if code in _MISSING:
        return ObjectNotFound("there is no such object")
    if code in ("NoSuchUpload", "InvalidPart", "InvalidPartOrder"):
        return Gone(code)
    if code in _FULL:
        return OSError(errno.ENOSPC, "the object store is full")
    if code in _REFUSALS:
        wanted = _wanted_region(error)
        return StoreRefused(f"{here} {_REFUSALS[code].format(bucket=bucket, region=wanted)}.", denied=code in _DENIED)
    if code in _PASSING or _status(error) >= 500 or _status(error) == 429:
        return StoreUnavailable(f"{here} cannot do it now ({code or _status(error)}).")
    if isinstance(error, HTTPError):
        return _of_transport(error, here)
    if isinstance(error, InvalidResponseError):
        return StoreRefused(f"{here} does not answer as S3 does (status {_status(error)}): {_NOT_S3}.")
    return StoreRefused(f"{here} refuses it ({code or _status(error) or type(error).__name__}).")


_NOT_S3 = "check the endpoint, its port, and whether it is http or https"


def _of_transport(error: HTTPError, here: str) -> Exception:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            return StoreRefused(f"{here} has a certificate that is not accepted ({reason}): set STEPWAY_S3_CA.")
    if isinstance(error, SSLError):
        return StoreRefused(f"{here} does not speak TLS: {_NOT_S3}.")
    if isinstance(error, NameResolutionError):
        return StoreUnavailable(f"{here} was not found: no address is known for its name.")
    if isinstance(error, NewConnectionError):  # which is a ConnectTimeoutError as well
        refused = any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error))
        return StoreUnavailable(f"{here} {'refuses the connection' if refused else 'cannot be reached'}.")
    if isinstance(error, ConnectTimeoutError):
        return StoreUnavailable(f"{here} cannot be reached in time.")
    if isinstance(error, ReadTimeoutError):
        return StoreUnavailable(f"{here} did not answer in time.")
    return StoreUnavailable(f"The connection to the object store at {here.rpartition(' ')[2]} broke off.")


def _status(error: Exception) -> int:
    if isinstance(error, S3Error):
        return int(getattr(error.response, "status", 0) or 0)
    if isinstance(error, ServerError):
        return int(error.status_code)
    if isinstance(error, InvalidResponseError):
        return int(error._code)  # the SDK keeps it for itself
    return 0


def _wanted_region(error: Exception) -> str:
    """The region that the server names in its answer's headers, as words; it is ours to show only when it looks like one."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    found = str(headers.get("x-amz-bucket-region") or headers.get("x-minio-region") or "")
    return f" ({found})" if found and len(found) < 40 and found.replace("-", "").isalnum() and found.isascii() else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        inner = next((one for one in error.args if isinstance(one, BaseException)), None)
        error = error.__cause__ or error.__context__ or inner
        seen += 1
