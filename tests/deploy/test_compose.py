"""deploy/compose.yaml and deploy/Dockerfile, read as a container engine would: none runs here, so they are not run."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.distributed.services import SERVICES
from shared.rpc.identity import service_key
from shared.settings import Settings, load
from tests.testbed import images

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(:[-?])?([^}]*)\}")

Json = dict[str, Any]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What deploy/make-env.sh writes."""
    folder = tmp_path_factory.mktemp("deploy")
    script = folder / "make-env.sh"
    script.write_text((DEPLOY / "make-env.sh").read_text())
    subprocess.run(["sh", script], check=True, capture_output=True)
    assert subprocess.run(["sh", script], check=False, capture_output=True).returncode == 1, "it is made once"
    file = folder / ".env"
    assert file.stat().st_mode & 0o077 == 0
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def compose(given: dict[str, str]) -> Json:
    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        if found[1] not in given:
            assert found[2] == ":-", f"{found[1]} is needed and not made"
            return found[3]
        return given[found[1]]

    document: Json = yaml.safe_load(_VARIABLE.sub(value, (DEPLOY / "compose.yaml").read_text()))
    return document


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_every_setting_that_it_needs(compose: Json, given: dict[str, str], service: str) -> None:
    one = compose["services"][service]
    environment = one["environment"]
    known = {f"STEPWAY_{name.upper()}" for name in Settings.model_fields}
    assert set(environment) - known == {"DAPR_HTTP_PORT", "DAPR_GRPC_PORT", "DAPR_API_TOKEN", "APP_API_TOKEN"} | (
        {"DATABASE_URL"} if service == "app" else set()
    )
    settings = load(environment)
    if service == "app":
        assert settings.service_secret is not None
        assert settings.key_file is not None
        assert str(settings.key_file.parent) in {volume.split(":")[1] for volume in one["volumes"]}
    else:
        secret = load({"STEPWAY_SERVICE_SECRET": given["STEPWAY_SERVICE_SECRET"]}).service_secret
        assert secret is not None
        assert settings.service_key is not None
        assert settings.service_key.get_secret_value() == service_key(secret, service)
    assert (settings.s3_bucket is None) == (service == "gateway")
    assert one["command"] == ["service", service]
    assert one["build"]["args"] == {"SERVICE": service}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_shares_the_network_of_its_sidecar_and_their_ports_agree(compose: Json, service: str) -> None:
    one, sidecar = compose["services"][service], compose["services"][f"{service}-dapr"]
    assert one["network_mode"] == f"service:{service}-dapr"
    assert "networks" not in one
    settings = load(one["environment"])
    arguments = dict(argument.lstrip("-").split("=", 1) for argument in sidecar["command"] if "=" in argument)
    assert arguments["app-id"] == service
    assert int(arguments["app-port"]) == settings.internal_port
    assert int(arguments["dapr-http-port"]) == settings.dapr_http_port
    assert int(arguments["dapr-grpc-port"]) == settings.dapr_grpc_port
    assert arguments["dapr-listen-addresses"] == "127.0.0.1"
    for name in ("DAPR_API_TOKEN", "APP_API_TOKEN"):
        assert one["environment"][name] == sidecar["environment"][name]
    assert (DEPLOY / Path(arguments["config"]).relative_to("/etc/dapr").name).name == "names.yaml"
    template = yaml.safe_load((DEPLOY / "dapr" / "names.yaml").read_text())["spec"]["nameResolution"]
    assert template["configuration"]["template"] == "{{.ID}}-dapr:{{.Port}}"  # the name of a sidecar in the network


def test_only_the_front_is_published_and_on_this_machine_unless_told_otherwise(compose: Json) -> None:
    published = {name: one["ports"] for name, one in compose["services"].items() if one.get("ports")}
    assert published == {"front": ["127.0.0.1:8400:8080"]}
    front = compose["configs"]["front"]["content"]
    assert "location ~ ^/endpoints/[^/]+/v1/ { proxy_pass http://gateway-dapr:8400; }" in front
    assert "location / { proxy_pass http://app-dapr:8400; }" in front


def test_everything_runs_with_little_rights(compose: Json) -> None:
    for name, one in compose["services"].items():
        assert one["read_only"] is True, name
        assert one["cap_drop"] == ["ALL"], name
        assert one["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in one
        assert "cap_add" not in one
        if name != "minio":  # whose volume is root's; it has no capability
            assert not one["user"].startswith("0"), name


def test_what_is_waited_for_can_be_waited_for(compose: Json) -> None:
    services = compose["services"]
    for name, one in services.items():
        for other, how in one.get("depends_on", {}).items():
            checked = services[other].get("healthcheck", {})
            if how["condition"] == "service_healthy":
                assert "test" in checked, (name, other)
                assert not checked.get("disable")
            if how["condition"] == "service_completed_successfully":
                assert services[other]["restart"] == "no", (name, other)
        volumes = {volume.split(":")[0] for volume in one.get("volumes", []) if not volume.startswith(".")}
        assert volumes <= set(compose["volumes"])
        assert set(one.get("networks", [])) <= set(compose["networks"])
        assert {config["source"] for config in one.get("configs", [])} <= set(compose["configs"])


# ---- the Dockerfile


def stages() -> dict[str, list[tuple[str, str]]]:
    """{name of the stage: its instructions}."""
    text = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            current = found.setdefault(rest.rpartition(" AS ")[2], [])
        current.append((word, rest))
    return found


def test_the_last_stage_has_no_build_tools_and_is_nobodys_root() -> None:
    last = list(stages().values())[-1]
    assert ("USER", "65532:65532") in last
    assert not any("apt-get" in rest or "pip" in rest for word, rest in last if word == "RUN")
    copied = [rest for word, rest in last if word == "COPY"]
    assert copied == [f"--from=build /packages /{images.PACKAGES}"]
    assert ("ENTRYPOINT", '["/usr/bin/python3", "-m", "stepway"]') in last


def test_dependencies_are_locked_by_their_hashes() -> None:
    installs = [
        part for word, rest in stages()["build"] if word == "RUN" for part in rest.split("&&") if "pip install" in part
    ]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-deps --no-build-isolation" in install
    for service in SERVICES:
        lock = (ROOT / "locks" / f"{service}.txt").read_text()
        pinned = re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;\\]+)", lock, re.MULTILINE)
        assert len(pinned) > 60
        assert lock.count("--hash=sha256:") > len(pinned)
        everything = (ROOT / "locks" / "run.txt").read_text()
        for name, version in pinned:  # nothing that was not tested with all the rest
            assert f"{name}=={version} " in everything or f"]=={version} " in everything, (service, name)
        assert "xllamacpp==" not in lock


def test_what_is_copied_is_not_ignored() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    for word, rest in stages()["build"]:
        if word == "COPY":
            for source in rest.split()[:-1]:
                top = source.split("/")[0]
                assert top in allowed
                assert (ROOT / top).exists()


def test_the_image_of_the_test_bed_is_made_of_the_same() -> None:
    base = json.dumps(stages()["base"])
    for package in ("ca-certificates", "libpython3-stdlib", "python3-minimal"):
        assert package in base
        assert package in images.PACKAGES_OF_DEBIAN
    assert f"{images.SUITE}-slim" in (DEPLOY / "Dockerfile").read_text()
    assert set(images.SERVICES) == set(SERVICES)
    copied = {rest.split()[0] for word, rest in stages()["build"] if word == "COPY"}
    assert set(images.OURS) <= copied
