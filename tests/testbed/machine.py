"""What of the test bed can run on this machine, and what a test does where it cannot.

`need(…)` skips the test and says why and what to do; with STEPWAY_TESTBED=required (the default is auto) it fails, and with
STEPWAY_TESTBED=off it always skips.
"""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.testbed.build import program
from tests.testbed.images import to_fetch

_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "socat": "socat",
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "gcc": "gcc",
}


def missing(*programs: str, pods: bool = False, images: Sequence[str] = ()) -> list[str]:
    """What lacks, in words: `programs` of the cache, what running pods needs, `images` that would have to be fetched."""
    lacking = [f"{name} is not built (make testbed)" for name in programs if not program(name).built()]
    if pods and (sys.platform != "linux" or os.geteuid() != 0):
        lacking.append("pods need root on Linux")
    elif pods and not _may_have_namespaces():
        lacking.append("this machine lets even root make no namespaces")
    packages = sorted({package for command, package in _PACKAGES.items() if not _found(command)}) if pods else []
    if packages:
        lacking.append(f"these packages are not installed (tests/testbed/packages.sh): {', '.join(packages)}")
    return lacking + [f"the image {name} is not built (make testbed)" for name in images if to_fetch(name)]


def need(*programs: str, pods: bool = False, images: Sequence[str] = ()) -> None:
    """Skip the test, or fail it where the test bed is required, unless all of this is there."""
    if _mode() == "off":
        pytest.skip("the test bed is turned off (STEPWAY_TESTBED=off)")
    lacking = missing(*programs, pods=pods, images=images)
    if not lacking:
        return
    message = f"the test bed cannot run here: {'; '.join(lacking)}"
    if required():
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


def required() -> bool:
    return _mode() == "required"


def _mode() -> str:
    mode = os.environ.get("STEPWAY_TESTBED", "auto")
    if mode not in ("auto", "required", "off"):
        raise ValueError(f"STEPWAY_TESTBED is {mode!r}; it may be auto, required or off")
    return mode


@functools.cache
def _may_have_namespaces() -> bool:
    command = ["unshare", "--fork", "--pid", "--mount", "--net", "true"]
    return _found("unshare") and subprocess.run(command, check=False, capture_output=True).returncode == 0


def _found(command: str) -> bool:
    return Path(command).exists() if command.startswith("/") else shutil.which(command) is not None
