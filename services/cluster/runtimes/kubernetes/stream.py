"""Answers of the API server that go on: watches and logs, as lines."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp

from services.cluster.runtimes.kubernetes import faults
from services.cluster.runtimes.kubernetes.client import KubernetesClient
from shared.jobs.outcomes import Retry

_MAX_LINE = 8 * 1024 * 1024  # an object is at most 1.5 MiB in the cluster's store


async def lines(
    client: KubernetesClient,
    path: str,
    query: Sequence[tuple[str, str]],
    *,
    silence: float,
    opened: Callable[[], None] | None = None,
) -> AsyncIterator[bytes]:
    """Each line of an answer that may go on for ever; `silence` seconds without a byte end it with Retry.

    `opened` is called when the answer has begun.

    Raises also Permanent, as the client does, when the answer's status is not 200.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=client.limits.connect, sock_read=silence)
    with client.network_faults():
        response = await client.open("GET", path, query=query, headers={"Accept": "*/*"}, timeout=timeout)
        if response.status != 200:
            data: bytes = await response.read()  # type: ignore[no-untyped-call]  # of the official client
            is_status = b'"kind":"Status"' in data[:4096].replace(b" ", b"")
            raise faults.of_status(response.status, client.server, is_kubernetes=is_status)
        if opened is not None:
            opened()
        try:
            pending = b""
            async for chunk in response.response.content.iter_any():
                *whole, pending = (pending + chunk).split(b"\n")
                for line in whole:
                    yield line
                if len(pending) > _MAX_LINE:
                    raise Retry("cluster_unavailable", f"{client.server} sends a line without an end.")
            if pending:
                yield pending
        finally:
            response.response.close()


class Gone(Exception):
    """The resource version is too old: list anew."""


async def events(
    client: KubernetesClient,
    path: str,
    selector: str,
    resource_version: str,
    *,
    seconds: int,
    silence: float,
    opened: Callable[[], None] | None = None,
) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """(ADDED, MODIFIED, DELETED or BOOKMARK, object), for at most `seconds`. Raises Gone, and as `lines`."""
    query = [
        ("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", resource_version),
        ("timeoutSeconds", str(seconds)), *([("labelSelector", selector)] if selector else []),
    ]  # fmt: skip
    try:
        async for line in lines(client, path, query, silence=silence, opened=opened):
            event = _event(line)
            if event is None:
                continue
            kind, item = event
            if kind == "ERROR":
                if item.get("code") == 410:
                    raise Gone
                raise Retry("cluster_unavailable", f"{client.server} ended a watch.")
            yield kind, item
    except Retry as fault:
        if fault.code == "cluster_unavailable" and " 410." in fault.message:
            raise Gone from None
        raise


def _event(line: bytes) -> tuple[str, dict[str, Any]] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("object"), dict):
        return None
    return str(event.get("type")), event["object"]
