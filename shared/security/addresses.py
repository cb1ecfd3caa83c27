"""The guard of every fetch of an address that came from a user: what may be asked, and whom the connection reaches.

A URL is checked before each request, redirects included; its host is resolved once per connection, every address it
has is judged, and the connection goes to a judged address (a second look-up could give another). The Host header and
the name in TLS stay those of the URL. httpx itself drops `Authorization` and cookies when a redirect leaves the host.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from shared.security.pins import Pin

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

DEFAULT_TIMEOUT = httpx.Timeout(30.0, connect=10.0)  # seconds; the read timeout is between two chunks
MAX_REDIRECTS = 10
READ_BYTES = 1024 * 1024
_PORTS = {"http": 80, "https": 443}
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT; Alibaba's metadata service lies in it
_METADATA = frozenset(
    map(ipaddress.ip_address, ("169.254.169.254", "169.254.170.2", "100.100.100.200", "fd00:ec2::254"))
)
_GLOBAL6 = ipaddress.ip_network("2000::/3")
# what some versions of `ipaddress` take for global
_RESERVED = tuple(map(ipaddress.ip_network, ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")


class AddressRefused(Exception):
    """The guard does not let a request go there; the text is a sentence for the user, without the URL's query."""


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What is allowed beyond public addresses.

    `allow_private` admits loopback, private and carrier-grade NAT addresses. `allowed_hosts` are names or addresses
    that an operator trusts whatever they resolve to, as `host` or `host:port` (IPv6 in brackets where a port follows).
    `pins` say where hosts are found; who is pinned is trusted.
    """

    allow_private: bool = False
    allowed_hosts: frozenset[str] = frozenset()
    pins: tuple[Pin, ...] = ()

    def trusting(self, url: str) -> "AddressPolicy":
        """The same policy that also trusts the host and port of a URL from the operator's settings."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        port = parts.port or _PORTS.get(parts.scheme, 0)
        return replace(self, allowed_hosts=self.allowed_hosts | {_with_port(host, port)})

    def trusts(self, host: str, port: int) -> bool:
        named = host in self.allowed_hosts or _with_port(host, port) in self.allowed_hosts
        return named or self.pin(host, port) is not None

    def pin(self, host: str, port: int) -> Pin | None:
        return next((one for one in self.pins if one.host == host.lower().rstrip(".") and one.port == port), None)


def check_url(url: str | httpx.URL, policy: AddressPolicy) -> httpx.URL:
    """Judge what can be judged without resolving: scheme, user information, host, port. Raises `AddressRefused`."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise AddressRefused("the URL is not well formed") from None
    if parsed.scheme not in _PORTS:
        raise AddressRefused("only http and https URLs are fetched")
    if parsed.userinfo:
        raise AddressRefused("the URL holds a user name or password; use a credential instead")
    host = _host(parsed)
    if not host:
        raise AddressRefused("the URL names no host")
    port = _PORTS[parsed.scheme] if parsed.port is None else parsed.port
    if policy.trusts(host, port):
        return parsed
    if port not in _PORTS.values() and not 1024 <= port <= 65535:
        raise AddressRefused(f"port {port} is not one that files are fetched from")
    address = _literal(host)
    if address is not None:
        check_address(address, policy)
    return parsed


def check_address(address: Address, policy: AddressPolicy) -> None:
    """Judge one resolved address, and any IPv4 address that is wrapped in it. Raises `AddressRefused`."""
    for inner in (address, *_embedded(address)):
        kind = _kind(inner)
        if kind is not None and not (policy.allow_private and kind in ("loopback", "private")):
            raise AddressRefused(f"the address {address} is not allowed: it is {kind}")


async def resolve(host: str, port: int, policy: AddressPolicy, *, timeout: float | None = None) -> list[str]:
    """The addresses of a host, each of them allowed. One bad address refuses the host: its next answer may be that.

    Raises `AddressRefused`, or OSError if there is no such host or no answer within `timeout` seconds.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout):
        found = await loop.getaddrinfo(_lookup_name(host), port, type=socket.SOCK_STREAM)
    return _judged(host, port, (str(entry[4][0]) for entry in found), policy)


def resolve_blocking(host: str, port: int, policy: AddressPolicy) -> list[str]:
    """`resolve` for code outside the event loop."""
    found = socket.getaddrinfo(_lookup_name(host), port, type=socket.SOCK_STREAM)
    return _judged(host, port, (str(entry[4][0]) for entry in found), policy)


