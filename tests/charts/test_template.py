"""What the chart renders, over many sets of values: complete, restricted, and what is wrong refused in words."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from services.distributed.services import SERVICES
from shared.rpc.identity import service_key
from shared.security.envelope import Keyring
from shared.settings import Settings, load
from tests.charts.helm import BUNDLED, CHART, GIVEN, HelmError, Json, helm, of_kind, pod_specs, template
from tests.testbed.kube import ApiServer, collection

SIDECARS = {**BUNDLED, "dapr": {"mode": "sidecars"}}
FULL: Json = {
    **GIVEN,
    "image": {"repository": "registry.example/stepway-{service}", "pullSecrets": ["pull"]},
    "settings": {
        "rate_quota": 1000, "max_model_bytes": 536870912000, "cors_origins": ["https://a.example", "https://b.example"],
        "allow_private_clusters": False, "trace_ratio": 0.25, "otlp_endpoint": "http://collector:4318",
        "allowed_hosts": ["stepway.internal"], "hf_endpoint": "https://hub.example",
    },
    "objects": {"endpoint": "https://s3.example", "existingSecret": "objects", "caSecret": "objects-ca", "prefix": "a/b"},
    "secrets": {
        "existingSecret": "keys", "existingDaprApiTokenSecret": "api-token", "existingDaprAppTokenSecret": "app-token",
    },
    "ingress": {"enabled": True, "host": "stepway.example", "tlsSecret": "tls", "className": "nginx"},
    "monitoring": {"serviceMonitor": {"enabled": True}, "prometheusRule": {"enabled": True}},
    **{name: {"autoscaling": {"enabled": True}, "tolerations": [{"operator": "Exists"}]} for name in SERVICES},
}  # fmt: skip
ROUTED = {**GIVEN, "httpRoute": {"enabled": True, "host": "stepway.example", "parentRefs": [{"name": "public"}]}}
SETS = {"given": GIVEN, "bundled": BUNDLED, "sidecars": SIDECARS, "full": FULL, "routed": ROUTED}


@pytest.fixture(scope="module", params=SETS)
def objects(request: pytest.FixtureRequest) -> list[Json]:
    return template(SETS[request.param])


def test_helm_finds_nothing_to_complain_of() -> None:
    for name, values in SETS.items():
        said = helm("lint", CHART, "--strict", values=values)
        assert "1 chart(s) linted, 0 chart(s) failed" in said, name
        assert "[WARNING]" not in said, said


def test_every_pod_is_restricted(objects: list[Json]) -> None:
    for name, template_ in pod_specs(objects).items():
        pod = template_["spec"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPath" not in volume for volume in pod.get("volumes", []))
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"], name
            if container["name"] == "daprd":
                assert container["restartPolicy"] == "Always"


def test_what_a_pod_refers_to_is_there_or_was_given(objects: list[Json]) -> None:
    made = {(one["kind"], one["metadata"]["name"]): set(one.get("data", {})) for one in objects}
    given = {"database", "objects", "objects-ca", "keys", "api-token", "app-token"}
    for name, template_ in pod_specs(objects).items():
        pod = template_["spec"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            for variable in container.get("env", []):
                source = variable.get("valueFrom", {}).get("secretKeyRef")
                if source and source["name"] not in given:
                    assert source["key"] in made["Secret", source["name"]], (name, variable)
            mounted = {one["name"] for one in container["volumeMounts"]}
            volumes = {one["name"] for one in pod.get("volumes", [])}
            claimed = {"data"}
            assert mounted <= volumes | claimed, name
        for volume in pod.get("volumes", []):
            for kind, key in (("Secret", "secret"), ("ConfigMap", "configMap")):
                source = volume.get(key)
                found = source and (source.get("secretName") or source["name"])
                if found and found not in given:
                    assert {one["key"] for one in source.get("items", [])} <= made[kind, found], name


def environment(objects: list[Json], service: str) -> dict[str, str]:
    """As the process sees it; what comes from a Secret is something that could be in one."""
    (container,) = pod_specs(objects)[f"stepway-{service}"]["spec"]["containers"]
    secret = "https-or-not-this-is-long-enough-for-a-secret"
    return {one["name"]: one.get("value", secret) for one in container["env"]}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_every_setting_that_it_needs_and_no_other(objects: list[Json], service: str) -> None:
    given = environment(objects, service)
    known = {f"STEPWAY_{name.upper()}" for name in Settings.model_fields} | {
        "DATABASE_URL", "HF_ENDPOINT", "DAPR_HTTP_PORT", "DAPR_GRPC_PORT", "DAPR_API_TOKEN", "APP_API_TOKEN",
    }  # fmt: skip
    assert set(given) <= known
    settings = load(given)
    assert (settings.host, settings.internal_port, settings.metrics_port) == ("0.0.0.0", 8401, 9464)
    assert None not in (settings.dapr_http_port, settings.dapr_api_token, settings.app_api_token)
    assert f"stepway-{service}.ns.svc" in settings.allowed_hosts or service in ("model", "cluster", "flow")
    if service == "app":
        assert None not in (settings.database_url, settings.key_file, settings.service_secret)
        assert settings.service_key is None
    else:
        assert settings.service_key is not None
        assert settings.database_url is None
        assert settings.service_secret is None
        assert settings.key_file is None
    assert (settings.s3_bucket is None) == (service == "gateway")


def test_settings_arrive_as_they_were_meant() -> None:
    settings = load(environment(template(FULL), "app"))
    assert settings.cors_origins == ["https://a.example", "https://b.example"]
    assert settings.max_model_bytes == 536870912000
    assert settings.allow_private_clusters is False
    assert settings.trace_ratio == 0.25
    assert settings.hf_endpoint == "https://hub.example"
    assert {"stepway.example", "stepway.internal", "stepway-app"} <= set(settings.allowed_hosts)


def test_every_setting_that_is_not_the_charts_own_may_be_given() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    assert names <= set(Settings.model_fields)
    own = set(Settings.model_fields) - names
    assert not own & {"rate_quota", "model_roots", "trusted_hosts"}
    assert {"database_url", "service_secret", "s3_secret_key", "key_file", "internal_port"} <= own


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "existingSecret"),
        ({**GIVEN, "colour": "red"}, "colour"),
        ({**GIVEN, "settings": {"rate_qouta": 1}}, "rate_qouta"),
        ({**GIVEN, "settings": {"database_url": "postgresql://"}}, "database_url"),
        ({**GIVEN, "app": {"replicas": 0}}, "replicas"),
        ({**GIVEN, "app": {"replica": 1}}, "replica"),
        ({**GIVEN, "dapr": {"mode": "none"}}, "mode"),
        ({**GIVEN, "objects": {"endpoint": "s3.example", "existingSecret": "a"}}, "endpoint"),
        ({**GIVEN, "objects": {"existingSecret": "a"}}, "endpoint"),
        ({**GIVEN, "database": {"existingSecret": "a", "bundled": {"enabled": True}}}, "existingSecret"),
        ({**GIVEN, "ingress": {"enabled": True}}, "host"),
        ({**GIVEN, "httpRoute": {"enabled": True, "host": "a.example"}}, "parentRefs"),
        ({**ROUTED, "ingress": {"enabled": True, "host": "a.example"}}, "exclude each other"),
        ({**GIVEN, "terminationGracePeriodSeconds": 5}, "terminationGracePeriodSeconds"),
    ],
)
def test_what_is_wrong_is_refused_in_words(values: Json, word: str) -> None:
    with pytest.raises(HelmError, match=word):
        template(values)


def secrets_of(objects: list[Json]) -> dict[str, dict[str, bytes]]:
    return {
        name: {key: base64.b64decode(value) for key, value in one["data"].items()}
        for name, one in of_kind(objects, "Secret").items()
    }


def test_made_secrets_are_what_the_services_read(tmp_path: Path) -> None:
    keys = secrets_of(template(BUNDLED))["stepway-keys"]
    file = tmp_path / "encryption.key"
    file.touch(mode=0o440)
    file.write_bytes(keys["encryption.key"])
    assert Keyring.load(file).active_key_id
    secret = load({"STEPWAY_SERVICE_SECRET": keys["service-secret"].decode()}).service_secret
    assert secret is not None
    for service in set(SERVICES) - {"app"}:
        assert keys[f"service-key-{service}"].decode() == service_key(secret, service)
    again = secrets_of(template(BUNDLED))["stepway-keys"]
    assert again["encryption.key"] != keys["encryption.key"]
    assert again["service-secret"] != keys["service-secret"]


def test_a_sidecar_proves_who_it_is_by_a_token_that_sentry_can_check() -> None:
    """HMAC is made by a template there; here it is the library's."""
    for _ in range(5):
        secrets = secrets_of(template(SIDECARS))
        (key,) = json.loads(secrets["stepway-dapr-trust"]["jwks.json"])["keys"]
        plain = base64.urlsafe_b64decode(key["k"] + "=" * (-len(key["k"]) % 4))
        assert len(plain) == 64
        for name, domain, who in [
            *((service, "public", f"stepway-{service}") for service in SERVICES),
            ("placement", "cluster.local", "dapr-placement"), ("scheduler", "cluster.local", "dapr-scheduler"),
        ]:  # fmt: skip
            token = secrets[f"stepway-dapr-identity-{name}"]["token"]
            claims = jwt.decode(token, plain, ["HS256"], audience="spiffe://cluster.local/ns/ns/dapr-sentry")
            assert claims["sub"] == f"spiffe://{domain}/ns/ns/{who}"


