"""Kubeconfigs from strangers: read offline, refused when unsafe, reduced to what a connection needs.

The app calls it when a file is uploaded, the cluster service when a step has fetched the stored bytes. It is pure: no
file, no network, no environment. Beside it: `plain_yaml` (the document), `kubeconfig_server` (the address) and
`kubeconfig_credentials` (certificates, keys, tokens).

Only the current context is read; what the other entries hold is dropped, and so are names and fields not listed here.
"""

import base64
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml
from cryptography import x509

from shared import clock
from shared.contracts.clusters import AuthKind, KubeconfigSummary
from shared.errors import Problem
from shared.security import kubeconfig_credentials as credentials
from shared.security import plain_yaml
from shared.security.kubeconfig_server import ServerPolicy, check_server, is_server_name
from shared.security.plain_yaml import Bounds, Plain

_MAX_NAME = 253
_FILE_FIELDS = {
    "certificate-authority": "certificate-authority-data",
    "client-certificate": "client-certificate-data",
    "client-key": "client-key-data",
    "tokenFile": "token",
}
_IMPERSONATION = ("as", "as-uid", "as-groups", "as-user-extra")


@dataclass(frozen=True, slots=True)
class KubeconfigPolicy:
    """What an installation accepts. `allow_insecure` is a person's explicit yes to a server that cannot be verified."""

    allow_insecure: bool = False
    addresses: ServerPolicy = field(default_factory=ServerPolicy)
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True, repr=False)
class Kubeconfig:
    """A connection to one cluster. Its repr shows the summary only; `document` and `canonical` hold the secrets."""

    summary: KubeconfigSummary
    server: str  # https://host[:port][/path]
    ca_pem: bytes | None = None  # null: the authorities that the system trusts
    tls_server_name: str | None = None
    insecure: bool = False
    token: str | None = field(default=None, repr=False)
    certificate_pem: bytes | None = field(default=None, repr=False)
    key_pem: bytes | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Kubeconfig({self.summary!r})"

    def document(self) -> dict[str, Any]:
        """The minimal kubeconfig: one cluster, one user, one context."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": self.summary.context,
            "clusters": [{"name": "cluster", "cluster": self._cluster()}],
            "users": [{"name": "user", "user": self._user()}],
            "contexts": [{"name": self.summary.context, "context": {"cluster": "cluster", "user": "user"}}],
        }

    def canonical(self) -> bytes:
        """`document` as YAML. Equal connections give equal bytes, and `parse` reads them back to an equal object."""
        return yaml.safe_dump(self.document(), sort_keys=True, width=1 << 20, allow_unicode=True).encode()

    def _cluster(self) -> dict[str, Any]:
        return _present(
            {
                "server": self.server,
                "certificate-authority-data": _base64(self.ca_pem),
                "tls-server-name": self.tls_server_name,
                "insecure-skip-tls-verify": self.insecure or None,
            }
        )

    def _user(self) -> dict[str, Any]:
        return _present(
            {
                "token": self.token,
                "client-certificate-data": _base64(self.certificate_pem),
                "client-key-data": _base64(self.key_pem),
            }
        )


def parse(data: bytes, policy: KubeconfigPolicy | None = None, *, now: datetime | None = None) -> Kubeconfig:
    """The connection that a kubeconfig's current context describes.

    Raises `Problem` with a code `kubeconfig_…` for anything that is broken, unsafe, or against the policy.
    """
    policy, now = policy or KubeconfigPolicy(), now or clock.now()
    document = plain_yaml.load(data, prefix="kubeconfig", bounds=policy.bounds)
    _check_kind(document)
    name, cluster, user = _current(document)
    _refuse_unsafe(cluster, user)
    return _build(name, cluster, user, policy, now)


# the document


def _check_kind(document: dict[str, Plain]) -> None:
    if document.get("kind") != "Config" or document.get("apiVersion") != "v1":
        _refuse("wrong_kind", "The file is not a kubeconfig: it must have `apiVersion: v1` and `kind: Config`.")


def _current(document: dict[str, Plain]) -> tuple[str, dict[str, Plain], dict[str, Plain]]:
    contexts = _entries(document, "contexts", "context")
    if not contexts:
        _refuse("no_contexts", "The file has no contexts.")
    name = _text(document, "current-context")
    if name is None:
        _refuse("no_current_context", "The file names no current context.")
    if len(name) > _MAX_NAME or not name.isprintable():
        _refuse("malformed", "The current context's name is longer than 253 characters or not printable.")
    if name not in contexts:
        _refuse("context_unknown", "The current context is not among the file's contexts.")
    cluster = _named(document, "clusters", "cluster", _text(contexts[name], "cluster"))
    if cluster is None:
        _refuse("cluster_missing", "The cluster of the current context is not in the file.")
    user = _named(document, "users", "user", _text(contexts[name], "user"))
    if user is None:
        _refuse("user_missing", "The user of the current context is not in the file.")
    return name, cluster, user


def _named(document: dict[str, Plain], section: str, inner: str, name: str | None) -> dict[str, Plain] | None:
    return _entries(document, section, inner).get(name) if name is not None else None


def _entries(document: dict[str, Plain], section: str, inner: str) -> dict[str, dict[str, Plain]]:
    listed = document.get(section)
    if listed is None:
        return {}
    if not isinstance(listed, list):
        _refuse("malformed", f"`{section}` is not a list.")
    entries: dict[str, dict[str, Plain]] = {}
    for item in listed:
        if not isinstance(item, dict):
            _refuse("malformed", f"An entry of `{section}` is not a mapping.")
        name, body = _text(item, "name"), item.get(inner)
        if name is None or not isinstance(body, dict | None):
            _refuse("malformed", f"An entry of `{section}` lacks its name, or its `{inner}` is not a mapping.")
        if name in entries:
            _refuse("duplicate_keys", f"Two entries of `{section}` have one name.")
        entries[name] = body or {}
    return entries


def _text(mapping: dict[str, Plain], key: str) -> str | None:
    """A field's text; null and empty text count as absent."""
    value = mapping.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        _refuse("malformed", f"`{key}` is not text.")
    return value


