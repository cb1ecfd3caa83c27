"""Layers and images in the layout of the OCI, made without a container engine: tar files and a little JSON.

Layers are plain tar files with nothing in them that differs from one build to the next; they are kept in the user's
cache, named for what they are made from. `tests.testbed.images` says which there are.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import platform
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from tests.testbed.build import CACHE

FOLDER = CACHE / "images"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Layer:
    """Made from `inputs`, which name it, by `write` into a tar file. `fetched`: from Debian's or Python's registry."""

    name: str
    inputs: tuple[str, ...]
    write: Callable[[Path], None]
    fetched: bool = False

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(repr((self.inputs, platform.machine())).encode()).hexdigest()
        return FOLDER / f"{self.name}-{digest[:16]}.tar"

    def file(self) -> Path:
        """The tar file, made now if the cache lacks it."""
        path = self.path
        if not path.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".making-") as folder:
                self.write(Path(folder, "layer.tar"))
                Path(folder, "layer.tar").replace(path)
        return path


@dataclass(frozen=True, slots=True)
class Image:
    layers: tuple[Layer, ...]
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Archive:
    """An OCI image layout, as a tar stream."""

    reference: str
    layers: tuple[Path, ...]
    config: dict[str, Any]

    @contextlib.contextmanager
    def stream(self) -> Iterator[int]:
        """A pipe's end from which it is read."""
        reader, writer = os.pipe()
        thread = threading.Thread(target=self._write, args=(writer,), daemon=True)
        thread.start()
        try:
            yield reader
        finally:
            os.close(reader)
            thread.join()

    def _write(self, descriptor: int) -> None:
        # a reader that goes away says why by its own exit status
        with contextlib.suppress(BrokenPipeError), open(descriptor, "wb") as pipe:
            self.write(pipe)

    def write(self, out: BinaryIO) -> None:
        digests = [_digest(path) for path in self.layers]
        config = _json(
            {
                "architecture": _ARCHITECTURES[platform.machine()],
                "os": "linux",
                "config": self.config,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
            }
        )
        layers = [
            _descriptor("application/vnd.oci.image.layer.v1.tar", digest, path.stat().st_size)
            for digest, path in zip(digests, self.layers, strict=True)
        ]
        described = _descriptor("application/vnd.oci.image.config.v1+json", _hash(config), len(config))
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = _json({"schemaVersion": 2, "mediaType": kind, "config": described, "layers": layers})
        entry = _descriptor(kind, _hash(manifest), len(manifest))
        entry["annotations"] = {"io.containerd.image.name": self.reference}
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
            add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
            add(tar, f"blobs/sha256/{_hash(manifest)}", manifest)
            add(tar, f"blobs/sha256/{_hash(config)}", config)
            for digest, path in zip(digests, self.layers, strict=True):
                with path.open("rb") as content:
                    tar.addfile(entry_of(f"blobs/sha256/{digest}", path.stat().st_size), content)


def write_tree(layer: Path, folder: Path, prefix: str) -> None:
    """All files of a folder, links as what they lead to; who may execute a file there may do so here."""
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                found = path.stat()
                mode = 0o755 if found.st_mode & 0o100 else 0o644
                entry = entry_of(f"{prefix}/{path.relative_to(folder)}", found.st_size, mode)
                with path.open("rb") as content:
                    tar.addfile(entry, content)


def add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    tar.addfile(entry_of(name, len(content), mode), io.BytesIO(content))


def entry_of(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
    """Of root's, of 1970."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _digest(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