def test_each_pod_has_its_own_identity_and_no_other() -> None:
    for name, template_ in pod_specs(template(SIDECARS)).items():
        identities = {
            volume["secret"]["secretName"]
            for volume in template_["spec"].get("volumes", [])
            if "dapr-identity" in volume.get("secret", {}).get("secretName", "")
        }
        own = name.removeprefix("stepway-").removeprefix("dapr-")
        has_none = name in ("stepway-postgresql", "stepway-minio", "stepway-dapr-sentry", "stepway-upgrade-1")
        assert identities == (set() if has_none else {f"stepway-dapr-identity-{own}"})


def test_the_access_list_of_the_chart_is_that_of_deploy() -> None:
    rendered = of_kind(template({**GIVEN, "dapr": {"prefix": "x-"}}, namespace="default"), "Configuration")
    for service in SERVICES:
        file = Path(__file__).parents[2] / "deploy" / "dapr" / "access" / f"{service}.yaml"
        expected = yaml.safe_load(file.read_text())["spec"]["accessControl"]
        for policy in expected.get("policies", []):
            policy["appId"] = f"x-{policy['appId']}"
        assert rendered[f"x-{service}"]["spec"]["accessControl"] == expected


def test_the_components_of_the_chart_are_those_of_deploy() -> None:
    objects = template({**GIVEN, "dapr": {"prefix": "x-"}})
    rendered = of_kind(objects, "Component") | of_kind(objects, "Resiliency")
    folder = Path(__file__).parents[2] / "deploy" / "dapr"
    for file in [*(folder / "components").glob("*.yaml"), folder / "resiliency.yaml"]:
        text = file.read_text()
        expected = yaml.safe_load(text)
        one = rendered[expected["metadata"]["name"]]
        if "scopes" in expected:
            assert one["scopes"] == [f"x-{name}" for name in expected["scopes"]]
        if one["kind"] == "Resiliency":
            apps = expected["spec"]["targets"].pop("apps")
            assert one["spec"]["targets"].pop("apps") == {f"x-{name}": given for name, given in apps.items()}
        assert one["spec"] == expected["spec"]


