"""Envelope encryption: what opens, what does not, what survives rotation, and what several processes see."""

import base64
import errno
import json
import multiprocessing
import os
import stat
import traceback
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.security.envelope import Keyring, Sealed, SealError, UnknownKeyError, key_id_of

SECRET = b"hf_planted-marker-9f2c"
CONTEXT = "credential:7835329b-97aa-4658-b421-56473aef0500"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "encryption.key"


@pytest.fixture
def ring(path: Path) -> Keyring:
    return Keyring.load_or_create(path)


def test_seals_and_opens(ring: Keyring) -> None:
    sealed = ring.seal(SECRET, CONTEXT)
    assert sealed.find(SECRET) == -1
    assert sealed[0] == 1
    assert ring.open(sealed, CONTEXT) == SECRET
    assert key_id_of(sealed) == ring.active_key_id


def test_equal_secrets_look_different(ring: Keyring) -> None:
    assert ring.seal(SECRET, CONTEXT) != ring.seal(SECRET, CONTEXT)


def test_opens_after_a_restart(ring: Keyring, path: Path) -> None:
    sealed = ring.seal(SECRET, CONTEXT)
    assert Keyring.load(path).open(sealed, CONTEXT) == SECRET


@pytest.mark.parametrize("context", ["credential:other", CONTEXT + " ", "kubeconfig:" + CONTEXT.split(":")[1]])
def test_another_context_is_refused(ring: Keyring, context: str) -> None:
    with pytest.raises(SealError, match="another context"):
        ring.open(ring.seal(SECRET, CONTEXT), context)


def test_a_context_is_needed(ring: Keyring) -> None:
    with pytest.raises(SealError, match="context"):
        ring.seal(SECRET, "")


def test_every_changed_byte_is_noticed(ring: Keyring) -> None:
    sealed = ring.seal(b"x", CONTEXT)
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(SealError):
            ring.open(Sealed(bytes(changed)), CONTEXT)


def test_a_payload_cannot_be_moved_under_another_data_key(ring: Keyring) -> None:
    one, other = ring.seal(SECRET, CONTEXT), ring.seal(b"y" * len(SECRET), CONTEXT)
    for cut in range(1, len(one)):
        if one[:cut] + other[cut:] in (one, other):
            continue
        with pytest.raises(SealError):
            ring.open(one[:cut] + other[cut:], CONTEXT)


@pytest.fixture(scope="module")
def shared_ring(tmp_path_factory: pytest.TempPathFactory) -> Keyring:
    return Keyring.load_or_create(tmp_path_factory.mktemp("ring") / "encryption.key")


@given(st.binary(max_size=5000), st.text(min_size=1, max_size=60))
def test_any_secret_in_any_context(shared_ring: Keyring, secret: bytes, context: str) -> None:
    assert shared_ring.open(shared_ring.rewrap(shared_ring.seal(secret, context)), context) == secret


@given(st.binary(max_size=300))
def test_noise_is_refused_and_nothing_else_is_raised(shared_ring: Keyring, noise: bytes) -> None:
    with pytest.raises(SealError):
        shared_ring.open(noise, CONTEXT)


class TestRotation:
    def test_old_values_open_and_new_ones_use_the_new_key(self, ring: Keyring) -> None:
        old_key, old = ring.active_key_id, ring.seal(SECRET, CONTEXT)
        new_key = ring.rotate()
        assert new_key != old_key
        assert ring.open(old, CONTEXT) == SECRET
        assert key_id_of(ring.seal(SECRET, CONTEXT)) == new_key
        assert set(ring.key_ids) == {old_key, new_key}

    def test_rewrap_changes_the_wrapping_alone(self, ring: Keyring) -> None:
        old = ring.seal(SECRET, CONTEXT)
        new_key = ring.rotate()
        rewrapped = ring.rewrap(old)
        assert key_id_of(rewrapped) == new_key
        assert rewrapped[69:] == old[69:]
        assert ring.open(rewrapped, CONTEXT) == SECRET
        assert ring.rewrap(rewrapped) == rewrapped

    def test_retire_refuses_the_active_key_and_an_unknown_one(self, ring: Keyring) -> None:
        with pytest.raises(SealError, match="rotate first"):
            ring.retire(ring.active_key_id)
        with pytest.raises(UnknownKeyError):
            ring.retire("00" * 8)

    def test_a_retired_key_is_gone_for_good(self, ring: Keyring, path: Path) -> None:
        old_key, old = ring.active_key_id, ring.seal(SECRET, CONTEXT)
        ring.rotate()
        kept = ring.rewrap(old)
        ring.retire(old_key)
        assert old_key not in path.read_text()
        with pytest.raises(UnknownKeyError) as caught:
            ring.open(old, CONTEXT)
        assert caught.value.key_id == old_key
        assert ring.open(kept, CONTEXT) == SECRET

    def test_another_process_follows_a_rotation_at_once(self, ring: Keyring, path: Path) -> None:
        neighbour = Keyring.load(path)
        new_key = ring.rotate()
        assert neighbour.open(ring.seal(SECRET, CONTEXT), CONTEXT) == SECRET
        assert key_id_of(neighbour.seal(SECRET, CONTEXT)) == new_key

    def test_reading_goes_on_while_the_file_is_away(self, ring: Keyring, path: Path) -> None:
        sealed = ring.seal(SECRET, CONTEXT)
        path.unlink()
        assert ring.open(sealed, CONTEXT) == SECRET
        assert ring.open(ring.seal(SECRET, CONTEXT), CONTEXT) == SECRET
        with pytest.raises(SealError, match="cannot be read"):
            ring.rotate()


