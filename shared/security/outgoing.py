"""What requests to addresses of users may reach, and whose certificates they accept, as the settings say.

For tasks of flows and for webhooks. `addresses` has the guard that keeps to it.
"""

import ssl
from dataclasses import dataclass

import httpx

from shared.security.addresses import AddressPolicy
from shared.security.pins import parse_pin
from shared.settings import Settings


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One for a process: making the TLS context reads all authorities, and takes some 20 ms."""

    policy: AddressPolicy
    tls: ssl.SSLContext


def outgoing(settings: Settings) -> Outgoing:
    """Raises OSError or `ssl.SSLError` when the file of `outbound_ca` cannot be read or has no certificate."""
    tls = httpx.create_ssl_context()
    if settings.outbound_ca is not None:
        tls.load_verify_locations(cafile=settings.outbound_ca.expanduser())
    return Outgoing(policy_of(settings), tls)


def policy_of(settings: Settings) -> AddressPolicy:
    """What may be reached, for who only judges an address."""
    return AddressPolicy(
        settings.allow_private_addresses,
        frozenset(settings.trusted_hosts),
        tuple(parse_pin(one) for one in settings.resolve),
    )
