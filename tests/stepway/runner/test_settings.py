"""Settings: one list for flags, environment and Config; the nearer place wins; nothing secret is told."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from stepway.runner import settings
from stepway.runner.config import Config
from stepway.runner.server import WorkflowServer
from stepway.runner.settings import SETTINGS, SettingError
from stepway.runner.store import Retention


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for one in SETTINGS:
        monkeypatch.delenv(one.variable, raising=False)
    settings.remember({})
    yield
    settings.remember({})


def test_every_field_can_be_set() -> None:
    own = {one.name for one in fields(Config)} - {"retention"}
    kept = {f"retention.{one.name}" for one in fields(Retention)}
    assert {one.field for one in SETTINGS} == own | kept
    assert len({one.variable for one in SETTINGS}) == len({one.flag for one in SETTINGS}) == len(SETTINGS)


def test_without_anything_said_the_usual_holds() -> None:
    assert settings.config() == Config()


def test_flags_beat_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKFLOWS_PY_SERVER_PORT", "9001")
    monkeypatch.setenv("WORKFLOWS_PY_SERVER_HOST", "::1")
    settings.remember(settings.said({"port": "9002", "keep_number": "7"}))
    assert (settings.config().host, settings.config().port) == ("::1", 9002)
    assert settings.config().retention == Retention(number=7, events=10_000)


def test_a_configuration_of_the_file_beats_the_environment_but_not_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_RUNNER_DRAIN", "9")
    settings.remember(settings.said({"max_body": "2k"}))
    server = WorkflowServer(Config(drain=2))
    assert (server.config.drain, server.config.max_body) == (2, 2048)
    assert (WorkflowServer().config.drain, WorkflowServer().config.max_body) == (9, 2048)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("max_body", "10m", 10 << 20), ("max_body", "1GiB", 1 << 30), ("max_body", "7", 7), ("max_body", "500 KB", 512_000),
        ("drain", "1.5", 1.5), ("drain", "2m", 120.0), ("max_run_time", "2h", 7200.0), ("keep_age", "7d", 604800.0),
        ("idle_release", "0", 0.0), ("host", "[::1]", "::1"), ("insecure", "true", True),
        ("data_dir", "x/y", Path("x/y")), ("platform", "https://a.example/", "https://a.example"),
        ("allowed_origins", "https://a.example, http://b:8000/", ("https://a.example", "http://b:8000")),
    ],
)  # fmt: skip
def test_values_are_read(name: str, text: str, expected: object) -> None:
    one = next(one for one in SETTINGS if one.name == name)
    assert settings.said({name: text}) == {one.field: expected}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "many"), ("port", "65536"), ("port", "-1"), ("port", ""), ("drain", "0"), ("drain", "soon"), ("drain", "nan"),
        ("max_body", "0"), ("max_body", "-5"), ("max_body", "ten"), ("host", "a b"), ("host", "http://x"),
        ("database", "mysql://x"), ("concurrent_runs", "0"), ("platform", "ftp://x"), ("platform", "https://u:p@x"),
        ("insecure", "perhaps"), ("name", "a\nb"), ("allowed_origins", "example.com"),
    ],
)  # fmt: skip
def test_a_bad_value_is_one_line_that_names_its_flag(name: str, text: str) -> None:
    flag = next(one.flag for one in SETTINGS if one.name == name)
    with pytest.raises(SettingError, match=f"^{flag} takes [^\n]+$"):
        settings.said({name: text})


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKFLOWS_PY_SERVER_PORT", "many")
    with pytest.raises(SettingError, match=r"^WORKFLOWS_PY_SERVER_PORT takes a whole number from 0 to 65535"):
        settings.environment()


def test_a_secret_is_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError) as refused:
        settings.said({"database": "mysql://me:hunter2@db/x"})
    assert "hunter2" not in str(refused.value)
    settings.remember(settings.said({"database": "postgresql://me:hunter2@db/x", "key": "sk-hunter2"}))
    assert "hunter2" not in repr(settings.config())


def test_a_platform_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_URL", "http://a.example")  # the command line's own, too
    assert not settings.config().asks_keys
    settings.remember(settings.said({"platform": "http://a.example"}))
    with pytest.raises(SettingError, match="STEPWAY_API_KEY"):
        settings.config()
    monkeypatch.setenv("STEPWAY_API_KEY", "k")
    assert settings.config().asks_keys


def test_runs_are_kept_in_one_place() -> None:
    settings.remember(settings.said({"database": "postgresql://db/x", "data_dir": "d"}))
    with pytest.raises(SettingError, match="one place"):
        settings.config()


def test_a_flag_for_one_place_replaces_the_other_place_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_RUNNER_DATABASE", "postgresql://db/x")
    settings.remember(settings.said({"data_dir": "d"}))
    assert (settings.config().database, settings.config().data_dir) == (None, Path("d"))
