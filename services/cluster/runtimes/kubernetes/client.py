"""A connection to one cluster's API server, by the official asyncio client, made safe for servers of strangers.

The client's own loader is not used: it keeps keys in a module-wide table and in files until the process ends, and
hands out the path of a deleted file when a file is read again. Here the configuration belongs to the connection, and
the client certificate is on disk only for the moment in which OpenSSL reads it.

What the client would do by itself and this one does not: follow redirects (with the credentials' requests, to any
address), take proxies and .netrc from the environment, keep cookies, read answers of any size, wait for five minutes.
Beside it: `faults` (the errors), `permissions` and `inspect` (what is asked).
"""

import asyncio
import contextlib
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, NoReturn, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import ResolveResult
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTClientObject, RESTResponse
from yarl import URL

from services.cluster.runtimes.kubernetes import faults
from services.cluster.runtimes.kubernetes.recent import Recent
from shared.contracts.clusters import NodeFacts, ServerVersion
from shared.jobs.outcomes import Permanent, StepError
from shared.security.kubeconfig import Kubeconfig
from shared.security.kubeconfig_server import ServerPolicy, address_fault, parse_address

USER_AGENT = "stepway"
RECENT_NODES = 3.0  # seconds for which a list of all nodes serves those who only weigh whether something fits


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes, pages in objects. `total` bounds one request with its answer.

    A connection for watches has `total=None`, and a `read` longer than the server's pauses between bookmarks.
    """

    connect: float = 10.0
    read: float = 30.0
    total: float | None = 60.0
    max_answer: int = 64 * 1024 * 1024
    page: int = 250
    max_items: int = 20_000
    connections: int = 32
    pushes: int = 4  # models that are sent into the cluster at a time; each has some tens of MB in memory

    def timeout(self) -> aiohttp.ClientTimeout:
        return aiohttp.ClientTimeout(
            total=self.total, connect=self.connect, sock_connect=self.connect, sock_read=self.read
        )


class KubernetesClient:
    """`async with KubernetesClient(kubeconfig) as cluster:`. Raises `Permanent` and `Retry` with codes `cluster_…`.

    `api` is the official ApiClient for the typed interfaces (`CoreV1Api(cluster.api)`); its requests have the same
    limits, but raise the official client's exceptions. Beside it: `objects` and `stream` for what one namespace holds.
    """

    def __init__(
        self, kubeconfig: Kubeconfig, *, addresses: ServerPolicy | None = None, limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self.server = kubeconfig.summary.server
        self.recent_nodes: Recent[list[NodeFacts]] = Recent(RECENT_NODES)  # see `inspect.recent_nodes`
        self.pushing = asyncio.Semaphore(self.limits.pushes)
        _check_literal(kubeconfig.server, addresses or ServerPolicy(), self.server)
        self.api = _open(kubeconfig, addresses or ServerPolicy(), self.limits)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.api.rest_client.close()

    @property
    def busy(self) -> bool:
        """Whether any request, watch or answer is under way."""
        pool = self.api.rest_client.pool_manager
        connector = pool.connector if pool is not None else None
        return connector is not None and bool(connector._acquired)

    @property
    def url(self) -> str:
        """The root of the API server's own URLs."""
        return str(self.api.configuration.host).rstrip("/")

    def __repr__(self) -> str:
        return f"KubernetesClient({self.server!r})"

    async def version(self) -> ServerVersion:
        """What the server says it is. Raises also when the server is not Kubernetes."""
        answer = await self.request("GET", "/version")
        try:
            name = answer["gitVersion"]
            major, minor = name.removeprefix("v").split(".")[:2]
            return ServerVersion(
                version=name[:64], major=int(major), minor=int(minor), platform=_short(answer.get("platform"))
            )
        except (KeyError, ValueError, AttributeError, TypeError):
            raise faults.not_kubernetes(self.server) from None

    async def items(self, path: str) -> AsyncIterator[dict[str, Any]]:
        """All objects of a list, page by page. Raises `Permanent` beyond `limits.max_items`."""
        count, query = 0, [("limit", str(self.limits.page))]
        while True:
            answer = await self.request("GET", path, query=query)
            items, metadata = answer.get("items"), answer.get("metadata")
            if not isinstance(metadata, dict) or not isinstance(items, list | None):
                raise faults.not_kubernetes(self.server)
            for item in items or ():
                count += 1
                if count > self.limits.max_items:
                    self._too_large()
                yield item if isinstance(item, dict) else {}
            token = metadata.get("continue")
            if not token or not items:  # an empty page that promises more could go on for ever
                return
            query = [("limit", str(self.limits.page)), ("continue", str(token))]

    async def request(
        self, method: str, path: str, *, query: Sequence[tuple[str, str]] = (), body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One JSON request under the server's root; the answer is a JSON object."""
        with self.network_faults():
            response = await self.open(method, path, query=query, body=body)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]  # of the official client
        return self._answer(response, data)

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> RESTResponse:
        """One request, answered as far as its headers, whatever the status; for `api` and `stream`.

        Its exceptions, and those of reading on, are aiohttp's: put both into `network_faults`.
        """
        sent = {"Accept": "application/json", **(headers or {})}
        parameters = await self.api.param_serialize(
            method, path, query_params=list(query), header_params=sent, body=body, auth_settings=["BearerToken"]
        )
        return await self.api.call_api(*parameters, _request_timeout=timeout)

    async def forward(
        self, method: str, target: str, *, headers: Mapping[str, str], body: bytes, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """A request as it is, for a proxy of the API server: `target` is a path with its query. As `open` otherwise."""
        rest = self.api.rest_client
        rest.pool_manager = rest.pool_manager or rest._create_pool_manager()
        configuration = self.api.configuration
        sent = {**headers, "User-Agent": USER_AGENT}
        if "BearerToken" in configuration.api_key:
            sent["Authorization"] = configuration.api_key["BearerToken"]
        answer: aiohttp.ClientResponse = await rest.pool_manager.request(
            method,
            URL(configuration.host + target, encoded=True),
            headers=sent,
            data=body,
            timeout=timeout,
            server_hostname=configuration.tls_server_name,
        )
        return answer

    @contextlib.contextmanager
    def network_faults(self) -> Iterator[None]:
        """Turns exceptions of aiohttp into Permanent and Retry."""
        try:
            yield
        except StepError:
            raise
        except Exception as error:
            fault = faults.of_network(error, self.server)
            if fault is None:
                raise
            raise fault from None  # aiohttp's errors show the request, headers included

    def _answer(self, response: RESTResponse, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError):
            answer = None
        if response.status >= 300:
            is_status = isinstance(answer, dict) and answer.get("kind") == "Status"
            after = response.headers.get("Retry-After")
            raise faults.of_status(response.status, self.server, is_kubernetes=is_status, retry_after=after)
        if not isinstance(answer, dict):
            raise faults.not_kubernetes(self.server)
        return answer

    def _too_large(self) -> NoReturn:
        raise Permanent("cluster_answer_too_large", f"{self.server} lists more than {self.limits.max_items} objects.")


def _open(kubeconfig: Kubeconfig, addresses: ServerPolicy, limits: Limits) -> ApiClient:
    configuration = Configuration(host=kubeconfig.server, verify_ssl=not kubeconfig.insecure)
    configuration.ca_cert_data = kubeconfig.ca_pem.decode() if kubeconfig.ca_pem else None
    configuration.tls_server_name = kubeconfig.tls_server_name
    # Python 3.13 refuses CA certificates that lack extensions, as many clusters' do; Go and older Pythons take them
    configuration.disable_strict_ssl_verification = True
    if kubeconfig.token is not None:
        configuration.api_key["BearerToken"] = f"Bearer {kubeconfig.token}"
    server = kubeconfig.summary.server
    with tempfile.TemporaryDirectory(prefix="stepway-") as directory:  # 0700
        _write_certificate(kubeconfig, configuration, Path(directory))
        try:
            api = ApiClient(configuration)
            api.rest_client = _Rest(configuration, server, addresses, limits)
        except (ssl.SSLError, OSError):
            message = "The certificates of the kubeconfig cannot be used for TLS."
            raise Permanent("cluster_tls_failed", message) from None
    configuration.cert_file = configuration.key_file = None
    api.user_agent = USER_AGENT
    return api


def _write_certificate(kubeconfig: Kubeconfig, configuration: Configuration, directory: Path) -> None:
    if kubeconfig.certificate_pem is None or kubeconfig.key_pem is None:
        return
    certificate, key = directory / "client.crt", directory / "client.key"
    certificate.write_bytes(kubeconfig.certificate_pem)
    key.touch(mode=0o600)
    key.write_bytes(kubeconfig.key_pem)
    configuration.cert_file, configuration.key_file = str(certificate), str(key)


def _check_literal(url: str, addresses: ServerPolicy, server: str) -> None:
    """aiohttp asks no resolver about an address that is written as one."""
    address = parse_address(urlsplit(url).hostname or "")
    if address is not None and address_fault(address, addresses) is not None:
        raise _address_refused(server)


def _address_refused(server: str) -> Permanent:
    return Permanent("cluster_address_refused", f"The address of {server} is one that is not allowed here.")


class _Resolver(aiohttp.ThreadedResolver):
    """Resolves names, and refuses the lot when one of the addresses is refused."""

    def __init__(self, server: str, addresses: ServerPolicy) -> None:
        super().__init__()
        self._server = server
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        for entry in found:
            address = parse_address(entry["host"].partition("%")[0])
            if address is None or address_fault(address, self._addresses) is not None:
                raise _address_refused(self._server)
        return found


class _Rest(RESTClientObject):
    """The official transport with our session, our default time limits and bounded answers."""

    def __init__(self, configuration: Configuration, server: str, addresses: ServerPolicy, limits: Limits) -> None:
        super().__init__(configuration)
        self._server = server
        self._addresses = addresses
        self._limits = limits

    def _create_connector(self) -> aiohttp.TCPConnector:
        resolver = _Resolver(self._server, self._addresses)
        return aiohttp.TCPConnector(ssl=self.ssl_context, resolver=resolver, limit=self._limits.connections)

    def _create_pool_manager(self) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_redirect.append(self._refuse_redirect)
        return aiohttp.ClientSession(
            connector=self._create_connector(),
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[tracing],
            trust_env=False,
            read_bufsize=2**21,  # as the official client: an event of a watch is one line
        )

    async def _refuse_redirect(self, session: aiohttp.ClientSession, context: SimpleNamespace, params: Any) -> None:
        raise Permanent("cluster_redirects", f"{self._server} redirects to another address.")

    async def request(
        self,
        method: str,
        url: str,
        headers: Any = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: Any = None,
    ) -> RESTResponse:
        timeout = _request_timeout or self._limits.timeout()
        response = await super().request(  # type: ignore[no-untyped-call]  # of the official client
            method, url, headers, body, post_params, timeout
        )
        return _Answer(response.response, self._server, self._limits)


class _Answer(RESTResponse):
    """An answer that stops being read at the limit, after decompression."""

    data: Any

    def __init__(self, response: aiohttp.ClientResponse, server: str, limits: Limits) -> None:
        super().__init__(response)
        self._server = server
        self._limits = limits
        self._received: bytes | None = None

    async def read(self) -> bytes:
        if self._received is None:
            self._received = await self._bounded()
            self.data = self._received  # where the official client's deserializer looks
        return self._received

    async def _bounded(self) -> bytes:
        received = bytearray()
        try:
            async for chunk in self.response.content.iter_chunked(1 << 16):
                received += chunk
                if len(received) > self._limits.max_answer:
                    message = f"An answer of {self._server} is larger than {self._limits.max_answer >> 20} MiB."
                    raise Permanent("cluster_answer_too_large", message)
        except BaseException:  # a cancelled reader included: half an answer leaves the connection unusable
            self.response.close()
            raise
        self.response.release()
        return bytes(received)


def _short(value: object) -> str | None:
    return value[:64] if isinstance(value, str) else None
