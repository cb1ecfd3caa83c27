"""Requests that got no answer, or half of one, as outcomes of a step: which host it was, and why.

Works on the errors of both clients: httpx (downloads) and httpx2 (the hub's library). Both keep the system's own error
in the chain of causes. Of the URL only host and port are told: the rest may hold a secret.
"""

import os
import socket
import ssl
from collections.abc import Iterator

import httpx
import httpx2

from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.security.addresses import AddressRefused

_NAMES_UNKNOWN = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def outcome_of_failure(error: Exception) -> StepError:
    if isinstance(error, AddressRefused):
        return Permanent("address_refused", f"The address guard says: {error}.")
    if isinstance(error, (httpx.TooManyRedirects, httpx2.TooManyRedirects)):
        return Permanent("too_many_redirects", "The server redirects without end.")
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx2.UnsupportedProtocol, httpx2.InvalidURL)):
        return Permanent("source_refused", "The server redirects to an address that is not http or https.")
    host = _host(error)
    if isinstance(error, (httpx.ConnectTimeout, httpx2.ConnectTimeout)):
        return Retry("source_unavailable", f"{host} could not be reached in time.")
    if isinstance(error, (httpx.TimeoutException, httpx2.TimeoutException)):
        return Retry("source_unavailable", f"{host} did not answer in time.")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message.rstrip(".")
            return Permanent("source_refused", f"The TLS certificate of {host} is not accepted: {reason}.")
        if isinstance(cause, OSError) and (why := _why(cause)):
            return Retry("connection_lost", f"{host} {why}.")
    return Retry("connection_lost", f"The connection to {host} broke off.")


def _why(cause: OSError) -> str | None:
    """What the system says, as the rest of a sentence that begins with the host; None if it says nothing."""
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or "no reason given").replace("_", " ").lower()
        return f"does not speak TLS with us: {reason}"
    if isinstance(cause, socket.gaierror):
        if cause.errno in _NAMES_UNKNOWN:
            return "was not found: there is no such name"
        return f"was not found: the name could not be looked up ({cause.strerror})"
    if isinstance(cause, ConnectionRefusedError):
        return "refuses the connection"
    if isinstance(cause, ConnectionError):
        return "closed the connection"
    return f"cannot be reached: {os.strerror(cause.errno)}" if cause.errno else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__  # a context is kept even where a cause was hidden


def _host(error: Exception) -> str:
    """Host and port of the request that failed, which after a redirect is not the one that was asked for."""
    if not isinstance(error, (httpx.RequestError, httpx2.RequestError)):
        return "the server"
    try:
        return error.request.url.netloc.decode("ascii", "replace")[:300]
    except RuntimeError:  # it failed before there was a request
        return "the server"
