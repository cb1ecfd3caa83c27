"""The cluster's form, and what a kubeconfig may not hold (rules 9 and 18)."""

import hashlib
from typing import Any

import pytest

from tests.contract import actors
from tests.contract.actors import CLUSTER, unique
from tests.contract.running import Client, Json
from tests.testbed.certificates import as_yaml, kubeconfig

YAML = as_yaml(kubeconfig(cluster={"server": "https://127.0.0.1:1"}))


async def send(client: Client, fields: dict[str, str], content: bytes | None = None, status: int = 200) -> Json:
    files: dict[str, Any] = {name: (None, value.encode()) for name, value in fields.items()}
    if content is not None:
        files["configuration_file"] = ("../../etc/kubeconfig", content, "application/x-yaml")
    answer = await client.http.post(CLUSTER, files=files)
    assert answer.status_code == status, answer.text
    assert "sekret-token" not in answer.text
    value: Json = answer.json()
    return value


async def test_a_form_in_steps_keeps_its_file(client: Client) -> None:
    name = unique("cluster")
    first = await send(client, {"step_number": "1", "workflow_total_steps": "3", "name": name})
    assert [one["field"] for one in first["missing"]] == ["configuration_file"]
    ids = {"workflow_id": first["workflow_id"], "step_number": "1"}
    second = await send(client, ids, YAML)
    kept = {"name": "kubeconfig", "size": len(YAML), "sha256": hashlib.sha256(YAML).hexdigest()}
    assert second["workflow_steps"] == {"name": name, "configuration_file": kept}
    assert second["missing"] == []
    third = await send(client, {**ids, "ingress_url": "https://ingress.example.com"})
    assert third["workflow_steps"]["configuration_file"] == kept
    assert await send(client, ids, YAML) == third
    cleared = await send(client, {**ids, "ingress_url": ""})
    assert cleared["workflow_steps"]["ingress_url"] is None
    gone = await client.post(CLUSTER, {**ids, "step_number": 1, "configuration_file": None})
    assert gone["workflow_steps"]["configuration_file"] is None
    assert gone["field_steps"]["configuration_file"] == 1
    assert [one["field"] for one in gone["missing"]] == ["configuration_file"]
    back = await send(client, ids, YAML)
    assert back["workflow_steps"]["configuration_file"] == kept
    by_json = await client.post(CLUSTER, {**ids, "step_number": 2, "icon": actors.ICON})
    assert by_json["workflow_steps"]["configuration_file"] == kept
    assert by_json["current_step"] == 2


async def test_the_description_of_a_file_may_come_back(client: Client) -> None:
    draft = await send(client, {"step_number": "1", "workflow_total_steps": "3", "name": unique("c")}, YAML)
    shown = draft["workflow_steps"]
    ids = {"workflow_id": draft["workflow_id"], "step_number": 1}
    assert await client.post(CLUSTER, {**ids, **shown}) == draft
    other = {**ids, "configuration_file": {**shown["configuration_file"], "size": 1}}
    problem = await client.refused(CLUSTER, other, 422, "validation_failed")
    assert [(one["param"], one["code"], one["step"]) for one in problem["errors"]] == [
        ("configuration_file", "file_expected", 1)
    ]


@pytest.mark.parametrize("text", ["true", "TRUE", "1", '"True"', "false", "0", '"FALSE"', "False"])
async def test_booleans_and_numbers_are_spelled_in_many_ways(client: Client, text: str) -> None:
    is_true = text.strip('"').lower() in ("true", "1")
    fields = {"step_number": '"1"', "workflow_total_steps": "3", "name": unique("c"), "allow_insecure_tls": text}
    shown = await send(client, fields)
    assert shown["workflow_steps"]["allow_insecure_tls"] is is_true
    assert shown["total_steps"] == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"step_number": "one"}, "step_number"), ({"step_number": "1.0"}, "step_number"), ({"step_number": "１"}, "step_number"),
        ({"step_number": "99999999999999999999"}, "step_number"), ({"trigger_workflow": "yes"}, "trigger_workflow"),
        ({"allow_insecure_tls": "2"}, "allow_insecure_tls"), ({"configuration_file": "apiVersion: v1"}, "configuration_file"),
        ({"icon": "nowhere.png"}, "icon"), ({"ingress_url": "https://user:secret@host"}, "ingress_url"),
        ({"ingress_url": "http://169.254.169.254/"}, "ingress_url"), ({"ingress_url": "javascript:alert(1)"}, "ingress_url"),
        ({"ingress_url": "https://[::1"}, "ingress_url"), ({"ingress_url": "https://host:99999"}, "ingress_url"),
    ],
)  # fmt: skip
async def test_faults_of_a_form(client: Client, fields: dict[str, str], param: str) -> None:
    problem = await send(client, {"step_number": "1", "workflow_total_steps": "3", **fields}, status=422)
    assert problem["code"] == "validation_failed"
    assert [error["param"] for error in problem["errors"]] == [param]
    assert "secret" not in str(problem)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "kubeconfig_empty"), (b"\x00\x01", "kubeconfig_binary"), (b"a: [", "kubeconfig_not_yaml"),
        (b"a: &x [1]\nb: *x", "kubeconfig_aliases"), (b"--- {}\n--- {}", "kubeconfig_several_documents"),
        (b"!!python/object/apply:os.system ['x']", "kubeconfig_tags"),
        (as_yaml(kubeconfig(user={"token": None, "exec": {"command": "sh"}})), "kubeconfig_exec"),
        (as_yaml(kubeconfig(cluster={"certificate-authority": "/etc/passwd"})), "kubeconfig_file_reference"),
    ],
)  # fmt: skip
async def test_kubeconfigs_that_are_refused(client: Client, content: bytes, code: str) -> None:
    fields = {"step_number": "1", "workflow_total_steps": "3", "name": unique("c"), "trigger_workflow": "true"}
    problem = await send(client, fields, content, 422)
    assert problem["code"] == code
    assert "workflow" not in problem  # nothing is stored


