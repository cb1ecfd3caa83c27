"""Secrets at rest: envelope encryption under a ring of keys kept in one file.

Every secret has a data key of its own (AES-256-GCM), and only that key is encrypted by the ring's active key. So a
rotation re-wraps 32 bytes per row and never touches the secrets themselves. Rows hold what `Keyring.seal` returns;
`shared.db` stores it as bytes, and nothing outside this module looks inside.

The sealed value, version 1:

    version 1 | key id 8 | nonce 12 | wrapped data key 32+16 | nonce 12 | ciphertext n+16

The key file is JSON `{"version": 1, "active": id, "keys": {id: {"key": base64, "created_at": time}}}`, with mode 0600.
It is only ever replaced whole, under a lock beside it, so that several processes may share it.
"""

import base64
import fcntl
import hmac
import json
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NewType

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.clock import iso, now

Sealed = NewType("Sealed", bytes)

_VERSION = 1
_ID_BYTES = 8
_NONCE_BYTES = 12
_KEY_BYTES = 32
_WRAPPED_BYTES = _KEY_BYTES + 16
_PAYLOAD_AT = 1 + _ID_BYTES + _NONCE_BYTES + _WRAPPED_BYTES
_SHORTEST = _PAYLOAD_AT + _NONCE_BYTES + 16
_MAX_FILE_BYTES = 1024 * 1024
# A mounted Kubernetes Secret is readable to its group; nothing else beyond the owner is accepted.
_FORBIDDEN_MODE = 0o037


class SealError(Exception):
    """A secret cannot be sealed or opened, or the key file cannot be used. The message never holds a secret."""


class UnknownKeyError(SealError):
    """The value was sealed under a key that the ring does not hold (retired, or another installation's)."""

    def __init__(self, key_id: str) -> None:
        super().__init__(f"the encryption key {key_id} is not in the key file")
        self.key_id = key_id


@dataclass(frozen=True, slots=True)
class _Ring:
    """The key file as it was read once. `signature` tells whether the file has been replaced since."""

    active: str
    keys: dict[str, bytes] = field(repr=False)
    created: dict[str, str]
    signature: tuple[int, ...] = ()


def key_id_of(sealed: bytes) -> str:
    """The id of the key that a sealed value is wrapped by: 16 hex digits. Raises SealError if it is not sealed."""
    _check_shape(sealed)
    return sealed[1 : 1 + _ID_BYTES].hex()


