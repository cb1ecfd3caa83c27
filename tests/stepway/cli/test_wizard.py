"""Wizards from the command line: asked step by step, from files, by options; the seed's steps as they stand."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from stepway.client import Client
from tests.stepway.cli.conftest import ICON, Result, Run, Service

KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://cluster.example.com:6443"}}]
users: [{name: u, user: {token: abcdefghijklmnop}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
"""
DISK = ("--set", "modality=llm", "--set", "provider_type=disk", "--set", f"icon={ICON}")


def steps_file(folder: Path, bodies: list[dict[str, Any]]) -> str:
    path = folder / "steps.json"
    path.write_text(json.dumps(bodies))
    return str(path)


def test_all_wizards_are_listed_and_shown(run: Run) -> None:
    types = [one["type"] for one in run("wizard", "list", "-o", "json").json]
    assert len(types) == 6
    for one in types:
        shown = run("wizard", "show", one)
        assert shown.code == 0, shown.err
        assert run("wizard", "show", one, "-o", "json").json["type"] == one
    assert "a file" in run("wizard", "show", "cluster_onboarding").out
    assert run("wizard", "show", "tea_making").code == 1


# ---- from a file


def test_the_seeds_cloud_model_from_a_file(run: Run, client: Client, tmp_path: Path) -> None:
    providers = {one["name"].lower(): one["id"] for one in client.items("/models/providers?type=cloud_model")}
    bodies: list[dict[str, Any]] = [
        {"workflow_total_steps": 6, "step_number": 1, "provider_type": "cloud_model"},
        {"workflow_id": "27ddc5c2-fbc1-40e9-bfc8-c46f9d75542f", "step_number": 2, "provider_id": providers["openai"]},
        {"workflow_id": "27ddc5c2-fbc1-40e9-bfc8-c46f9d75542f", "step_number": 3, "cloud_model_id": None},
        {
            "workflow_id": "27ddc5c2-fbc1-40e9-bfc8-c46f9d75542f", "step_number": 4, "name": "abc",
            "tags": [{"name": "Tag1", "color": "#000000"}, {"name": "Tag2", "color": "#000000"}], "modality": "llm",
            "uri": "openai/gpt4", "trigger_workflow": True,
        },
    ]  # fmt: skip
    result = run("wizard", "run", "cloud_model_onboarding", "--file", steps_file(tmp_path, bodies), "-o", "json")
    assert result.code == 0, result.err
    assert result.json["status"] == "completed"
    assert result.json["result"]["name"] == "abc"
    assert run("models", "show", "abc", "-o", "json").json["uri"] == "openai/gpt4"
    assert run("models", "delete", "abc", "--yes").code == 0


def test_the_seeds_add_worker_steps_from_stdin(run: Run, endpoint: dict[str, Any]) -> None:
    bodies = [
        {"workflow_total_steps": 5, "step_number": 1, "trigger_workflow": False, "endpoint_id": endpoint["id"],
         "additional_concurrency": 1},
        {"workflow_id": "da939c36-3d5f-434f-9b61-19095024e4e7", "step_number": 3, "trigger_workflow": True},
    ]  # fmt: skip
    draft = run(
        "wizard", "run", "add_worker_to_endpoint", "-F", "-", "--no-trigger", "-o", "json", stdin=json.dumps(bodies)
    )
    assert draft.code == 0, draft.err
    assert (draft.json["status"], draft.json["job"], draft.json["current_step"]) == ("in_progress", None, 3)
    assert run("workflows", "delete", draft.json["workflow_id"], "--yes").code == 0


