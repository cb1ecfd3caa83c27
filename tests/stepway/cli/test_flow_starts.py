"""What starts flows by themselves, and the files that they are given, by the command line on a real server."""

from pathlib import Path

import pytest

from stepway.client import Client
from tests.stepway.cli.conftest import Run
from tests.stepway.cli.flows import measure


@pytest.fixture
def started(run: Run, tmp_path: Path) -> str:
    """A flow that measures a text, by name."""
    assert run("flows", "apply", str(measure(tmp_path, "started by itself"))).code == 0
    return "started by itself"


def test_schedules(run: Run, started: str) -> None:
    def schedules(*arguments: str) -> list[str]:
        return ["flows", "schedules", *arguments]

    times = ["--cron", "30 7 * * 1-5", "--timezone", "Europe/Berlin"]
    made = run(*schedules("create", started, *times, "-i", "text=12", "-i", "least=1", "-o", "json"))
    assert made.code == 0, made.err
    schedule = made.json["id"]
    assert (made.json["input"], made.json["enabled"]) == ({"text": "12", "least": 1}, True)
    assert made.json["next_at"] is not None
    assert schedule in run(*schedules("list", started)).out
    paused = run(*schedules("pause", started, schedule, "-o", "json")).json
    assert (paused["enabled"], paused["next_at"], paused["cron"]) == (False, None, "30 7 * * 1-5")
    resumed = run(*schedules("resume", started, schedule, "-o", "json")).json
    assert {name: resumed[name] for name in ("enabled", "cron", "timezone", "input", "misfire")} == {
        name: made.json[name] for name in ("enabled", "cron", "timezone", "input", "misfire")
    }
    fired = run(*schedules("fire", started, schedule, "-o", "json"))
    watched = run("flows", "watch", fired.json["execution_id"], "-o", "json").json
    assert (watched["status"], watched["output"]) == ("COMPLETED", {"characters": 2})
    assert run(*schedules("create", started, "--cron", "at noon", "-i", "text=x")).code == 1
    assert run(*schedules("create", started, *times, "-i", "txt=x")).code == 2
    assert run(*schedules("show", started, "the first one")).code == 2
    assert run(*schedules("delete", started, schedule)).code == 2  # nobody was asked
    assert run(*schedules("delete", started, schedule, "--yes")).code == 0
    assert run(*schedules("list", started, "-o", "json")).json == []


@pytest.mark.parametrize("scheme", ["standard", "github"])
def test_triggers(run: Run, client: Client, started: str, tmp_path: Path, scheme: str) -> None:
    def triggers(*arguments: str) -> list[str]:
        return ["flows", "triggers", *arguments]

    made = run(*triggers("create", started, "--scheme", scheme, "--map", "text=commit.message", "-o", "json"))
    assert made.code == 0, made.err
    trigger, secret = made.json["id"], made.json["secret"]
    assert made.json["url"].startswith(f"{client.url}/flow/triggers/tr-")
    listed = run(*triggers("list", started)).out + run(*triggers("show", started, trigger)).out
    assert trigger in listed
    assert secret not in listed
    kept, other = tmp_path / "secret", tmp_path / "other"
    kept.write_text(f"{secret}\n")
    other.write_text("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    data = '{"commit": {"message": "é!"}}'

    def fired(file: Path) -> int:
        return run(*triggers("fire", started, trigger, data, "--secret-file", str(file))).code

    sent = run(*triggers("fire", started, trigger, data, "--secret-file", str(kept), "-o", "json"))
    assert sent.code == 0, sent.err
    watched = run("flows", "watch", sent.json["execution_id"], "-o", "json").json
    assert (watched["status"], watched["output"], watched["trigger"]) == ("COMPLETED", {"characters": 2}, "webhook")
    assert fired(other) == 1
    assert run(*triggers("pause", started, trigger, "-o", "json")).json["enabled"] is False
    assert fired(kept) == 1
    assert run(*triggers("resume", started, trigger, "-o", "json")).json["mapping"] == {"text": "commit.message"}
    assert fired(kept) == 0
    assert run(*triggers("delete", started, trigger, "--yes")).code == 0
    assert run(*triggers("show", started, trigger)).code == 1


def test_files(run: Run, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    content = bytes(range(256)) * 5000
    file, second = tmp_path / "one of mine.bin", tmp_path / "two of mine.bin"
    file.write_bytes(content)
    second.write_bytes(b"two")
    made = run("flows", "files", "upload", str(file), str(second), "--project", "default", "-o", "json")
    assert made.code == 0, made.err
    first = made.json[0]["artifact_id"]
    assert [one["name"] for one in made.json] == [file.name, second.name]
    listed = run("flows", "files", "list", "--search", "of mine", "-o", "json").json
    assert [one["name"] for one in listed] == [second.name, file.name]
    assert run("flows", "files", "show", first, "-o", "json").json["sha256"] == made.json[0]["sha256"]
    assert run("flows", "files", "download", file.name).code == 0
    assert (folder / file.name).read_bytes() == content
    assert run("flows", "files", "download", first).code == 2  # it is there already
    assert run("flows", "files", "download", first, "--to", "copy", "--force").code == 0
    assert sorted(one.name for one in folder.iterdir()) == ["copy", file.name]
    for ref in (first, second.name):
        assert run("flows", "files", "delete", ref, "--yes").code == 0
    assert run("flows", "files", "show", first).code == 1
    assert run("flows", "files", "upload", str(tmp_path / "nothing")).code == 2