def guarded_client(
    policy: AddressPolicy,
    *,
    headers: dict[str, str] | None = None,
    timeout: httpx.Timeout = DEFAULT_TIMEOUT,
    verify: ssl.SSLContext | bool = True,
    follow_redirects: bool = True,
    max_connections: int = 10,
) -> httpx.AsyncClient:
    """A client whose every request, redirects included, passes the guard. It reads no proxy or netrc settings.

    A request that is refused raises `AddressRefused`; everything else fails as httpx does.
    """
    return httpx.AsyncClient(
        transport=GuardedTransport(policy, verify=verify, max_connections=max_connections),
        headers=headers,
        timeout=timeout,
        follow_redirects=follow_redirects,
        max_redirects=MAX_REDIRECTS,
        trust_env=False,
    )


class GuardedTransport(httpx.AsyncHTTPTransport):
    """Checks each request's URL, and connects only to addresses that were judged."""

    def __init__(
        self, policy: AddressPolicy, *, verify: ssl.SSLContext | bool = True, max_connections: int = 10
    ) -> None:
        super().__init__(verify=verify)
        self._policy = policy
        # httpx offers no parameter for the backend; the pool takes one
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=max_connections,
            network_backend=GuardedBackend(policy),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        check_url(request.url, self._policy)
        return await super().handle_async_request(request)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to the judged addresses of a host, in the resolver's order."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._plain = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        pin = self._policy.pin(host, port)
        try:
            addresses = [pin.address] if pin else await resolve(host, port, self._policy, timeout=timeout)
        except TimeoutError:
            raise httpcore.ConnectTimeout("the host name was not resolved in time") from None
        except (OSError, UnicodeError):
            raise httpcore.ConnectError("the host name cannot be resolved") from None
        failure: Exception | None = None
        port = pin.to_port if pin else port
        for address in addresses:
            try:
                return _LargeReads(await self._plain.connect_tcp(address, port, timeout, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("the host name has no address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("only TCP connections are made")

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


class _LargeReads(httpcore.AsyncNetworkStream):
    """Takes what has arrived in larger pieces than httpcore's 64 KiB, each of which costs as much as a larger one.

    A stream in TLS comes in records of 16 KiB anyway, and is left alone.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max(max_bytes, READ_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return await self._stream.start_tls(ssl_context, server_hostname, timeout)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _judged(host: str, port: int, addresses: Iterable[str], policy: AddressPolicy) -> list[str]:
    unique = list(dict.fromkeys(addresses))
    if policy.trusts(host.lower().rstrip("."), port):
        return unique
    for text in unique:
        address = _literal(text)
        if address is None:
            raise AddressRefused(f"the host {host} has an address that cannot be read")
        try:
            check_address(address, policy)
        except AddressRefused as refused:
            raise AddressRefused(f"the host {host} is not allowed: {refused}") from None
    return unique


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode("ascii", "replace").lower().rstrip(".")


def _lookup_name(host: str) -> str:
    if len(host) > 253 or "%" in host or "\0" in host:
        raise AddressRefused("the URL's host is not a name or an address")
    return host


def _literal(text: str) -> Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _kind(address: Address) -> str | None:
    """Why an address is not simply public, or None. A kind other than loopback and private is never allowed."""
    if address in _METADATA:
        return "a cloud's metadata service"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return "bound to one network interface"
    if address.is_unspecified:
        return "unspecified"
    if address.is_multicast:
        return "multicast"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    if isinstance(address, ipaddress.IPv6Address) and (address in _NAT64_LOCAL or address.is_site_local):
        return "private"
    if address.version == 4 and (address in _SHARED or any(address in block for block in _PRIVATE4)):
        return "private"
    if address.version == 6 and address in _PRIVATE6:
        return "private"
    if address.version == 6 and (address.ipv4_mapped or address.sixtofour or address in _NAT64):
        return None  # as good as the IPv4 address in it, which is judged as well
    special = address.is_reserved or not address.is_global or any(address in block for block in _RESERVED)
    outside = address.version == 6 and address not in _GLOBAL6
    return "reserved" if special or outside else None


_PRIVATE4 = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
_PRIVATE6 = ipaddress.ip_network("fc00::/7")


def _embedded(address: Address) -> Iterable[ipaddress.IPv4Address]:
    """IPv4 addresses that a packet to this address may end at: mapped, 6to4, NAT64, ISATAP."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address.sixtofour is not None:
        yield address.sixtofour
    if address in _NAT64 or address in _NAT64_LOCAL or (int(address) >> 32) & 0xFDFFFFFF == 0x00005EFE:
        yield low