class Keyring:
    """The keys of one installation. Safe to use from several threads; `rotate` and `retire` from several processes."""

    def __init__(self, path: Path, ring: _Ring) -> None:
        self._path = path
        self._ring = ring
        self._mutex = threading.Lock()

    def __repr__(self) -> str:
        return f"Keyring(active={self._ring.active!r}, keys={len(self._ring.keys)})"

    @classmethod
    def load(cls, path: Path) -> "Keyring":
        """The ring of an existing file. Raises SealError when there is none: what was sealed needs its own keys."""
        path = path.resolve()
        return cls(path, _read(path))

    @classmethod
    def load_or_create(cls, path: Path) -> "Keyring":
        """The ring of the file, which is made with one key if it is not there. Of several first starts one makes it."""
        path = path.resolve()
        if not path.exists():
            with _locked(path):
                if not path.exists():
                    _write(path, _with_new_key(None))
        return cls(path, _read(path))

    @property
    def active_key_id(self) -> str:
        return self._fresh().active

    @property
    def key_ids(self) -> list[str]:
        """Every key of the ring, oldest first."""
        ring = self._fresh()
        return sorted(ring.keys, key=lambda key_id: (ring.created[key_id], key_id))

    def seal(self, plaintext: bytes, context: str) -> Sealed:
        """Encrypts a secret for one place, such as `credential:<id>`; it opens only with the same context."""
        bound = _bound(context)
        ring = self._fresh()
        data_key = AESGCM.generate_key(bit_length=256)
        nonce = os.urandom(_NONCE_BYTES)
        return Sealed(_wrap(ring, data_key) + nonce + AESGCM(data_key).encrypt(nonce, plaintext, bound))

    def open(self, sealed: bytes, context: str) -> bytes:
        """The secret. Raises UnknownKeyError, or SealError when the value was changed or belongs to another context."""
        bound = _bound(context)
        data_key = self._unwrap(sealed)
        nonce = sealed[_PAYLOAD_AT : _PAYLOAD_AT + _NONCE_BYTES]
        try:
            return AESGCM(data_key).decrypt(nonce, sealed[_PAYLOAD_AT + _NONCE_BYTES :], bound)
        except InvalidTag:
            raise SealError("the sealed value was changed, or belongs to another context") from None

    def rewrap(self, sealed: bytes) -> Sealed:
        """The same secret under the active key; the very same bytes if it is there already."""
        data_key = self._unwrap(sealed)
        ring = self._fresh()
        if key_id_of(sealed) == ring.active:
            return Sealed(sealed)
        return Sealed(_wrap(ring, data_key) + sealed[_PAYLOAD_AT:])

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose, the same in every process of the installation until the next rotation.

        For what lives for minutes, such as signatures of sessions: nothing remembers the derived keys of older ones.
        """
        ring = self._fresh()
        return hmac.digest(ring.keys[ring.active], b"derived\0" + purpose.encode(), "sha256")

    def rotate(self) -> str:
        """Adds a new active key and returns its id. Older keys stay, so that everything still opens."""
        with _locked(self._path):
            _write(self._path, _with_new_key(_read(self._path)))
        return self._reread().active

    def retire(self, key_id: str) -> None:
        """Takes a key out of the file for ever. Call it only when no stored value names the key (`key_id_of`).

        Every seal looks at the file first, so no value under an old key appears after a rotation except from a
        transaction that was already open: rewrap, wait for those, look again, then retire.
        Raises SealError for the active key, UnknownKeyError for one that is not there.
        """
        with _locked(self._path):
            ring = _read(self._path)
            if key_id not in ring.keys:
                raise UnknownKeyError(key_id)
            if key_id == ring.active:
                raise SealError(f"the key {key_id} is the active one: rotate first")
            keys = {known: key for known, key in ring.keys.items() if known != key_id}
            _write(self._path, _Ring(ring.active, keys, ring.created))
        self._reread()

    def _unwrap(self, sealed: bytes) -> bytes:
        key_id = key_id_of(sealed)
        key = self._ring.keys.get(key_id) or self._reread().keys.get(key_id)
        if key is None:
            raise UnknownKeyError(key_id)
        start = 1 + _ID_BYTES
        nonce, wrapped = sealed[start : start + _NONCE_BYTES], sealed[start + _NONCE_BYTES : _PAYLOAD_AT]
        try:
            return AESGCM(key).decrypt(nonce, wrapped, sealed[:start])
        except InvalidTag:
            raise SealError("the sealed value was changed") from None

    def _fresh(self) -> _Ring:
        """The ring, read again if another process has replaced the file: a rotation holds everywhere at once."""
        ring = self._ring
        try:
            unchanged = _signature(self._path.stat()) == ring.signature
        except OSError:
            # The file is away for a moment (a backup, an unmounted volume); what was read of it still holds.
            unchanged = True
        return ring if unchanged else self._reread()

    def _reread(self) -> _Ring:
        with self._mutex:
            self._ring = _read(self._path)
            return self._ring


def _check_shape(sealed: bytes) -> None:
    if len(sealed) < _SHORTEST:
        raise SealError("the sealed value is too short")
    if sealed[0] != _VERSION:
        raise SealError(f"the sealed value has version {sealed[0]}, which is not known here")


def _bound(context: str) -> bytes:
    if not context:
        raise SealError("a context is needed, such as credential:<id>")
    return bytes([_VERSION]) + context.encode("utf-8", "surrogatepass")


def _wrap(ring: _Ring, data_key: bytes) -> bytes:
    header = bytes([_VERSION]) + bytes.fromhex(ring.active)
    nonce = os.urandom(_NONCE_BYTES)
    return header + nonce + AESGCM(ring.keys[ring.active]).encrypt(nonce, data_key, header)


def _with_new_key(ring: _Ring | None) -> _Ring:
    key_id = secrets.token_hex(_ID_BYTES)
    keys, created = (ring.keys, ring.created) if ring else ({}, {})
    new_key = AESGCM.generate_key(bit_length=256)
    return _Ring(key_id, {**keys, key_id: new_key}, {**created, key_id: iso(now()) or ""})


# --- the file ---


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held while the file is made or changed. The lock lies beside it, because the file itself is replaced."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SealError(f"the key file {path} cannot be changed: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: Path) -> _Ring:
    try:
        with path.open("rb") as handle:
            status = os.fstat(handle.fileno())
            content = handle.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SealError(f"the key file {path} cannot be read: {error.strerror}") from None
    if stat.S_IMODE(status.st_mode) & _FORBIDDEN_MODE:
        raise SealError(f"the key file {path} is open to others: set its mode to 0600")
    ring = _parsed(content, _signature(status))
    if ring is None:
        raise SealError(f"the key file {path} is damaged: restore it from a backup")
    return ring


def _parsed(content: bytes, signature: tuple[int, ...]) -> _Ring | None:
    """None for anything odd. The cause is not passed on: the errors of json and base64 carry the keys with them."""
    try:
        document = json.loads(content)
        if len(content) > _MAX_FILE_BYTES or document["version"] != 1:
            return None
        active = document["active"]
        entries = document["keys"].items()
        keys = {key_id: base64.b64decode(entry["key"], validate=True) for key_id, entry in entries}
        created = {key_id: str(entry["created_at"]) for key_id, entry in entries}
        sound = active in keys and all(bytes.fromhex(key_id).hex() == key_id for key_id in keys)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not sound or any(len(key_id) != 2 * _ID_BYTES or len(key) != _KEY_BYTES for key_id, key in keys.items()):
        return None
    return _Ring(active, keys, created, signature)


def _write(path: Path, ring: _Ring) -> None:
    """Replaces the file whole and durably: a crash leaves the old one or the new one. Needs the lock."""
    entries = {
        key_id: {"key": base64.b64encode(key).decode(), "created_at": ring.created[key_id]}
        for key_id, key in ring.keys.items()
    }
    content = json.dumps({"version": 1, "active": ring.active, "keys": entries}, indent=2).encode() + b"\n"
    # One name for every writer: a killed one's draft, which has keys in it, goes with the next write.
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.unlink(missing_ok=True)
        try:
            handle = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SealError(f"the key file {path} cannot be written: {error.strerror}") from None
