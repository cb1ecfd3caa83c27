"""The nouns: lists, one thing, changes, names in place of ids."""

from typing import Any
from uuid import uuid4

import pytest
import yaml

from stepway.client import Client
from tests.stepway.cli.conftest import Run, Service

NOUNS = (
    "workflows",
    "jobs",
    "models",
    "clusters",
    "endpoints",
    "templates",
    "credentials",
    "projects",
    "keys",
    "users",
)


@pytest.mark.parametrize("noun", NOUNS)
def test_every_list_is_a_table_and_json(run: Run, endpoint: dict[str, Any], noun: str) -> None:
    assert run(noun, "list").code == 0
    result = run(noun, "list", "--limit", "3", "-o", "json")
    assert result.code == 0, result.err
    assert isinstance(result.json, list)
    if noun != "credentials":
        assert result.json


@pytest.mark.parametrize("noun", [one for one in NOUNS if one != "credentials"])
def test_every_item_can_be_shown_by_its_id(run: Run, endpoint: dict[str, Any], noun: str) -> None:
    item = run(noun, "list", "-o", "json").json[0]
    found = item.get("id") or item["workflow_id"]
    assert run("-o", "yaml", noun, "show", found).code == 0
    assert yaml.safe_load(run(noun, "show", found, "-o", "yaml").out) == run(noun, "show", found, "-o", "json").json
    assert found in run(noun, "show", found).out


def test_names_do_for_ids(run: Run, endpoint: dict[str, Any], model: dict[str, Any]) -> None:
    assert run("models", "show", "SmolLM2", "-o", "json").json["id"] == model["id"]
    assert run("models", "show", "smollm2", "-o", "json").json["id"] == model["id"]
    assert run("endpoints", "show", "smol-chat", "-o", "json").json["id"] == endpoint["id"]
    assert run("clusters", "show", "this machine", "-o", "json").json["kind"] == "local"


def test_a_name_that_nothing_has(run: Run, model: dict[str, Any]) -> None:
    result = run("models", "show", "smol")
    assert result.code == 1
    assert "No model is called 'smol'" in result.err
    assert "SmolLM2" in result.err
    missing = run("models", "show", str(uuid4()))
    assert missing.code == 1
    assert "not_found" in missing.err


def test_a_name_that_several_have(run: Run) -> None:
    ids = {run("keys", "create", "twin", "-o", "json").json["id"] for _ in range(2)}
    result = run("keys", "show", "twin")
    assert result.code == 2
    assert all(one in result.err for one in ids)
    for one in ids:
        assert run("keys", "revoke", one, "--yes").code == 0


def test_filters_order_and_search(run: Run, model: dict[str, Any]) -> None:
    assert [one["id"] for one in run("models", "list", "-f", "state=active", "-s", "smol", "-o", "json").json] == [
        model["id"]
    ]
    assert run("models", "list", "-f", "state=failed", "-s", "smollm2", "-o", "json").json == []
    names = [one["name"] for one in run("templates", "list", "--order-by", "-name", "-o", "json").json]
    assert names == sorted(names, reverse=True)
    assert run("models", "list", "-f", "state").code == 2
    refused = run("models", "list", "--order-by", "shoe size")
    assert refused.code == 1
    assert "order_by" in refused.err


def test_templates(run: Run) -> None:
    made = run("templates", "create", "Mine", "--set", "concurrent_requests=2", "--set", "ttft=50,1000", "-o", "json")
    assert made.code == 0, made.err
    assert made.json["deploy_config"] == {"concurrent_requests": 2, "ttft": [50, 1000]}
    assert run("templates", "create", "Mine", "--set", "concurrent_requests=2").code == 1
    wrong = run("templates", "create", "Other", "--set", "concurrent_requests=-2")
    assert wrong.code == 1
    assert "concurrent_requests" in wrong.err
    assert run("templates", "delete", "Mine").code == 2  # not without --yes
    assert run("templates", "delete", "Mine", "--yes").code == 0
    assert run("templates", "delete", "Chat", "--yes").code == 1  # comes with Stepway


