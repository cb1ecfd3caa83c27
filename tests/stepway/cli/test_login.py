"""Logging in and out, and which server and key a command uses."""

import stat
from pathlib import Path

import pytest

from tests.stepway.cli.conftest import Run, Service


def test_login_keeps_url_and_key_for_its_owner_alone(bare: Run, service: Service, home: Path) -> None:
    result = bare("login", "--url", service.url + "/", "--key-file", str(service.key_file))
    assert result.code == 0, result.err
    assert "as admin (admin)" in result.err
    kept = home / "config" / "stepway" / "config.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    shown = bare("whoami", "-o", "json")
    assert (shown.json["url"], shown.json["name"]) == (service.url, "admin")
    assert service.key not in result.out + result.err + shown.out + shown.err
    assert bare("logout").code == 0
    assert not kept.exists()
    assert bare("whoami").code == 2


def test_the_key_may_be_piped_in(bare: Run, service: Service) -> None:
    assert bare("login", "--url", service.url, stdin=f"{service.key}\n").code == 0
    assert bare("whoami").code == 0


def test_a_wrong_key_is_not_kept(bare: Run, service: Service, home: Path) -> None:
    result = bare("login", "--url", service.url, stdin="sk_wrong\n")
    assert result.code == 1
    assert "unauthenticated" in result.err
    assert f"{service.url}/docs/errors#unauthenticated" in result.err
    assert not (home / "config").exists()


@pytest.mark.parametrize("typed", ["", "two words", "schlüssel"])
def test_what_is_no_key(bare: Run, service: Service, typed: str) -> None:
    assert bare("login", "--url", service.url, stdin=f"{typed}\n").code == 2


def test_a_stored_key_goes_to_its_own_server_only(bare: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bare("login", "--url", service.url, stdin=f"{service.key}\n").code == 0
    monkeypatch.setenv("STEPWAY_URL", "http://127.0.0.1:9")
    result = bare("models", "list")
    assert result.code == 2
    assert "no key for http://127.0.0.1:9" in result.err
    monkeypatch.setenv("STEPWAY_URL", service.url)
    assert bare("models", "list").code == 0


def test_the_option_wins_over_the_environment(run: Run) -> None:
    result = run("--url", "http://user:pw@127.0.0.1:9", "models", "list")
    assert result.code == 2
    assert "must not hold a user name or a password" in result.err


def test_a_broken_config_is_told(bare: Run, home: Path) -> None:
    path = home / "config" / "stepway" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    result = bare("models", "list")
    assert result.code == 2
    assert "log in again" in result.err


def test_nobody_at_the_url(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STEPWAY_KEY", "k")
    monkeypatch.setattr("stepway.client.PATIENCE", 0.0)
    result = bare("login", stdin="k\n")
    assert result.code == 3
    assert "No Stepway answers at http://127.0.0.1:9" not in result.out
    assert "Traceback" not in result.err