def test_the_seeds_deployment_from_a_file(run: Run, client: Client, model: dict[str, Any], tmp_path: Path) -> None:
    project, template = (
        next(client.items("/projects", search="default")),
        next(client.items("/templates", search="chat")),
    )
    cluster = next(client.items("/clusters"))
    draft = {"workflow_id": "0d9bd0d9-8f11-4a01-bda2-7bfab4735842", "trigger_workflow": False}
    config = {
        "concurrent_requests": 10, "avg_sequence_length": 100, "avg_context_length": 102,
        "per_session_tokens_per_sec": [100, 100], "ttft": [50, 1000], "e2e_latency": [100, 100],
    }  # fmt: skip
    bodies: list[dict[str, Any]] = [
        {"workflow_total_steps": 6, "step_number": 1, "trigger_workflow": False, "project_id": project["id"],
         "model_id": model["id"]},
        {**draft, "step_number": 2, "template_id": template["id"]},
        {**draft, "step_number": 3, "endpoint_name": "test endpoint", "deploy_config": config},
        {**draft, "step_number": 5, "trigger_workflow": True, "cluster_id": cluster["id"]},
    ]  # fmt: skip
    result = run("wizard", "run", "model_deployment", "--file", steps_file(tmp_path, bodies), "-o", "json")
    assert result.code == 0, result.err
    assert result.json["result"]["name"] == "test endpoint"
    assert run("endpoints", "show", "test-endpoint", "-o", "json").json["deploy_config"]["ttft"] == [50, 1000]
    assert run("endpoints", "delete", "test endpoint", "--yes").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[{"step_number": 1} // no\n]', "Comments are not accepted"),
        ("[]", "list of step bodies"),
        ("[3]", "list of step bodies"),
    ],
)
def test_files_that_hold_no_steps(run: Run, tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "steps.json"
    path.write_text(content)
    result = run("wizard", "run", "model_security_scan", "--file", str(path))
    assert result.code == 2
    assert words in result.err


def test_a_file_that_is_not_there(run: Run) -> None:
    result = run("wizard", "run", "model_security_scan", "--file", "/nowhere/steps.json")
    assert result.code == 2
    assert "/nowhere/steps.json" in result.err


# ---- by options


def test_by_options_with_names_for_ids(run: Run, model: dict[str, Any]) -> None:
    result = run(
        "wizard", "run", "model_deployment", "--no-input", "--no-trigger", "--set", "model_id=SmolLM2",
        "--set", "project_id=default", "--set", "template_id=Small test", "--set", "endpoint_name=by options",
        "--set", "deploy_config.concurrent_requests=3", "--set", "cluster_id=this machine", "-o", "json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["missing"] == []
    assert result.json["total_steps"] == 6  # a local model's variant
    fields = result.json["workflow_steps"]
    assert fields["model_id"] == model["id"]
    assert fields["deploy_config"] == {"concurrent_requests": 3}
    assert fields["cluster"]["name"] == "this machine"
    run("workflows", "delete", result.json["workflow_id"], "--yes")


def test_a_draft_is_looked_at_before_it_is_started(run: Run, model: dict[str, Any]) -> None:
    def preview(requests: int, *options: str) -> Result:
        draft = run(
            "wizard", "run", "model_deployment", "--no-input", "--no-trigger", "--set", "model_id=SmolLM2", "--set",
            "project_id=default", "--set", "template_id=Small test", "--set", "endpoint_name=looked at", "--set",
            f"deploy_config.concurrent_requests={requests}", "--set", "cluster_id=this machine", "-o", "json",
        ).json["workflow_id"]  # fmt: skip
        shown = run("workflows", "preview", draft, *options)
        assert run("workflows", "delete", draft, "--yes").code == 0
        return shown

    found = preview(1, "-o", "json")
    assert (found.code, found.json["fits"], found.json["plan"]["engine"]) == (0, True, "llama_cpp")
    assert "memory of each" in preview(1).out
    assert preview(1, "--manifests").out == ""
    large = preview(500)
    assert large.code == 1
    assert "This machine has no room" in large.err
    assert "machine" in large.out
    larger = preview(100_000)
    assert larger.code == 1
    assert "an endpoint has at most 256" in larger.err


def test_what_is_missing_is_named_and_the_draft_kept(run: Run) -> None:
    result = run("wizard", "run", "local_model_onboarding", "--no-input", "--set", "name=nothing else")
    assert result.code == 1
    assert "modality (step 1)" in result.err
    assert "uri (step 3)" in result.err
    assert "missing_fields" in result.err
    draft = result.err.split("--resume ")[1].split()[0]
    assert run("workflows", "show", draft, "-o", "json").json["workflow_steps"]["name"] == "nothing else"
    assert run("workflows", "watch", draft).code == 1  # it has no job
    assert run("workflows", "cancel", draft).code == 0
    assert run("workflows", "show", draft, "-o", "json").json["status"] == "cancelled"


@pytest.mark.parametrize(
    ("option", "words"),
    [("shoe_size=42", "no field 'shoe_size'"), ("deploy_config.speed=9", "no member 'speed'"), ("nonsense", "NAME=VALUE"),
     ("deploy_config.concurrent_requests=many", "whole number"), ("model_id=no such model", "nothing is called")],
)  # fmt: skip
def test_options_that_make_no_sense(run: Run, option: str, words: str) -> None:
    result = run("wizard", "run", "model_deployment", "--no-input", "--set", option)
    assert result.code == 2
    assert words in result.err


def test_a_job_that_fails_ends_with_4(run: Run, service: Service) -> None:
    result = run(
        "wizard", "run", "local_model_onboarding", "--no-input", *DISK, "--set", "name=Ghost",
        "--set", f"uri={service.roots}/ghost", "-o", "json",
    )  # fmt: skip
    assert result.code == 4
    assert result.json["status"] == "failed"
    assert "failed" in result.err
    assert f"stepway jobs retry {result.json['job']['id']}" in result.err
    again = run("workflows", "retry", result.json["workflow_id"])
    assert again.code == 4
    assert run("jobs", "show", result.json["job"]["id"], "-o", "json").json["attempt"] == 2


def test_detached_it_ends_at_once(run: Run, service: Service) -> None:
    name = f"Detached {uuid4().hex[:6]}"
    result = run("wizard", "run", "local_model_onboarding", "--no-input", "--detach", *DISK, "--set", f"name={name}",
                 "--set", f"uri={service.gguf}")  # fmt: skip
    assert result.code == 0
    job = result.err.split("stepway jobs watch ")[1].split()[0]
    watched = run("jobs", "watch", job, "-o", "json")
    assert watched.code == 0
    assert watched.json["state"] == "succeeded"
    assert run("models", "delete", name, "--yes").code == 0


def test_a_form_with_a_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig.yaml"
    path.write_text(KUBECONFIG)
    result = run(
        "wizard", "run", "cluster_onboarding", "--no-input", "--no-trigger", "--set", "name=Far away",
        "--set", f"configuration_file={path}", "-o", "json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.json["workflow_steps"]["configuration_file"]["name"] == "kubeconfig.yaml"
    assert "abcdefghijklmnop" not in result.out
    run("workflows", "delete", result.json["workflow_id"], "--yes")
    gone = run("wizard", "run", "cluster_onboarding", "--no-input", "--set", "configuration_file=/nowhere.yaml")
    assert gone.code == 1
    assert "/nowhere.yaml" in gone.err


# ---- asked


def test_asked_step_by_step(run: Run, model: dict[str, Any]) -> None:
    answers = ["default", "SmolLM2", "Small test", "asked", "2", "", "", "", "", "", '{"max_context": 512}', "1", "n"]
    result = run("wizard", "run", "model_deployment", "-o", "json", stdin="\n".join(answers) + "\n")
    assert result.code == 0, result.err
    assert result.json["missing"] == []
    fields = result.json["workflow_steps"]
    assert (fields["endpoint_name"], fields["deploy_config"]) == ("asked", {"concurrent_requests": 2})
    assert fields["tuning"] == {"max_context": 512}
    assert (fields["model"]["name"], fields["cluster"]["name"]) == ("SmolLM2", "this machine")
    assert "fits" in result.err
    run("workflows", "delete", result.json["workflow_id"], "--yes")


def test_asked_and_started(run: Run, model: dict[str, Any]) -> None:
    result = run("wizard", "run", "model_security_scan", "-o", "json", stdin="SmolLM2\ny\n")
    assert result.code == 0, result.err
    assert result.json["result"]["status"] == "safe"


def test_a_wrong_answer_is_asked_again(run: Run, model: dict[str, Any]) -> None:
    answers = [
        "smell", "llm", "disk", "", "SmolLM2", "/etc/passwd", "", "", "", ICON, "", "",
        "Another name", "/etc/shadow", "n",
    ]  # fmt: skip
    result = run("wizard", "run", "local_model_onboarding", stdin="\n".join(answers) + "\n")
    assert "is none of" in result.err  # smell
    assert "This is needed" in result.err  # the empty name
    assert "uri: must be below one of the folders" in result.err
    assert result.code == 2
    assert "The input ended" in result.err


def test_a_draft_is_taken_up_where_it_was(run: Run, model: dict[str, Any]) -> None:
    draft = run("wizard", "run", "model_deployment", "--no-input", "--no-trigger", "--set", "model_id=SmolLM2", "--set",
                "project_id=default", "-o", "json").json["workflow_id"]  # fmt: skip
    answers = ["", "", "Small test", "taken up", "", "", "", "", "", "", "", "1", "n"]
    result = run("wizard", "run", "model_deployment", "--resume", draft, "-o", "json", stdin="\n".join(answers) + "\n")
    assert result.code == 0, result.err
    assert result.json["workflow_id"] == draft
    assert result.json["workflow_steps"]["model_id"] == model["id"]
    assert result.json["missing"] == []
    assert run("wizard", "run", "model_deployment", "--resume", "mine").code == 2
    run("workflows", "delete", draft, "--yes")
