"""Certificates and kubeconfigs for tests, made anew each time."""

import base64
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

DAY = timedelta(days=1)
CA_USAGE = x509.KeyUsage(
    digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True)
class Authority:
    pair: Pair
    signer: ec.EllipticCurvePrivateKey
    name: x509.Name

    @classmethod
    def make(cls, common_name: str = "test-ca", *, start: timedelta = -DAY, end: timedelta = DAY) -> "Authority":
        signer, name = ec.generate_private_key(ec.SECP256R1()), _name(common_name)
        builder = _builder(name, name, signer, start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(CA_USAGE, critical=True)
        return cls(_pair(builder.sign(signer, hashes.SHA256()), signer), signer, name)

    def issue(
        self,
        common_name: str,
        *,
        names: tuple[str, ...] = (),
        organization: str | None = None,
        start: timedelta = -DAY,
        end: timedelta = DAY,
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name, organization), self.name, key, start, end)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.signer.public_key()), critical=False
        )
        return _pair(builder.sign(self.signer, hashes.SHA256()), key)


@cache
def authority() -> Authority:
    """One that tests may share when they do not change it."""
    return Authority.make()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def kubeconfig(
    *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **top: Any
) -> dict[str, Any]:
    """A good kubeconfig, with fields replaced; a field given as None is left out."""
    ca = encoded(authority().pair.certificate)
    base_cluster = {"server": "https://cluster.example.com:6443", "certificate-authority-data": ca}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "main",
        "clusters": [{"name": "c", "cluster": _merged(base_cluster, cluster)}],
        "users": [{"name": "u", "user": _merged({"token": "sekret-token"}, user)}],
        "contexts": [{"name": "main", "context": {"cluster": "c", "user": "u"}}],
    }
    return _merged(document, {name.replace("_", "-"): value for name, value in top.items()})


def as_yaml(document: dict[str, Any]) -> bytes:
    return yaml.dump(document, Dumper=_Plain).encode()


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, as kubectl does."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _merged(base: dict[str, Any], changes: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in {**base, **(changes or {})}.items() if value is not None}


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, start: timedelta, end: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now + start).not_valid_after(now + end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Pair(certificate.public_bytes(Encoding.PEM), pem)