def _flag(mapping: dict[str, Plain], key: str) -> bool:
    value = mapping.get(key)
    if not isinstance(value, bool | None):
        _refuse("malformed", f"`{key}` is neither true nor false.")
    return bool(value)


# what must not be there


def _refuse_unsafe(cluster: dict[str, Plain], user: dict[str, Plain]) -> None:
    if _given(user, "exec"):
        _refuse("exec", "The user's credentials come from a command (`exec`), and commands from files are never run.")
    if _given(user, "auth-provider"):
        _refuse("auth_provider", "The user's credentials come from an auth-provider plug-in, which is not accepted.")
    for name, instead in _FILE_FIELDS.items():
        if _given(cluster, name) or _given(user, name):
            _refuse(
                "file_reference", f"`{name}` points to a file on another machine; put its content into `{instead}`."
            )
    if _given(cluster, "proxy-url"):
        _refuse("proxy", "The cluster is to be reached through a proxy (`proxy-url`), which is not accepted.")
    if any(_given(user, name) for name in _IMPERSONATION):
        _refuse("impersonation", "The user acts as someone else (`as`); send credentials of the account itself.")
    if _given(user, "username") or _given(user, "password"):
        _refuse("basic_auth", "The user has a user name and password, which Kubernetes no longer accepts.")


def _given(mapping: dict[str, Plain], key: str) -> bool:
    return mapping.get(key) not in (None, "")


# the connection


def _build(
    name: str, cluster: dict[str, Plain], user: dict[str, Plain], policy: KubeconfigPolicy, now: datetime
) -> Kubeconfig:
    server = _text(cluster, "server")
    if server is None:
        _refuse("server_missing", "The cluster has no server URL.")
    url = check_server(server, policy.addresses).geturl()
    insecure = _insecure(cluster, policy)
    tls_server_name = _tls_server_name(cluster)
    ca = _authorities(cluster, now)
    if insecure and ca:
        _refuse("insecure_with_ca", "`insecure-skip-tls-verify` and certificate-authority-data contradict each other.")
    token, token_expires = _token(user, now)
    chain, key = _client_certificate(user, now)
    if token is None and key is None:
        _refuse("no_credentials", "The user has neither a token nor a client certificate.")
    expiries = [moment for moment in (token_expires, chain[0].not_valid_after_utc if chain else None) if moment]
    summary = KubeconfigSummary(
        server=_host_and_port(url),
        context=name,
        auth=_auth_kind(token, key),
        credentials_expire_at=min(expiries, default=None),
        ca_expires_at=min((one.not_valid_after_utc for one in ca), default=None),
        ca_fingerprint=credentials.fingerprint(ca[0]) if ca else None,
        tls_server_name=tls_server_name,
        verifies_tls=not insecure,
    )
    return Kubeconfig(
        summary=summary,
        server=url,
        ca_pem=credentials.encode(ca) or None,
        tls_server_name=tls_server_name,
        insecure=insecure,
        token=token,
        certificate_pem=credentials.encode(chain) or None,
        key_pem=key,
    )


def _insecure(cluster: dict[str, Plain], policy: KubeconfigPolicy) -> bool:
    insecure = _flag(cluster, "insecure-skip-tls-verify")
    if insecure and not policy.allow_insecure:
        _refuse("insecure", "The server's certificate would not be checked (`insecure-skip-tls-verify`).")
    return insecure


def _tls_server_name(cluster: dict[str, Plain]) -> str | None:
    name = _text(cluster, "tls-server-name")
    if name is not None and not is_server_name(name):
        _refuse("tls_server_name", "`tls-server-name` is neither a DNS name nor an address.")
    return name


def _authorities(cluster: dict[str, Plain], now: datetime) -> list[x509.Certificate]:
    text = _text(cluster, "certificate-authority-data")
    if text is None:
        return []
    return credentials.authorities(credentials.decode(text, "certificate-authority-data"), now)


def _token(user: dict[str, Plain], now: datetime) -> tuple[str | None, datetime | None]:
    text = _text(user, "token")
    return credentials.token(text, now) if text is not None else (None, None)


def _client_certificate(user: dict[str, Plain], now: datetime) -> tuple[list[x509.Certificate], bytes | None]:
    certificate, key = _text(user, "client-certificate-data"), _text(user, "client-key-data")
    if certificate is None and key is None:
        return [], None
    if certificate is None or key is None:
        _refuse(
            "no_credentials", "The user has a client certificate without its key, or a key without its certificate."
        )
    return credentials.client_certificate(
        credentials.decode(certificate, "client-certificate-data"), credentials.decode(key, "client-key-data"), now
    )


def _auth_kind(token: str | None, key: bytes | None) -> AuthKind:
    if key is None:
        return "token"
    return "client_certificate" if token is None else "client_certificate_and_token"


def _host_and_port(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc if parts.port else f"{parts.netloc}:443"


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _present(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}


def _refuse(code: str, detail: str) -> NoReturn:
    raise Problem(f"kubeconfig_{code}", detail)
