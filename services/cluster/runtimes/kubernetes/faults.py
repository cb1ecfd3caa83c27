"""What can go wrong between us and a cluster, in words: network, TLS and HTTP faults as `Retry` or `Permanent`.

The sentences name the cluster's host and port and nothing else that the other side said, apart from the reasons that
TLS itself gives. `client.py` is the only caller.
"""

import asyncio
import ssl

import aiohttp

from shared.jobs.outcomes import Permanent, Retry, StepError

# X509_V_ERR_… of OpenSSL
_EXPIRED = frozenset({9, 10})
_OTHER_NAME = frozenset({62, 63, 64})
_MAX_RETRY_AFTER = 60.0


def of_network(error: BaseException, server: str) -> StepError | None:
    """The fault behind an exception of aiohttp, or None where it is none of the network's."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(error.certificate_error, server)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Retry("cluster_name_not_found", f"The name of {server} does not resolve.")
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Permanent("cluster_tls_failed", f"No TLS connection to {server}: {_tls_reason(error)}.")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Retry("cluster_connect_timeout", f"{server} did not accept a connection in time.")
    if isinstance(error, asyncio.TimeoutError):
        return Retry("cluster_answer_timeout", f"{server} accepted the connection, but did not answer in time.")
    return _transport(error, server)


def of_status(status: int, server: str, *, is_kubernetes: bool, retry_after: str | None = None) -> StepError:
    """The fault behind an HTTP status of 300 or more. `is_kubernetes`: the body was a Kubernetes Status."""
    if status == 401:
        return Permanent("cluster_unauthorized", f"{server} does not accept the credentials; they may be revoked.")
    # 410: the list changed too much while its pages were read
    if status in (429, 502, 503, 504) or (status in (410, 500) and is_kubernetes):
        return Retry("cluster_unavailable", f"{server} answered with status {status}.", after=_seconds(retry_after))
    if not is_kubernetes:
        return not_kubernetes(server)
    if status == 403:
        return Permanent("cluster_forbidden", f"{server} forbids the account what is needed.")
    return Permanent("cluster_request_refused", f"{server} refuses the request with status {status}.")


def not_kubernetes(server: str) -> Permanent:
    return Permanent("cluster_not_kubernetes", f"{server} answers, but not as a Kubernetes API server does.")


def _certificate(error: Exception, server: str) -> Permanent:
    code = getattr(error, "verify_code", 0)
    if code in _OTHER_NAME:
        return Permanent("cluster_certificate_name", f"The certificate of {server} is for another name.")
    if code in _EXPIRED:
        return Permanent("cluster_certificate_expired", f"The certificate of {server} is not valid at this time.")
    return Permanent("cluster_certificate_untrusted", f"The certificate of {server} is not from the given authority.")


def _tls_reason(error: BaseException) -> str:
    """OpenSSL's own words, such as `wrong version number`: a fixed vocabulary, not the other side's."""
    inner = getattr(error, "os_error", error)
    reason = getattr(inner, "reason", None)
    return reason.replace("_", " ").lower() if isinstance(reason, str) else "the handshake failed"


def _transport(error: BaseException, server: str) -> StepError | None:
    cause = getattr(error, "os_error", error)
    if isinstance(cause, ConnectionRefusedError):
        return Retry("cluster_refused", f"{server} refuses connections.")
    if isinstance(error, aiohttp.InvalidURL):
        return Permanent("cluster_not_kubernetes", f"{server} cannot be addressed.")
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return Retry("cluster_unavailable", f"{server} closed the connection before its answer was complete.")
    if isinstance(error, aiohttp.ClientResponseError):  # what came back is not HTTP
        return not_kubernetes(server)
    if isinstance(error, aiohttp.ClientError | OSError):
        return Retry("cluster_unreachable", f"{server} cannot be reached.")
    return None


def _seconds(text: str | None) -> float | None:
    """A Retry-After in seconds, bounded; a date or nonsense counts as absent."""
    if text is None or not text.isdecimal() or len(text) > 6:
        return None
    return min(float(text), _MAX_RETRY_AFTER)