def _first_start(path: Path, start: Barrier, results: "Queue[str]") -> None:
    start.wait(30)
    results.put(Keyring.load_or_create(path).active_key_id)


def _rotate(path: Path, start: Barrier, results: "Queue[str]") -> None:
    ring = Keyring.load(path)
    start.wait(30)
    results.put(ring.rotate())


@pytest.mark.parametrize(("work", "keys"), [(_first_start, 1), (_rotate, 5)])
def test_processes_that_act_at_once_lose_no_key(path: Path, work: Callable[..., None], keys: int) -> None:
    if work is _rotate:
        Keyring.load_or_create(path)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    results: Queue[str] = context.Queue()
    children = [context.Process(target=work, args=(path, start, results)) for _ in range(4)]
    for child in children:
        child.start()
    seen = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join(60)
    ring = Keyring.load(path)
    assert len(ring.key_ids) == keys
    assert seen <= set(ring.key_ids)


class TestFile:
    def test_is_closed_to_others_and_leaves_nothing_beside_it(self, ring: Keyring, path: Path) -> None:
        ring.rotate()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert sorted(file.name for file in path.parent.iterdir()) == ["encryption.key", "encryption.key.lock"]

    def test_what_a_killed_writer_left_is_swept_up(self, ring: Keyring, path: Path) -> None:
        (path.parent / ".encryption.key.draft").write_text(path.read_text())
        ring.rotate()
        assert sorted(file.name for file in path.parent.iterdir()) == ["encryption.key", "encryption.key.lock"]

    def test_a_failed_write_changes_nothing(self, ring: Keyring, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_handle: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before, sealed = path.read_bytes(), ring.seal(SECRET, CONTEXT)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SealError, match="No space left on device"):
            ring.rotate()
        assert path.read_bytes() == before
        assert sorted(file.name for file in path.parent.iterdir()) == ["encryption.key", "encryption.key.lock"]
        assert ring.open(sealed, CONTEXT) == SECRET

    def test_a_missing_file_is_not_replaced_by_load(self, path: Path) -> None:
        with pytest.raises(SealError, match="No such file"):
            Keyring.load(path)
        assert not path.exists()

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o666])
    def test_is_refused_when_others_may_read_it(self, ring: Keyring, path: Path, mode: int) -> None:
        path.chmod(mode)
        with pytest.raises(SealError, match="0600"):
            Keyring.load(path)

    def test_a_link_to_the_file_stays_a_link(self, ring: Keyring, path: Path) -> None:
        link = path.parent / "link.key"
        link.symlink_to(path)
        Keyring.load(link).rotate()
        assert link.is_symlink()
        assert len(Keyring.load(path).key_ids) == 2

    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "{",
            "[]",
            "null",
            "[" * 100_000,
            '{"version": 2, "active": "a", "keys": {}}',
            '{"version": 1, "active": "0011223344556677", "keys": {}}',
            '{"version": 1, "active": "0011223344556677", "keys": []}',
            '{"version": 1, "active": ["x"], "keys": {}}',
            '{"version": 1, "active": "00112233", "keys": {"00112233": {"key": "AAAA", "created_at": ""}}}',
            '{"version": 1, "active": "é", "keys": {"é": {"key": "é", "created_at": ""}}}',
        ],
    )
    def test_damage_is_told_and_never_repaired(self, ring: Keyring, path: Path, damage: str) -> None:
        path.write_text(damage)
        with pytest.raises(SealError, match="damaged"):
            Keyring.load_or_create(path)
        assert path.read_text() == damage

    def test_a_folder_that_cannot_be_made_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(SealError, match=r"Not a directory|File exists"):
            Keyring.load_or_create(tmp_path / "file" / "encryption.key")


class TestNothingLeaks:
    def test_reprs_hold_no_key(self, ring: Keyring, path: Path) -> None:
        keys = [entry["key"] for entry in json.loads(path.read_text())["keys"].values()]
        texts = [repr(ring), str(ring), repr(ring._ring), str(vars(ring))]
        for key in keys:
            raw = base64.b64decode(key)
            assert not any(key in text or repr(raw)[2:-1] in text for text in texts)

    def test_errors_hold_no_key_even_in_their_causes(self, ring: Keyring, path: Path) -> None:
        content = path.read_text()
        key = next(iter(json.loads(content)["keys"].values()))["key"]
        path.write_text(content[:-3])
        with pytest.raises(SealError) as caught:
            Keyring.load(path)
        assert caught.value.__context__ is None
        assert key not in "".join(traceback.format_exception(caught.value))


def test_derived_keys_differ_by_purpose_and_change_with_a_rotation(tmp_path: Path) -> None:
    ring = Keyring.load_or_create(tmp_path / "keys.json")
    first = ring.derive("a")
    assert len(first) == 32
    assert first != ring.derive("b")
    assert Keyring.load(tmp_path / "keys.json").derive("a") == first
    ring.rotate()
    assert ring.derive("a") != first
