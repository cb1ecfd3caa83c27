"""Who may call from a browser.

A server without keys trusts whoever reaches it, and a web page of anyone reaches a server on the reader's own machine: by a
plain request, which carries the page's origin, or through a name that its owner points at 127.0.0.1 (DNS rebinding), which is
then the Host. So without keys a request must not come from a foreign page, nor name a foreign host on a loopback address.
With keys a page needs a key; other origins read answers only if they are allowed. Cookies are never used.
"""

import ipaddress
from collections.abc import Collection
from functools import lru_cache
from urllib.parse import urlsplit

from stepway.runner.api.errors import Refused
from stepway.runner.api.request import Answer, Request

_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-max-age", b"600"),
)


class Guard:
    """`origins`: of web pages that may call (`*`: all). `keys`: whether requests need one. `public_url`: another own name."""

    def __init__(self, origins: Collection[str], *, keys: bool, public_url: str | None) -> None:
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._keys = keys
        self._host = (urlsplit(public_url).hostname or "") if public_url else ""

    def check(self, request: Request) -> None:
        """Adds the headers that let an allowed page read the answer. Raises Refused (403)."""
        headers = request.headers
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if not self._keys and host and _on_loopback(request) and not self._own(host):
            raise Refused(
                403, f"This server is not {_shown(host)}: without keys it is called by a name of this machine"
            )
        if origin is None:
            return
        if self._allows(origin, host):
            request.added += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        elif not self._keys:
            raise Refused(403, f"Pages of {_shown(origin)} may not call this server; its allowed origins may be set")

    def preflight(self, request: Request) -> Answer | None:
        """The answer to a browser that asks before it calls; None when this is no such question."""
        if request.method != "OPTIONS" or b"access-control-request-method" not in request.headers:
            return None
        asked = request.headers.get(b"access-control-request-headers", b"")
        return Answer(b"", 204, (*_PREFLIGHT, (b"access-control-allow-headers", asked)) if request.added else ())

    def _own(self, host: bytes) -> bool:
        name = _name(host)
        return is_local(name) or (bool(self._host) and name == self._host)

    def _allows(self, origin: bytes, host: bytes) -> bool:
        if "*" in self._origins or _text(origin) in self._origins:
            return True
        if self._keys:
            return False
        netloc = _text(origin).partition("://")[2]
        return netloc == _text(host) or is_local(_name(netloc.encode()))


@lru_cache(maxsize=256)
def _name(host: bytes) -> str:
    """The host's name of `name:port`; "" when it has none."""
    try:
        return urlsplit(f"//{_text(host)}").hostname or ""
    except ValueError:
        return ""


@lru_cache(maxsize=256)
def is_local(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _on_loopback(request: Request) -> bool:
    server = request.scope.get("server")
    return server is not None and is_local(server[0])


def _text(value: bytes) -> str:
    return value.decode("latin-1").lower()


def _shown(value: bytes) -> str:
    return repr(value.decode("latin-1")[:200])
