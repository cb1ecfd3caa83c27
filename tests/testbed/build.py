"""The servers of the test bed: built with Go from their public modules, kept in the user's cache.

`python -m tests.testbed.build [NAME…]` (what `make testbed` runs) builds those that the cache lacks. A folder of
`programs/` is a Go module that requires the server, so that `go.mod` and `go.sum` fix what is built; its
own `main.go`, if any, joins several servers in one binary, else the module names the server's own command as a tool.
`tests.testbed.machine` asks here what there is.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stepway" / "testbed"
_TOOL = re.compile(r"^tool (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    module: str  # the requirement of go.mod that gives the version
    minutes: float  # of a build from nothing, on two cores
    version_variable: str = ""  # what the linker sets to the version, where clients ask for it
    tags: str = ""

    @property
    def folder(self) -> Path:
        return PROGRAMS / self.name

    @property
    def version(self) -> str:
        """As in go.mod, without the v and without the commit of a pseudo-version."""
        found = re.search(rf"^\s*(?:require )?{re.escape(self.module)} v(\S+)", self._manifest(), re.MULTILINE)
        if found is None:
            raise ValueError(f"{self.folder / 'go.mod'} does not require {self.module}")
        return re.sub(r"-[0-9a-f]{12}$", "", found.group(1))

    @property
    def path(self) -> Path:
        """Where the binary is, once built."""
        return CACHE / f"{self.name}-{self.version}"

    def built(self) -> bool:
        return self.path.is_file() and os.access(self.path, os.X_OK)

    def build(self) -> None:
        """Raises CalledProcessError; Go's own messages go to the terminal."""
        CACHE.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        tool = _TOOL.search(self._manifest())
        linker = f"-s -w -X {self.version_variable}=v{self.version}" if self.version_variable else "-s -w"
        command = ["go", "build", "-trimpath", "-mod=readonly", f"-tags={self.tags}", f"-ldflags={linker}"]
        try:
            subprocess.run(
                [*command, "-o", str(part), tool.group(1) if tool else "."],
                cwd=self.folder,
                env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"},
                check=True,
            )
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)

    def _manifest(self) -> str:
        return (self.folder / "go.mod").read_text()


ALL = (
    Program("kube", "k8s.io/kubernetes", 6, version_variable="k8s.io/component-base/version.gitVersion"),
    Program("kwok", "sigs.k8s.io/kwok", 4),
    Program("coredns", "github.com/coredns/coredns", 2),
    Program("minio", "github.com/minio/minio", 4),
    Program("mc", "github.com/minio/mc", 1.5),
    Program("dapr", "github.com/dapr/dapr", 6, tags="stablecomponents"),
    Program("helm", "helm.sh/helm/v3", 1.5),
)


def program(name: str) -> Program:
    return next(one for one in ALL if one.name == name)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the servers of the test bed that the cache lacks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(one.name for one in ALL)}; else all")
    names = parser.parse_args().names
    unknown = set(names) - {one.name for one in ALL}
    if unknown:
        parser.error(f"no such program: {', '.join(sorted(unknown))}")
    chosen = [one for one in ALL if not names or one.name in names]
    missing = [one for one in chosen if not one.built()]
    for one in chosen:
        _say(f"{one.name} {one.version}: {'to be built' if one in missing else one.path}")
    if missing and shutil.which("go") is None:
        _say("Go is needed to build them: https://go.dev/dl/, or Debian's golang package.")
        return 1
    if missing:
        _say(f"Expect about {sum(one.minutes for one in missing):g} minutes on two cores.")
    failed = [one for one in missing if not _built(one)]
    return 1 if failed else 0


def _built(one: Program) -> bool:
    _say(f"Building {one.name} {one.version}, about {one.minutes:g} minutes …")
    begun = time.monotonic()
    try:
        one.build()
    except subprocess.CalledProcessError:
        _say(f"{one.name} could not be built.")
        return False
    _say(f"{one.name}: {one.path}, {(time.monotonic() - begun) / 60:.1f} minutes")
    return True


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
