"""The certificates, keys and tokens of a kubeconfig: decoded, checked to belong together and to be valid now.

Used by `shared.security.kubeconfig`. No value from the file is ever in a sentence.
"""

import base64
import binascii
import json
import re
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from shared.errors import Problem

_SKEW = timedelta(minutes=5)  # between our clock and the issuer's
_MAX_KEY_BYTES = 4 * 1024  # an RSA key of 4096 bits takes 3.3 KB; checking one of 8192 takes over 3 s
_MAX_TOKEN = 16 * 1024
_TOKEN = re.compile(r"[\x21-\x7e]+")
_UNREADABLE = (ValueError, TypeError, UnsupportedAlgorithm)


def decode(text: str, what: str) -> bytes:
    """The bytes of a `…-data` field. White space is allowed, as in folded YAML; anything else must be base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        _refuse("bad_base64", f"The {what} is not valid base64.")


def certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(pem)
        for certificate in found:  # both are parsed lazily
            _ = certificate.not_valid_after_utc, certificate.public_key()
    except _UNREADABLE:
        _refuse("bad_certificate", f"The {what} does not hold certificates in PEM form.")
    return found


def authorities(pem: bytes, now: datetime) -> list[x509.Certificate]:
    """The CA's certificates, without those that have expired. At least one must be valid now."""
    found = certificates(pem, "certificate-authority-data")
    valid = [one for one in found if one.not_valid_before_utc - _SKEW <= now <= one.not_valid_after_utc]
    if not valid:
        _check_dates(found[0], "cluster's CA certificate", now)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=encode(valid).decode())
    except ssl.SSLError:
        _refuse("bad_certificate", "The certificate-authority-data cannot be used to check a server.")
    return valid


def client_certificate(pem: bytes, key_pem: bytes, now: datetime) -> tuple[list[x509.Certificate], bytes]:
    """The client's chain, its own certificate first, and its private key as unencrypted PKCS #8 PEM."""
    chain = certificates(pem, "client-certificate-data")
    key = _private_key(key_pem)
    if _public_bytes(chain[0].public_key()) != _public_bytes(key.public_key()):
        _refuse("key_mismatch", "The client key does not belong to the client certificate.")
    _check_dates(chain[0], "client certificate", now)
    return chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encode(chain: list[x509.Certificate]) -> bytes:
    return b"".join(one.public_bytes(Encoding.PEM) for one in chain)


def fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def token(text: str, now: datetime) -> tuple[str, datetime | None]:
    """A bearer token and when it expires, as far as it says so (a JSON Web Token does)."""
    value = text.strip()  # `base64 -d` and YAML block scalars add a line end
    if len(value) > _MAX_TOKEN or not _TOKEN.fullmatch(value):
        _refuse("bad_token", "The user's token is longer than 16 KiB, or holds spaces or unprintable characters.")
    expires = _token_expiry(value)
    if expires is not None and expires <= now:
        _refuse("token_expired", f"The user's token expired on {expires:%Y-%m-%d %H:%M} UTC.")
    return value, expires


def _token_expiry(value: str) -> datetime | None:
    parts = value.split(".")
    if len(parts) != 3:
        return None
    try:
        claims: Any = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expires = claims.get("exp") if isinstance(claims, dict) else None
        return datetime.fromtimestamp(float(expires), UTC) if isinstance(expires, int | float) else None
    except (ValueError, RecursionError, OverflowError, OSError):
        return None  # not a JSON Web Token: the server will judge it


def _private_key(pem: bytes) -> Any:
    if len(pem) > _MAX_KEY_BYTES:
        _refuse("bad_key", "The client key is larger than 4 KiB.")
    try:
        key = load_pem_private_key(pem, password=None)
    except _UNREADABLE:
        _refuse("bad_key", "The client key is not an unencrypted private key in PEM form.")
    if not isinstance(
        key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
    ):
        _refuse("bad_key", "The client key is of a kind that TLS does not use.")
    return key


def _public_bytes(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _check_dates(certificate: x509.Certificate, what: str, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        _refuse("certificate_expired", f"The {what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}.")
    if now < certificate.not_valid_before_utc - _SKEW:
        _refuse(
            "certificate_not_yet_valid", f"The {what} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d}."
        )


def _refuse(code: str, detail: str) -> NoReturn:
    raise Problem(f"kubeconfig_{code}", detail) from None
