"""Damaged files: truncated, with flipped bits, or plain noise. Nothing raises; an intact payload is never safe."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.services.model.scan import builders, corpus
from tests.services.model.scan.test_scanner import scan_bytes

SLOW = {"bomb.gz", "large.pkl", "deep.zip"}
FILES = {name: data for name, data in (corpus.harmful("marker") | corpus.innocent()).items() if name not in SLOW}
NAMES = sorted(FILES)
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
EVIL = builders.call("os", "system", builders.text("true"))
CONTAINERS = sorted(
    name for name in corpus.innocent() if name.endswith((".pt", ".bin", ".npz", ".joblib", ".gguf", ".h5"))
)


def _status(name: str, data: bytes) -> str:
    with TemporaryDirectory() as folder:
        report = scan_bytes(Path(folder), name, data)
    assert not any("check failed" in error.message for error in report.errors), report.errors
    return report.status


@SETTINGS
@given(name=st.sampled_from(NAMES), at=st.floats(0, 1))
def test_truncated_files_do_not_raise(name: str, at: float) -> None:
    _status(name, FILES[name][: int(len(FILES[name]) * at)])


@SETTINGS
@given(
    name=st.sampled_from(NAMES), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=5)
)
def test_flipped_bits_do_not_raise(name: str, flips: list[tuple[float, int]]) -> None:
    data = bytearray(FILES[name])
    for place, bit in flips:
        if data:
            data[min(int(len(data) * place), len(data) - 1)] ^= 1 << bit
    _status(name, bytes(data))


@SETTINGS
@given(
    name=st.sampled_from(["x.bin", "x.pkl", "x.gguf", "x.safetensors", "x.onnx", "x.pt", "x.npy", "x.h5", "x"]),
    data=st.binary(max_size=300),
)
def test_noise_does_not_raise(name: str, data: bytes) -> None:
    _status(name, data)


@SETTINGS
@given(
    before=st.sampled_from([b"", b"N0", b"]0", b"(0", builders.text("x") + b"0", b"}" + builders.text("k")]),
    after=st.binary(max_size=60),
)
def test_a_payload_with_any_tail_is_found(before: bytes, after: bytes) -> None:
    assert _status("model.pkl", b"\x80\x02" + before + EVIL + after) in ("critical", "error")


@SETTINGS
@given(
    name=st.sampled_from(["pytorch_model.bin", "a.npz", "b.zip"]), flips=st.lists(st.integers(0, 10_000), max_size=4)
)
def test_an_intact_payload_in_a_damaged_archive_is_never_safe(name: str, flips: list[int]) -> None:
    payload = builders.pickled(EVIL)
    data = bytearray(builders.zipped({"archive/data.pkl": payload, "archive/version": b"3"}))
    place = data.find(payload)
    for flip in flips:
        at = flip % len(data)
        if not place <= at < place + len(payload):
            data[at] ^= 1 << flip % 8
    assert _status(name, bytes(data)) not in ("safe", "low", "medium")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.gguf", "model.onnx", "pytorch_model.bin", "array.npy", "model.h5"]
)
def test_half_a_model_is_an_error(name: str) -> None:
    data = corpus.innocent()[name]
    assert _status(name, data[: len(data) // 2]) == "error"