async def test_sizes_and_parts_are_bounded(client: Client) -> None:
    fields = {"step_number": "1", "workflow_total_steps": "3"}
    big = await send(client, fields, b"#" * (256 * 1024 + 1), 413)
    assert big["code"] == "body_too_large"
    parts = {**fields, **{f"x{count}": "1" for count in range(19)}}
    assert (await send(client, parts, status=413))["code"] == "body_too_large"
    twice = await client.http.post(CLUSTER, files=[("name", (None, b"a")), ("name", (None, b"b"))])
    assert (twice.status_code, twice.json()["code"]) == (400, "invalid_request")
    other = await client.http.post(CLUSTER, files={"passwd": ("x", b"y"), **{k: (None, v) for k, v in fields.items()}})
    assert (other.status_code, other.json()["code"]) == (422, "unknown_field")


async def test_names_of_clusters_are_their_own_while_live(client: Client) -> None:
    name = unique("cluster")
    fields = {"step_number": "1", "workflow_total_steps": "3", "name": name, "trigger_workflow": "true"}
    first = await send(client, fields, YAML)
    second = await client.http.post(CLUSTER, data=fields, files={"configuration_file": ("k", YAML)})
    ended = await client.ended(first)
    if second.status_code == 409:  # while the first was being registered
        assert second.json()["code"] == "name_taken"
        assert second.json()["workflow"]["workflow_steps"]["configuration_file"]["size"] == len(YAML)
    assert ended["status"] == "failed"
    cluster = await client.get(f"/clusters/{ended['job']['resource']['id']}")
    assert cluster["state"] == "error"
    again = await send(client, {**fields, "name": name}, YAML)  # failed ones free theirs
    assert again["job"]["id"] != first["job"]["id"]
    await client.ended(again)


async def test_a_yes_to_an_unverified_server_that_was_withdrawn_is_missing(client: Client) -> None:
    server: dict[str, Any] = {"server": "https://127.0.0.1:1", "certificate-authority-data": None}
    content = as_yaml(kubeconfig(cluster={**server, "insecure-skip-tls-verify": True}))
    fields = {"step_number": "1", "workflow_total_steps": "3", "name": unique("c")}
    refused = await send(client, fields, content, 422)
    assert [(one["param"], one["code"]) for one in refused["errors"]] == [("configuration_file", "kubeconfig_insecure")]
    draft = await send(client, {**fields, "allow_insecure_tls": "true"}, content)
    assert draft["missing"] == []
    ids: Json = {"workflow_id": draft["workflow_id"], "step_number": 1}
    for withdrawn in (False, None):
        answer = await client.post(CLUSTER, {**ids, "allow_insecure_tls": withdrawn})
        [missing] = answer["missing"]
        assert (missing["field"], missing["step"], missing["code"]) == ("configuration_file", 1, "inconsistent")
        problem = await client.refused(CLUSTER, {**ids, "trigger_workflow": True}, 422, "missing_fields")
        assert problem["workflow"]["missing"] == [missing]
    assert (await client.post(CLUSTER, {**ids, "allow_insecure_tls": True}))["missing"] == []
    await client.post(CLUSTER, {**ids, "allow_insecure_tls": False})
    assert (await send(client, {"workflow_id": draft["workflow_id"], "step_number": "1"}, YAML))["missing"] == []


async def test_a_cluster_that_was_deleted_is_not_brought_back_by_a_retry(client: Client) -> None:
    fields = {"step_number": "1", "workflow_total_steps": "3", "name": unique("c"), "trigger_workflow": "true"}
    failed = await client.ended(await send(client, fields, YAML))
    assert failed["status"] == "failed"
    await client.delete(f"/clusters/{failed['job']['resource']['id']}")
    for path in (f"/workflows/{failed['workflow_id']}/retry", f"/jobs/{failed['job']['id']}/retry"):
        problem = await client.refused(path, None, 409, "not_retryable")
        assert problem["detail"] == "The cluster has been deleted since."
    assert await client.get(f"/workflows/{failed['workflow_id']}") == failed


async def test_the_alias_of_the_list(client: Client) -> None:
    pages = [await client.get(path) for path in ("/clusters/clusters", "/clusters")]
    for page in pages:
        for cluster in page["data"]:
            cluster.pop("observed_at")  # this machine is looked at all the time
    assert pages[0] == pages[1]
