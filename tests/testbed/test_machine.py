"""What the test bed's servers are called, and what a test does where they cannot run."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.testbed import build, machine
from tests.testbed.build import ALL, PROGRAMS, Program, program


def test_every_program_has_a_module_that_fixes_its_version() -> None:
    assert {one.name for one in ALL} == {path.name for path in PROGRAMS.iterdir()}
    for one in ALL:
        assert re.fullmatch(r"\d+\.\d+\.\d+(-\d{14})?", one.version), one
        assert one.module in (one.folder / "go.sum").read_text()
        assert (one.folder / "main.go").exists() != ("\ntool " in (one.folder / "go.mod").read_text())


def test_a_binary_of_the_cache_is_the_version_that_the_module_names() -> None:
    machine.need("kube")
    said = subprocess.run([program("kube").path, "kubelet", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"Kubernetes v{program('kube').version}\n"


def test_what_lacks_skips_a_test_and_fails_it_where_the_test_bed_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setenv("STEPWAY_TESTBED", "auto")
    with pytest.raises(pytest.skip.Exception, match=r"kube is not built \(make testbed\)"):
        machine.need("kube")
    monkeypatch.setenv("STEPWAY_TESTBED", "required")
    with pytest.raises(pytest.fail.Exception, match="kube is not built"):
        machine.need("kube")
    monkeypatch.setenv("STEPWAY_TESTBED", "perhaps")
    monkeypatch.setenv("STEPWAY_TESTBED", "off")
    with pytest.raises(pytest.skip.Exception, match="turned off"):
        machine.need("kube")
    monkeypatch.setenv("STEPWAY_TESTBED", "perhaps")
    with pytest.raises(ValueError, match="it may be"):
        machine.need("kube")


def test_a_program_is_built_from_its_module_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("go") is None:
        pytest.skip("Go is not installed")
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(build, "PROGRAMS", tmp_path)
    folder = tmp_path / "hello"
    folder.mkdir()
    (folder / "go.mod").write_text("module hello\n\ngo 1.21\n\n// example.com/hello v1.2.3\n")
    (folder / "main.go").write_text('package main\n\nvar version = "v0"\n\nfunc main() { println(version) }\n')
    made = Program("hello", "// example.com/hello", 0.1, version_variable="main.version")
    assert not made.built()
    made.build()
    assert made.built()
    assert [path.name for path in build.CACHE.iterdir()] == ["hello-1.2.3"]
    said = subprocess.run([made.path], capture_output=True, text=True, check=True)
    assert said.stderr == "v1.2.3\n"


def test_an_unknown_name_is_refused() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "tests.testbed.build", "nonsense"], capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert "no such program: nonsense" in found.stderr
