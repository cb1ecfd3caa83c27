"""Gives claims of the test bed's storage classes folders of the node: `provisioner.py KUBECONFIG FOLDER`.

A process of `tests.testbed.cluster`, run as a plain script. The controllers mark a claim that wants a volume with the
provisioner's name, at once or when a pod that uses it has a node; the volume's folder goes when the claim went.
"""

import base64
import json
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

NAME = "testbed.stepway/host-path"
_MARK = "volume.kubernetes.io/storage-provisioner"
_PERIOD = 0.2  # seconds between looks
_VOLUMES = "/api/v1/persistentvolumes"
_FOLDER = re.compile(r"pvc-[0-9a-f-]{36}")


class Api:
    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        found = document["clusters"][0]["cluster"]
        self._server, self._token = found["server"], document["users"][0]["user"]["token"]
        authority = base64.b64decode(found["certificate-authority-data"]).decode()
        self._context = ssl.create_default_context(cadata=authority)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self._server}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


def look(api: Api, folder: Path) -> None:
    for claim in api.call("GET", "/api/v1/persistentvolumeclaims")["items"]:
        marked = claim["metadata"].get("annotations", {}).get(_MARK) == NAME
        if marked and claim["status"].get("phase") == "Pending" and "volumeName" not in claim["spec"]:
            provide(api, folder, claim)
    for volume in api.call("GET", _VOLUMES)["items"]:
        ours = volume["metadata"].get("annotations", {}).get("pv.kubernetes.io/provisioned-by") == NAME
        name = volume["metadata"]["name"]
        if ours and volume["status"].get("phase") == "Released" and _FOLDER.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)
            api.call("DELETE", f"{_VOLUMES}/{name}")


def provide(api: Api, folder: Path, claim: dict[str, Any]) -> None:
    name = f"pvc-{claim['metadata']['uid']}"
    path = folder / name
    path.mkdir(exist_ok=True)
    path.chmod(0o777)  # a hostPath is not given to the pod's group
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {"pv.kubernetes.io/provisioned-by": NAME}},
        "spec": {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": claim["metadata"]["name"],
                "namespace": claim["metadata"]["namespace"],
                "uid": claim["metadata"]["uid"],
            },
            "hostPath": {"path": str(path)},
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": claim["spec"]["storageClassName"],
        },
    }
    try:
        api.call("POST", _VOLUMES, volume)
    except urllib.error.HTTPError as error:
        if error.code != 409:  # made at the look before; the controllers bind it in a moment
            raise


def main() -> None:
    api, folder = Api(Path(sys.argv[1])), Path(sys.argv[2])
    while True:
        try:
            look(api, folder)
        except OSError as error:  # the API server is away, which tests do to it
            sys.stderr.write(f"{error}\n")
        time.sleep(_PERIOD)


if __name__ == "__main__":
    main()