def test_credentials_take_their_secrets_from_the_input(run: Run) -> None:
    result = run(
        "credentials",
        "create",
        "hub",
        "--type",
        "huggingface",
        "-o",
        "json",
        stdin="hf_abcdefghijklmnopqrstuvwxyz1234\n",
    )
    assert result.code == 0, result.err
    assert result.json["secrets"] == ["token"]
    assert "hf_abc" not in result.out + result.err
    assert "hf_abc" not in run("credentials", "show", "hub").out
    by_option = run("credentials", "create", "b", "--type", "huggingface", "--set", "token=hf_x")
    assert by_option.code == 2
    assert "hf_x" not in by_option.err
    unknown = run("credentials", "create", "b", "--type", "telepathy")
    assert unknown.code == 2
    assert "huggingface" in unknown.err
    assert "huggingface" in run("credentials", "types").out
    assert run("credentials", "delete", "hub", "--yes").code == 0


def test_projects_and_members(run: Run) -> None:
    project = run("projects", "create", "Lab", "--description", "d", "-o", "json").json
    assert run("users", "create", "ada", "--display-name", "Ada", "-o", "json").json["role"] == "member"
    assert run("projects", "members", "add", "Lab", "ada", "--role", "viewer", "-o", "json").json["role"] == "viewer"
    assert "ada" in run("projects", "members", "list", project["id"]).out
    assert run("projects", "members", "add", "Lab", "ada", "--role", "king").code == 1
    assert run("projects", "members", "remove", "Lab", "ada").code == 0
    assert "ada" not in run("projects", "members", "list", "Lab").out
    assert run("projects", "delete", "Lab", "--yes").code == 0
    assert run("users", "delete", "ada", "--yes").code == 0


def test_users_and_their_keys(run: Run, service: Service) -> None:
    run("users", "create", "bob", "--role", "viewer")
    made = run("keys", "create", "bobs", "--user", "bob", "--expires-in-days", "3", "-o", "json")
    assert made.code == 0, made.err
    key = made.json["key"]
    with Client(service.url, key) as bob:
        assert bob.get("/me")["name"] == "bob"
    assert key not in run("keys", "show", "bobs").out
    assert run("users", "change", "bob", "--role", "member", "-o", "json").json["role"] == "member"
    assert run("users", "change", "bob", "--disable", "-o", "json").json["disabled"] is True
    assert run("users", "change", "bob").code == 2
    assert run("users", "delete", "bob", "--yes").code == 0


def test_a_role_that_may_not(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("users", "create", "eve", "--role", "viewer")
    monkeypatch.setenv("STEPWAY_KEY", run("keys", "create", "eves", "--user", "eve", "-o", "json").json["key"])
    result = run("users", "create", "mallory")
    assert result.code == 1
    assert "forbidden" in result.err


def test_audit(run: Run) -> None:
    run("templates", "create", "Audited", "--set", "concurrent_requests=1")
    entries = run("audit", "--action", "template.create", "-n", "5", "-o", "json").json
    assert entries[0]["details"]["name"] == "Audited" if "name" in entries[0]["details"] else entries[0]["resource_id"]
    assert "template.create" in run("audit", "--user", "admin").out
    run("templates", "delete", "Audited", "--yes")


def test_scans_and_overrides(run: Run, model: dict[str, Any]) -> None:
    scanned = run("models", "scan", "SmolLM2", "-o", "json")
    assert scanned.code == 0, scanned.err
    assert scanned.json["status"] == "safe"
    assert "safe" in run("models", "scan", "SmolLM2").out
    assert len(run("models", "scans", "SmolLM2", "-o", "json").json) >= 3
    made = run("models", "override", "SmolLM2", "--reason", "It is only a test", "--yes", "-o", "json")
    assert made.code == 0, made.err
    assert "only a test" in run("models", "overrides", "SmolLM2").out
    assert run("models", "revoke-override", "SmolLM2", made.json["id"]).code == 0
    assert run("models", "override", "SmolLM2").code == 2  # without a reason
    assert run("models", "delete", model["id"][:-1] + "x", "--yes").code == 1


def test_a_model_that_is_used_stays(run: Run, endpoint: dict[str, Any]) -> None:
    result = run("models", "delete", "SmolLM2", "--yes")
    assert result.code == 1
    assert "Smol chat" in result.err
    assert "in_use" in result.err
