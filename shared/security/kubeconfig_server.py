"""Where a kubeconfig's server may be: the URL's form, and the addresses that a policy refuses.

`check_server` works offline, on what the URL itself says; `address_fault` is also asked about every address that a
name resolves to, when the cluster service connects (a name may lead anywhere, and elsewhere tomorrow).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from shared.errors import Problem
from shared.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Where clouds answer instances with credentials or agent secrets.
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16",
                 "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254")
)  # fmt: skip
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data.ec2.internal"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carrier-grade NAT
_SITE_LOCAL = ipaddress.ip_network("fec0::/10")

_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
# The C library also reads 127.1, 0x7f.1 and 2130706433 as addresses: a name whose last label is a number is none.
_NUMERIC_END = re.compile(r"(?:^|\.)(?:0[xX][0-9A-Fa-f]*|[0-9]+)\.?$")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~:@!$&'()*+,;=-]+)*/?")


@dataclass(frozen=True, slots=True)
class ServerPolicy:
    """Which addresses a server may have. Metadata services, multicast and reserved ranges are never allowed."""

    allow_private: bool = True  # a company's own network is where most clusters are
    allow_loopback: bool = False
    allow_link_local: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "ServerPolicy":
        """What this installation allows."""
        return cls(allow_private=settings.allow_private_clusters, allow_loopback=settings.allow_loopback_clusters)


_REFUSALS = {
    "metadata_address": "The server's address is that of a cloud's metadata service.",
    "loopback_address": "The server's address is this machine itself.",
    "link_local_address": "The server's address is link-local.",
    "private_address": "The server's address is in a private network, which this installation does not allow.",
    "reserved_address": "The server's address is in a reserved range.",
}


def address_fault(address: Address, policy: ServerPolicy) -> str | None:
    """Why the policy refuses an address, as the ending of an error code, or None."""
    inner = _embedded(address)
    if inner is not None:
        return address_fault(inner, policy)
    if address in _METADATA:
        return "metadata_address"
    if address.is_loopback or address.is_unspecified:  # 0.0.0.0 reaches this machine
        return None if policy.allow_loopback and address.is_loopback else "loopback_address"
    if address.is_link_local:
        return None if policy.allow_link_local else "link_local_address"
    if address.is_multicast or address.is_reserved:
        return "reserved_address"
    shared = address in _SHARED if address.version == 4 else address in _SITE_LOCAL
    if address.is_private or shared or not address.is_global:
        return None if policy.allow_private else "private_address"
    return None


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for (mapped, 6to4, NAT64)."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def parse_address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_server_name(text: str) -> bool:
    """Whether a text can be a certificate's name: an address or a DNS name."""
    if parse_address(text) is not None:
        return "%" not in text
    return len(text) <= 253 and _NAME.fullmatch(text) is not None and _NUMERIC_END.search(text) is None


def refusal(fault: str) -> str:
    """The sentence for what `address_fault` gave."""
    return _REFUSALS[fault]


def check_server(url: str, policy: ServerPolicy) -> SplitResult:
    """The server's URL, in a canonical form. Raises `Problem`; the sentences never repeat the URL."""
    if len(url) > 2048 or not url.isascii() or any(ord(char) <= 32 or char == "\\" for char in url):
        _invalid("it is longer than 2,048 characters, or holds spaces or characters outside ASCII")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        _invalid("its host or port cannot be read")
    if parts.scheme == "http":
        raise Problem("kubeconfig_plain_http", "The server's URL is plain http; credentials are sent over https only.")
    if parts.scheme != "https":
        _invalid("it does not begin with https://")
    if "@" in parts.netloc:
        raise Problem("kubeconfig_userinfo", "The server's URL holds a user name or password.")
    if "?" in url or "#" in url or not _PATH.fullmatch(parts.path) or {"..", "."} & set(parts.path.split("/")):
        _invalid("it has a query, a fragment or an unusual path")
    if not is_server_name(host) or port == 0:
        _invalid("its host is neither a DNS name nor an address, or its port is 0")
    _check_host(host, policy)
    name = f"[{host}]" if ":" in host else host
    return SplitResult("https", f"{name}:{port}" if port else name, parts.path.rstrip("/"), "", "")


def _check_host(host: str, policy: ServerPolicy) -> None:
    fault = _name_fault(host, policy)
    if fault is not None:
        raise Problem(f"kubeconfig_{fault}", refusal(fault))


def _name_fault(host: str, policy: ServerPolicy) -> str | None:
    address = parse_address(host)
    if address is not None:
        return address_fault(address, policy)
    name = host.rstrip(".").lower()
    if name in _METADATA_NAMES:
        return "metadata_address"
    if name in ("localhost", "localhost.localdomain", "ip6-localhost") or name.endswith(".localhost"):
        return None if policy.allow_loopback else "loopback_address"
    return None


def _invalid(why: str) -> NoReturn:
    raise Problem("kubeconfig_server_invalid", f"The server's URL is not usable: {why}.") from None
