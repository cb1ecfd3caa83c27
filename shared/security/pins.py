"""An operator's word where a host is found, as curl's `--resolve` takes it: for names that this machine's DNS does not
answer, or answers with another address than it should. `addresses` connects by it; the settings read it.
"""

import ipaddress
import re
from dataclasses import dataclass

_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_BRACKETED = re.compile(r"\[([0-9a-f:.]+)\](?::([0-9]+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pin:
    """Connections to `host` and `port` go to `address` and `to_port`. Names in TLS and headers stay those of the host."""

    host: str
    port: int
    address: str
    to_port: int


def parse_pin(text: str) -> Pin:
    """`host:port:address`, or `host:port:address:port`; an IPv6 address is in brackets. Raises ValueError."""
    host, _, rest = text.strip().lower().partition(":")
    port, _, target = rest.partition(":")
    address, to_port = target, port
    if bracketed := _BRACKETED.fullmatch(target):
        address, to_port = bracketed[1], bracketed[2] or port
    elif ":" in target:
        address, _, to_port = target.partition(":")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{text[:80]!r} must be host:port:address or host:port:address:port, and begin with a name")
    try:
        where = str(ipaddress.ip_address(address))
    except ValueError:
        raise ValueError(f"{text[:80]!r} names no IP address; an IPv6 address is in brackets") from None
    return Pin(host, _port(port, text), where, _port(to_port, text))


def _port(digits: str, text: str) -> int:
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ValueError(f"{text[:80]!r} must have ports from 1 to 65535")
    return int(digits)
