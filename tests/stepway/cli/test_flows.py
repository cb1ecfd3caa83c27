"""Flows from files to results: checked without a server, applied, run, watched, answered, compared, exported."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stepway.client import Client
from tests.services.flow.tasks.test_pdf import pdf
from tests.stepway.cli.conftest import Run, Service
from tests.stepway.cli.flows import ask, measure

STEPWAY = [sys.executable, "-m", "stepway"]
# A program in which nothing can be reached: every connection and look-up of a name ends it.
ALONE = """
import socket, sys
def refuse(*_given, **_options):
    print("the network was used", file=sys.stderr)
    raise SystemExit(99)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
sys.argv = ["stepway", *sys.argv[1:]]
from stepway.cli.main import main
main()
"""


def alone(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    command = [sys.executable, "-c", ALONE, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


# ---- validate


def test_files_are_validated_without_a_server_or_network(tmp_path: Path) -> None:
    good, other = measure(tmp_path, "fine"), ask(tmp_path)
    ended = alone(tmp_path, "flows", "validate", str(good), str(other))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == ""
    assert f"{good}: valid (refs)" in ended.stderr
    assert f"{other}: valid (tasks)" in ended.stderr
    reached = alone(tmp_path, "flows", "validate", str(good), "--online")
    assert reached.returncode == 2, "nobody is logged in"
    assert "stepway login" in reached.stderr


def test_every_fault_is_told_at_its_place(tmp_path: Path) -> None:
    bad = measure(tmp_path, "bad")
    bad.write_text(
        bad.read_text().replace("text.truncate", "text.trunkate").replace("output.characters", "output.chars")
    )
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: x\ntasks: [\n")
    ended = alone(tmp_path, "flows", "validate", str(bad), str(broken))
    assert ended.returncode == 1
    lines = ended.stdout.splitlines()
    assert (
        f"{bad}:tasks[1].type: There is no type of task `text.trunkate`. Did you mean `text.truncate`? [unknown_type]"
        in lines
    )
    assert sum(line.endswith("[unknown_reference]") for line in lines) == 2
    assert lines[-1].startswith(f"{broken}:line 3: This is not YAML")
    assert "4 faults in 2 of 2 files." in ended.stderr
    told = json.loads(alone(tmp_path, "flows", "validate", str(bad), "-o", "json").stdout)
    assert told[0]["valid"] is False
    assert {one["path"] for one in told[0]["faults"]} == {"tasks[1].type", "tasks[1].condition.left", "output[0].value"}


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    ended = alone(tmp_path, "flows", "validate", str(tmp_path / "nothing.yaml"))
    assert ended.returncode == 1
    assert "nothing.yaml" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_server_says_the_same(run: Run, tmp_path: Path) -> None:
    bad = measure(tmp_path, "bad")
    bad.write_text(
        bad.read_text().replace("text.truncate", "text.trunkate").replace("output.characters", "output.chars")
    )
    offline, online = run("flows", "validate", str(bad)), run("flows", "validate", "--online", str(bad))
    assert offline.code == online.code == 1
    assert offline.out == online.out


# ---- apply, show, diff, export, import, delete


def test_apply_creates_changes_and_leaves(run: Run, tmp_path: Path) -> None:
    def applied(*more: str) -> Any:
        result = run("flows", "apply", str(tmp_path / "measure.yaml"), "-o", "json", *more)
        assert result.code == 0, result.err
        [one] = result.json
        return one

    measure(tmp_path, "applied")
    assert applied("--dry-run")["result"] == "created"
    made = applied()
    assert (made["result"], made["workflow_version"]) == ("created", 1)
    again = applied("--project", "default")
    assert again == {**made, "result": "unchanged"}
    measure(tmp_path, "applied", most=7)
    assert applied("--dry-run")["result"] == "changed"
    assert applied("--dry-run", "--expected-version", "1")["workflow_version"] == 2
    assert applied()["workflow_version"] == 2
    stale = run("flows", "apply", str(tmp_path / "measure.yaml"), "--expected-version", "1")
    assert stale.code == 1
    assert "version_conflict" in stale.err

    shown = run("flows", "show", "applied")
    assert "max_characters: 7" in shown.out
    old = run("flows", "show", made["workflow_id"], "--version", "1", "--dialect", "tasks", "-o", "json").json
    assert old["definition"]["title"] == "applied"
    assert old["definition"]["tasks"][1]["inputs"]["max_characters"] == 5
    difference = run("flows", "diff", "applied").out.splitlines()
    assert "-    max_characters: 5" in difference
    assert "+    max_characters: 7" in difference
    assert run("flows", "diff", "applied", "2", "2").out == ""
    assert run("flows", "diff", "applied", "1", "-o", "json").json["to"] == 2
    assert run("flows", "diff", "applied", "3").code == 1

    assert run("flows", "delete", "applied").code == 2  # not without --yes
    assert run("flows", "delete", "applied", "--yes").code == 0
    assert run("flows", "show", "applied").code == 1


def test_a_key_of_the_project_is_enough_for_ci(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run("projects", "create", "Research").code == 0
    file = str(measure(tmp_path, "for research"))
    key = run("keys", "create", "ci", "--project", "Research", "-o", "json").json["key"]
    monkeypatch.setenv("STEPWAY_KEY", key)
    made = run("flows", "apply", file, "-o", "json")
    assert made.code == 0, made.err
    assert run("flows", "apply", file, "--project", "Research", "-o", "json").json == [
        {**made.json[0], "result": "unchanged"}
    ]
    assert run("flows", "apply", file, "--project", "default").code == 1


def test_with_one_fault_nothing_is_applied(run: Run, tmp_path: Path) -> None:
    measure(tmp_path, "half")
    (tmp_path / "zero.yaml").write_text("name: zero\ntasks: []\n")
    result = run("flows", "import", str(tmp_path))
    assert result.code == 1
    assert "zero.yaml:tasks" in result.out
    assert run("flows", "show", "half").code == 1


def test_two_files_with_one_name_are_refused(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(measure(tmp_path, "twin").read_text())
    result = run("flows", "apply", str(tmp_path))
    assert result.code == 2
    assert "twin" in result.err
    assert run("flows", "show", "twin").code == 1


def test_export_and_import_are_a_way_there_and_back(run: Run, tmp_path: Path) -> None:
    assert run("projects", "create", "Both ways").code == 0
    here = ["--project", "Both ways"]
    measure(tmp_path, "there and back")
    ask(tmp_path).write_text(ask(tmp_path).read_text().replace("Ask somebody", "Ask and export"))
    assert run("flows", "import", str(tmp_path), *here).code == 0
    out, every = tmp_path / "out", tmp_path / "all"
    assert run("flows", "export", "there and back", "Ask and export", str(out)).code == 0
    assert sorted(one.name for one in out.iterdir()) == ["ask-and-export.yaml", "there-and-back.yaml"]
    assert yaml.safe_load((out / "ask-and-export.yaml").read_text())["title"] == "Ask and export"
    written = run("flows", "export", "--all", str(every), *here, "--dialect", "refs", "-o", "json").json
    assert {one["name"] for one in written} == {"there and back", "Ask and export"}
    for folder in (out, every):
        back = run("flows", "import", str(folder), *here, "--dry-run", "-o", "json").json
        assert [one["result"] for one in back] == ["unchanged", "unchanged"]
    assert run("flows", "export", str(out)).code == 2
    assert run("flows", "export", "--all", "there and back", str(out)).code == 2


# ---- run


@pytest.fixture
def measured(run: Run, tmp_path: Path) -> str:
    """A flow that measures a text, by name."""
    assert run("flows", "apply", str(measure(tmp_path, "measured"))).code == 0
    return "measured"


def test_a_flow_is_run_and_watched(run: Run, measured: str, tmp_path: Path) -> None:
    result = run("flows", "run", measured, "-i", "text=12", "-i", "least=1", "--watch")
    assert result.code == 0, result.err
    assert result.out.split() == ["characters", "2"]
    assert "size succeeded" in result.err
    assert "cut succeeded" in result.err
    skipped = run("flows", "run", measured, "-i", "text=12", "--watch").err
    assert "- cut skipped: Its condition does not hold." in skipped.splitlines()
    assert "cut succeeded" not in skipped
    whole = run("flows", "run", measured, "-i", "text=12", "--watch", "-o", "json").json
    assert whole["status"] == "COMPLETED"
    assert whole["tasks"] == [{"ref": "size", "status": "COMPLETED"}, {"ref": "cut", "status": "SKIPPED"}]

    listed = run("flows", "executions", measured, "--status", "completed", "-o", "json").json
    assert listed[0]["execution_id"] == whole["execution_id"]
    logs = run("flows", "logs", whole["execution_id"]).out
    assert "size  Text.Size  COMPLETED" in logs
    assert "output characters: 2" in logs
    assert "reason: Its condition does not hold." in logs
    by_job = run("flows", "logs", whole["job_id"], "--task", "size", "-o", "json").json
    assert by_job["tasks"][0]["output"]["characters"] == 2
    same = run("flows", "watch", f"we-{whole['execution_id'][3:]}", "-o", "json")
    assert same.json["execution_id"] == whole["execution_id"]


def test_inputs_come_from_files_and_from_standard_input(run: Run, measured: str, tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text("text: 'yes'\nleast: 99\n")
    result = run("flows", "run", measured, "--input-file", str(file), "-i", "least=1", "--watch", "-o", "json")
    assert result.json["input"] == {"text": "yes", "least": 1}
    piped = run("flows", "run", measured, "--input-file", "-", "--watch", stdin='{"text": "abcd"}')
    assert piped.out.split() == ["characters", "4"]


def test_a_file_is_uploaded_and_read(run: Run, client: Client, tmp_path: Path) -> None:
    flow, page = tmp_path / "read.yaml", tmp_path / "page.pdf"
    flow.write_text(
        "name: read\ninput:\n  - {name: doc, type: file}\n  - {name: first, type: number}\n"
        "tasks:\n  - {ref: read, type: pdf.extract_text, input: {file: '{{input.doc}}'}}\n"
        "output:\n  - {name: text, type: text, value: '{{refs.read.output.text}}'}\n"
    )
    page.write_bytes(pdf("Sent by the command line"))
    assert run("flows", "apply", str(flow)).code == 0
    done = run("flows", "run", "read", "--file", f"doc={page}", "-i", "first=1", "--watch", "-o", "json")
    assert done.code == 0, done.err
    assert done.json["output"] == {"text": "Sent by the command line"}
    given = done.json["input"]["doc"]
    assert (given["name"], given["media_type"]) == ("page.pdf", "application/pdf")
    assert client.get("/flow/files")["data"][0]["artifact_id"] == given["artifact_id"]
    for arguments, words in ((f"first={page}", "takes a file"), ("doc=/nowhere.pdf", "is not a file")):
        refused = run("flows", "run", "read", "--file", arguments)
        assert (refused.code, words in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-i", "text=x", "-i", "leest=1"], 2, "least"),
        (["-i", "text=x", "-i", "least=many"], 2, "least"),
        (["-i", "text"], 2, "NAME=VALUE"),
        ([], 1, "Give `text`"),
        (["--input-file", "/nowhere/inputs.json"], 1, "inputs.json"),
    ],
)
def test_inputs_that_do_not_fit(run: Run, measured: str, arguments: list[str], code: int, words: str) -> None:
    result = run("flows", "run", measured, *arguments)
    assert result.code == code
    assert words in result.err


def test_an_answer_a_failure_and_a_retry(run: Run, client: Client, tmp_path: Path) -> None:
    assert run("flows", "apply", str(ask(tmp_path))).code == 0
    key = tmp_path / "key"
    key.write_text("sk-for-this-execution-only\n")
    broken = tmp_path / "broken"
    broken.write_bytes(b"sk-for-this\nexecution \xff\n")
    refused = run("flows", "run", "Ask somebody", "--provider-key-file", str(broken))
    assert refused.code == 2
    assert "sk-for" not in refused.err
    started = run("flows", "run", "Ask somebody", "--provider-key-file", str(key), "-o", "json")
    assert started.code == 0, started.err
    assert "sk-for" not in started.out + started.err
    execution = started.json["execution_id"]
    assert run("flows", "answer", execution, "approval", "yes").code == 2
    watching = subprocess.Popen(
        [*STEPWAY, "flows", "watch", execution], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with watching:
        assert watching.stderr is not None
        told = next(line for line in watching.stderr if "waits for" in line)
        assert f"stepway flows answer {execution} approval DATA" in told
        assert run("flows", "answer", execution, "approval", '{"amount": "much"}').code == 0
        assert "FAILED" in watching.stderr.read()
        assert watching.wait(30) == 1
    failed = run("flows", "logs", execution)
    assert "read  json.transform  FAILED" in failed.out
    assert "error: The expression does not work" in failed.out
    again = run("flows", "retry", execution, "--watch")
    assert again.code == 1
    job_id = run("flows", "logs", execution, "-o", "json").json["job_id"]
    assert client.get(f"/jobs/{job_id}")["attempt"] == 2


def test_an_execution_is_cancelled(run: Run, tmp_path: Path) -> None:
    assert run("flows", "apply", str(ask(tmp_path))).code == 0
    execution = run("flows", "run", "Ask somebody", "-o", "json").json["execution_id"]
    assert run("flows", "cancel", execution, "-o", "json").json["status"] == "CANCELLED"
    assert run("flows", "cancel", execution).code == 0  # it may be repeated
    assert run("flows", "watch", execution).code == 1
    assert run("flows", "logs", "ex-00000000").code == 1
    assert run("flows", "logs", "the last one").code == 2


def test_task_types(run: Run) -> None:
    assert "text.size" in run("flows", "task-types").out
    assert "characters" in run("flows", "task-types", "Text.Size").out
    assert run("flows", "task-types", "text.size", "-o", "json").json["name"] == "text.size"
    assert run("flows", "task-types", "../workflows").code == 1


def test_a_flow_list_is_a_table_and_json(run: Run, measured: str) -> None:
    assert measured in run("flows", "list").out
    assert measured in {one["name"] for one in run("flows", "list", "-s", measured, "-o", "json").json}


# ---- webhooks


def test_webhooks(run: Run, service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/hook"
    made = run("webhooks", "create", url, "--project", "default", "-e", "execution.*", "-e", "job.failed", "-o", "json")
    assert made.code == 0, made.err
    assert made.json["secret"].startswith("whsec_")
    assert "whsec_" not in run("webhooks", "show", url).out + run("webhooks", "list").out
    delivery = run("webhooks", "test", url, "-o", "json").json
    assert delivery["event"] == "webhook.test"
    assert delivery["id"] in run("webhooks", "deliveries", made.json["id"]).out
    assert run("webhooks", "redeliver", delivery["id"], "-o", "json").json["id"] == delivery["id"]
    assert run("webhooks", "redeliver", "the last one").code == 2
    assert run("webhooks", "create", url, "--project", "default", "-e", "no.such").code == 1
    assert run("webhooks", "delete", url, "--yes").code == 0
