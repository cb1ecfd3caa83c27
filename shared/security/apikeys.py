"""API keys: how one is made, recognised, hashed and shown. Who owns a key and what it may do is the app's `identity`.

A key is `sk_stepway_<prefix>_<secret><checksum>`: the prefix (8 lower-case letters and digits) is public and finds the
row, the secret (32 base62 characters, 190 bits) proves it, and the checksum (6 characters over all before it) lets a
mistyped key be refused without a query. A secret of that length needs no slow hash: the row keeps its SHA-256.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from typing import NamedTuple

MARK = "sk_stepway_"
PREFIX_LENGTH = 8
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6

_PREFIX_ALPHABET = string.ascii_lowercase + string.digits
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_SHAPE = re.compile(
    rf"(?P<body>{MARK}(?P<prefix>[a-z0-9]{{{PREFIX_LENGTH}}})_[0-9A-Za-z]{{{SECRET_LENGTH}}})"
    rf"(?P<checksum>[0-9A-Za-z]{{{CHECKSUM_LENGTH}}})"
)
_BEARER = re.compile(r"bearer +([!-~]{1,512}) *", re.IGNORECASE)


class NewKey(NamedTuple):
    """A key at its birth: `plain` is shown once, `prefix` and `hash` are stored."""

    plain: str
    prefix: str
    hash: str

    def __repr__(self) -> str:
        return f"NewKey({mask(self.prefix)})"


def new_key() -> NewKey:
    prefix = _random(_PREFIX_ALPHABET, PREFIX_LENGTH)
    body = f"{MARK}{prefix}_{_random(_BASE62, SECRET_LENGTH)}"
    plain = body + _checksum(body)
    return NewKey(plain, prefix, hash_key(plain))


def derived_key(seed: bytes) -> NewKey:
    """The key that belongs to a secret seed: the same one each time, so that it need not be kept."""
    prefix = _drawn(_PREFIX_ALPHABET, PREFIX_LENGTH, seed + b"prefix")
    body = f"{MARK}{prefix}_{_drawn(_BASE62, SECRET_LENGTH, seed)}"
    plain = body + _checksum(body)
    return NewKey(plain, prefix, hash_key(plain))


def prefix_of(key: str) -> str | None:
    """The public prefix of a well-formed key; None for anything else, a mistyped key included."""
    match = _SHAPE.fullmatch(key)
    if match is None or match["checksum"] != _checksum(match["body"]):
        return None
    return match["prefix"]


def hash_key(key: str) -> str:
    """The SHA-256 of the whole key in lower-case hex: 64 characters."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def verify(key: str, stored_hash: str) -> bool:
    """Whether the key is the one that was hashed, in a time that does not depend on where they differ."""
    return hmac.compare_digest(hash_key(key).encode(), stored_hash.encode())


def bearer_token(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer <token>` header; None without one, for another scheme, or two tokens."""
    match = _BEARER.fullmatch(header or "")
    return match[1] if match else None


def mask(key_or_prefix: str) -> str:
    """What may be shown of a key: `sk_stepway_ab12cd34_…`. Of text that is no key, nothing is shown."""
    prefix = prefix_of(key_or_prefix) or key_or_prefix
    known = len(prefix) == PREFIX_LENGTH and set(prefix) <= set(_PREFIX_ALPHABET)
    return f"{MARK}{prefix}_…" if known else "…"


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _drawn(alphabet: str, length: int, seed: bytes) -> str:
    number, letters = int.from_bytes(hashlib.sha512(seed).digest()), ""
    for _ in range(length):
        number, at = divmod(number, len(alphabet))
        letters += alphabet[at]
    return letters


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits = _BASE62[digit] + digits
    return digits
