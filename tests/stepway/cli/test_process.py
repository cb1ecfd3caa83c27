"""The command as a process: completion, signals, closed pipes, and no traceback whatever happens."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import Fault, FileServer
from tests.stepway.cli.conftest import ICON, Run, Service

STEPWAY = [sys.executable, "-m", "stepway"]


@pytest.fixture
def environment(home: Path, service: Service) -> dict[str, str]:
    return {**os.environ, "STEPWAY_URL": service.url, "STEPWAY_KEY": service.key}


def test_completion_is_printed_and_works(environment: dict[str, str], tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("stepway")
    shown = subprocess.run(
        ["bash", "-c", f"{program} --show-completion; exit $?"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "_STEPWAY_COMPLETE" in shown.stdout
    asked = {**environment, "_STEPWAY_COMPLETE": "complete_bash", "COMP_WORDS": "stepway mod", "COMP_CWORD": "1"}
    completed = subprocess.run([str(program)], env=asked, capture_output=True, text=True, check=False)
    assert "models" in completed.stdout.split()


def test_the_version_and_the_help() -> None:
    version = subprocess.run([*STEPWAY, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("stepway ")
    helped = subprocess.run([*STEPWAY, "endpoints", "--help"], capture_output=True, text=True, check=True)
    assert "add-worker" in helped.stdout


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["models", "frobnicate"], ["models", "list", "--limit", "x"], ["-o", "xml", "models", "list"]],
)
def test_usage_errors_end_with_2(arguments: list[str], environment: dict[str, str]) -> None:
    ended = subprocess.run([*STEPWAY, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_the_client_commands_do_not_load_the_server() -> None:
    code = "import stepway.cli.main, sys; print([m for m in sys.modules if m.split('.')[0] in ('services', 'shared')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_a_closed_pipe_is_no_fault(environment: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        ended = subprocess.run(
            [*STEPWAY, "templates", "list"], env=environment, stdout=closed, stderr=subprocess.PIPE, check=False
        )
    assert b"Traceback" not in ended.stderr
    assert ended.returncode == 1


def test_ctrl_c_ends_a_watch_with_130_and_leaves_the_job(environment: dict[str, str], run: Run) -> None:
    with FileServer() as slow:
        slow.fail(Fault("model.gguf", times=99, pause_after=1000, method="GET"))
        url = slow.add("/model.gguf", bytes(200_000))
        command = [*STEPWAY, "wizard", "run", "local_model_onboarding", "--no-input", "--set", "modality=llm", "--set",
                   "provider_type=url", "--set", f"icon={ICON}", "--set", "name=Interrupted", "--set", f"uri={url}"]  # fmt: skip
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stderr is not None
            seen = next(line for line in watching.stderr if "Download" in line)
            assert "running" in seen
            assert slow.paused.wait(30)
            watching.send_signal(signal.SIGINT)
            assert watching.wait(10) == 130
            assert "Traceback" not in watching.stderr.read()
        jobs = run("jobs", "list", "-f", "state=running", "-o", "json").json
        assert len(jobs) == 1
        assert run("jobs", "cancel", jobs[0]["id"]).code == 0


def test_a_data_directory_in_use_is_one_sentence(service: Service) -> None:
    command = [*STEPWAY, "up", "--data-dir", str(service.key_file.parent), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert f"process {service.pid}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "STEPWAY_PORT": "many"}
    command = [*STEPWAY, "up", "--data-dir", str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    assert "port" in ended.stderr


def test_a_backup_of_the_running_server_is_restored_elsewhere(service: Service, tmp_path: Path) -> None:
    archive, data = tmp_path / "backup.tar", tmp_path / "data"
    running = ["--data-dir", str(service.key_file.parent)]
    made = subprocess.run(
        [*STEPWAY, "backup", str(archive), *running], capture_output=True, text=True, timeout=90, check=False
    )
    assert made.returncode == 0, made.stderr
    command = [*STEPWAY, "restore", str(archive), "--data-dir", str(data)]
    restored = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert restored.returncode == 0, restored.stderr
    assert (data / "admin.key").read_text() == service.key_file.read_text()
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    assert "Traceback" not in again.stderr


def test_the_encryption_key_is_rotated_while_the_server_runs(service: Service, run: Run) -> None:
    made = run("credentials", "create", "rotated", "--type", "huggingface", stdin="hf_abcdefghijklmnopqrstuvwxyz1234\n")
    assert made.code == 0, made.err
    command = [*STEPWAY, "keys", "rotate-encryption", "--data-dir", str(service.key_file.parent)]
    rotated = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert rotated.returncode == 0, rotated.stderr
    assert "under the new key" in rotated.stdout + rotated.stderr
    assert run("credentials", "delete", "rotated", "--yes").code == 0


def test_nothing_to_back_up_is_one_sentence(tmp_path: Path) -> None:
    command = [*STEPWAY, "backup", str(tmp_path / "x.tar"), "--data-dir", str(tmp_path / "nothing")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "nothing to back up" in ended.stderr
    assert not (tmp_path / "x.tar").exists()


def test_logs_are_followed_until_ctrl_c(environment: dict[str, str], endpoint: dict[str, object]) -> None:
    command = [*STEPWAY, "endpoints", "logs", str(endpoint["id"]), "--follow", "--tail", "1"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as following:
        assert following.stdout is not None
        assert following.stdout.readline().strip()
        assert following.poll() is None
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130


def test_a_terminal_shows_the_steps_of_a_job_as_they_go(environment: dict[str, str], model: dict[str, object]) -> None:
    main, terminal = os.openpty()
    command = [*STEPWAY, "models", "scan", str(model["id"]), "-o", "json"]
    with subprocess.Popen(
        command, env={**environment, "TERM": "xterm", "COLUMNS": "100"}, stdout=subprocess.PIPE, stderr=terminal
    ) as scanning:
        os.close(terminal)
        shown = b""
        while chunk := _read(main):
            shown += chunk
        assert scanning.wait(30) == 0
        assert scanning.stdout is not None
        assert json.loads(scanning.stdout.read())["status"] == "safe"
    os.close(main)
    text = shown.decode()
    assert "scan_model succeeded" in text
    assert "Scan the files" in text
    assert "\x1b[" in text  # drawn over, not written below each other


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other side has been closed: the end, on Linux
        return b""
