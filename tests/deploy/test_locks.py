"""What the image of a service has is enough for it: with everything else hidden, it imports all that it may ever run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.distributed.services import SERVICES

ROOT = Path(__file__).parents[2]
COMMAND = ("stepway.cli.main",)
MODULES = {
    "app": ("services.distributed.app", "services.assembly.database", "services.embedded.check", "shared.db.dump"),
    "model": ("services.distributed.model", "services.model.scan.checks.pickle_code", "services.model.scan.scanner",
              "services.model.scan.checks.template_rules"),
    "cluster": ("services.distributed.cluster",),
    "flow": ("services.distributed.flow",),
    "gateway": ("services.distributed.gateway",),
}  # fmt: skip
_SCRIPT = """
import sys, importlib, importlib.metadata as metadata
locked, wanted = set(sys.argv[1].split(",")), sys.argv[2].split(",")
normal = lambda name: name.lower().replace("_", "-").replace(".", "-")
hidden = {top for top, owners in metadata.packages_distributions().items() if not {normal(one) for one in owners} & locked}
class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden - {"stepway", "services", "shared", "migrations", "setuptools", "_distutils_hack"}:
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)
sys.meta_path.insert(0, Hides())
for name in list(sys.modules):
    if name.partition(".")[0] in hidden:
        del sys.modules[name]
for name in wanted:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_nothing_that_its_image_lacks(service: str) -> None:
    lock = (ROOT / "locks" / f"{service}.txt").read_text()
    locked = re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==", lock, re.MULTILINE)
    wanted = [*COMMAND, *MODULES[service]]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, ",".join(locked), ",".join(wanted)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_lock_of_another_service_is_not_enough_for_the_app() -> None:
    """The test above can fail."""
    lock = (ROOT / "locks" / "gateway.txt").read_text()
    locked = re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==", lock, re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, ",".join(locked), "services.distributed.app"], cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "is not in this image" in done.stderr
