"""Keys cannot leave the store."""

import pytest

from shared.objects import InvalidKey, blob_key, manifest_key
from shared.objects.store import checked_key, checked_name


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", ".hidden", "a\\b", "a\0b", "A/b", "a b", "a\n",
        "scratch/x", "incoming/x", "é", "a/" * 9 + "a", "a" * 200,
    ],
)  # fmt: skip
def test_a_key_that_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidKey):
        checked_key(key)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".lock", "A"])
def test_a_scratch_name_is_one_segment(name: str) -> None:
    with pytest.raises(InvalidKey):
        checked_name(name)


@pytest.mark.parametrize("digest", ["", "ab", "G" * 64, "A" * 64, "a" * 63 + "/", "a" * 64 + "\n"])
def test_a_digest_is_64_hex_digits(digest: str) -> None:
    for key in (blob_key, manifest_key):
        with pytest.raises(InvalidKey):
            key(digest)
    assert checked_key(blob_key("a" * 64)) == f"blobs/aa/{'a' * 64}"
    assert checked_key(manifest_key("a" * 64)) == f"manifests/{'a' * 64}.json"
