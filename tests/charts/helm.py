"""Helm, as the test bed built it, on our chart: what it renders, and what it refuses."""

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.testbed.build import program

CHART = Path(__file__).parents[2] / "charts" / "stepway"
KUBERNETES = "1.34.4"
BUNDLED: dict[str, Any] = {"database": {"bundled": {"enabled": True}}, "objects": {"bundled": {"enabled": True}}}
GIVEN: dict[str, Any] = {
    "database": {"existingSecret": "database"},
    "objects": {"endpoint": "https://s3.example", "existingSecret": "objects"},
}

Json = dict[str, Any]


class HelmError(Exception):
    """Helm refused; the text is its own."""


def helm(*arguments: str | Path, values: Mapping[str, Any] | None = None, kubeconfig: Path | None = None) -> str:
    """What a command printed. It sees nothing of the user's own configuration. Raises HelmError."""
    with tempfile.TemporaryDirectory(prefix="stepway-helm-") as home:
        command = [str(program("helm").path), *map(str, arguments)]
        if values is not None:
            file = Path(home, "values.yaml")
            file.write_text(yaml.safe_dump(dict(values)))
            command += ["--values", str(file)]
        environment = {"HOME": home, "PATH": os.environ["PATH"]}
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HelmError(done.stderr + done.stdout)
    return done.stdout


def template(values: Mapping[str, Any], *, upgrade: bool = False, namespace: str = "ns") -> list[Json]:
    """All objects that the release `stepway` would have. Raises HelmError."""
    more = ["--is-upgrade"] if upgrade else []
    text = helm(
        "template", "stepway", CHART, "--namespace", namespace, "--kube-version", KUBERNETES, *more, values=values
    )
    return [one for one in yaml.safe_load_all(text) if one]


def of_kind(objects: list[Json], kind: str) -> dict[str, Json]:
    """By their names."""
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def pod_specs(objects: list[Json]) -> dict[str, Json]:
    """The pod of everything that makes pods, by its name."""
    found = {}
    for one in objects:
        if one["kind"] in ("Deployment", "StatefulSet", "Job"):
            found[one["metadata"]["name"]] = one["spec"]["template"]
    return found