def test_the_alerts_of_the_chart_are_those_of_deploy() -> None:
    file = Path(__file__).parents[2] / "deploy" / "observability" / "alerts.yaml"
    (rule,) = of_kind(template(FULL), "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load(file.read_text())
    (monitor,) = of_kind(template(FULL), "ServiceMonitor").values()
    assert monitor["spec"]["jobLabel"] == "app.kubernetes.io/name"  # `stepway`, as the alerts have it


def test_the_database_is_upgraded_before_the_services_are() -> None:
    def hooks(objects: list[Json]) -> list[str]:
        (job,) = of_kind(objects, "Job").values()
        return str(job["metadata"].get("annotations", {}).get("helm.sh/hook", "")).split(",")

    assert hooks(template(GIVEN)) == ["pre-install", "pre-upgrade"]
    assert hooks(template(BUNDLED)) == [""], "there is no database before the release"
    assert hooks(template(BUNDLED, upgrade=True)) == ["pre-install", "pre-upgrade"]


def test_requests_for_inference_go_to_the_gateway_and_all_others_to_the_app() -> None:
    (ingress,) = of_kind(template(FULL), "Ingress").values()
    (rule,) = ingress["spec"]["rules"]
    paths = {one["path"]: one["backend"]["service"]["name"] for one in rule["http"]["paths"]}
    assert paths == {"/endpoints/[^/]+/v1/": "stepway-gateway", "/": "stepway-app"}
    assert ingress["spec"]["tls"] == [{"hosts": ["stepway.example"], "secretName": "tls"}]
    (route,) = of_kind(template(ROUTED), "HTTPRoute").values()
    backends = [one["backendRefs"][0]["name"] for one in route["spec"]["rules"]]
    assert backends == ["stepway-gateway", "stepway-app"]


def test_nobody_talks_to_whom_they_need_not() -> None:
    policies = of_kind(template(SIDECARS), "NetworkPolicy")
    everyone = policies["stepway"]["spec"]
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everyone
    assert [port["port"] for rule in everyone["egress"] for port in rule["ports"]] == [53, 53]

    def callers(name: str, port: int) -> set[str]:
        rules = [rule for rule in policies[name]["spec"]["ingress"] if rule["ports"][0]["port"] == port]
        return {
            one["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for rule in rules for one in rule["from"]
        }

    assert callers("stepway-app", 50002) == {"app", "model", "cluster", "flow", "gateway"}
    assert callers("stepway-model", 50002) == {"app", "model"}
    assert callers("stepway-cluster", 50002) == {"app", "cluster"}
    assert callers("stepway-flow", 50002) == {"app", "flow"}
    assert callers("stepway-gateway", 50002) == {"gateway"}
    assert callers("stepway-postgresql", 5432) == {"app", "model", "cluster", "flow", "upgrade"}
    assert callers("stepway-minio", 9000) == {"app", "model", "cluster", "flow"}
    pods = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in pod_specs(template(SIDECARS)).values()}
    assert pods == {
        one["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "") for one in policies.values()
    } - {""}


def test_a_changed_setting_or_access_list_rolls_the_pods() -> None:
    def checksum(values: Json) -> Any:
        return pod_specs(template(values))["stepway-app"]["metadata"]["annotations"]["checksum/dapr"]

    prefixed = {**SIDECARS, "dapr": {"mode": "sidecars", "prefix": "other-"}}
    assert checksum(SIDECARS) == checksum(SIDECARS)
    assert checksum(SIDECARS) != checksum(prefixed)


def test_an_image_may_be_named_by_its_digest() -> None:
    digest = f"sha256:{hashlib.sha256(b'image').hexdigest()}"
    pods = pod_specs(template({**GIVEN, "image": {"repository": "stepway", "digest": digest}}))
    assert pods["stepway-model"]["spec"]["containers"][0]["image"] == f"stepway@{digest}"


@pytest.mark.parametrize("name", SETS)
def test_a_real_api_server_takes_every_object(api_server: ApiServer, name: str) -> None:
    """By a dry run, with unknown fields refused; Dapr's and Prometheus's own kinds are not known there."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "dry"}}
    api_server.apply("/api/v1/namespaces", namespace)
    seen = 0
    for one in template(SETS[name], namespace="dry"):
        if one["apiVersion"].split("/")[0] in ("dapr.io", "monitoring.coreos.com", "gateway.networking.k8s.io"):
            continue
        one["metadata"].setdefault("namespace", "dry")
        plural = collection(one).replace("networkpolicys", "networkpolicies").replace("ingresss", "ingress")
        answer = api_server.admin.post(plural, params={"dryRun": "All", "fieldValidation": "Strict"}, json=one)
        assert answer.status_code == 201, f"{one['kind']} {one['metadata']['name']}: {answer.text}"
        seen += 1
    assert seen > 15


def test_the_values_in_the_documentation_render() -> None:
    text = (CHART.parents[1] / "docs" / "kubernetes.md").read_text()
    values = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    pods = pod_specs(template(values))
    assert pods["stepway-app"]["spec"]["containers"][0]["image"] == "registry.example/stepway-app:0.1.0"
