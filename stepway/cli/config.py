"""Which server, and with which key: the environment first, then what `stepway login` has stored."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stepway.cli.problems import Usage
from stepway.client import base_url

DEFAULT_URL = "http://127.0.0.1:8400"


@dataclass(frozen=True, slots=True)
class Login:
    url: str
    key: str | None

    def __repr__(self) -> str:
        return f"Login({self.url!r})"


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the login is kept: below XDG_CONFIG_HOME, by default ~/.config."""
    root = environment.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "stepway" / "config.json"


def stored() -> Login | None:
    """What `stepway login` has stored. `Usage` when the file cannot be used."""
    path = config_file()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Usage(f"{path} cannot be read: {error.strerror}.") from error
    try:
        kept = json.loads(text)
        return Login(base_url(kept["url"]), kept["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise Usage(f"{path} is not what `stepway login` wrote; log in again.") from error


def store(login: Login) -> Path:
    """Keeps the login in a file that only its owner may read."""
    path = config_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": login.url, "key": login.key}, file, indent=2)
    draft.replace(path)
    return path


def forget() -> bool:
    """Deletes the stored login; whether there was one."""
    path = config_file()
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def current(url: str | None = None) -> Login:
    """The login to use. A stored key goes only to the server that it was stored for."""
    given_url = url or os.environ.get("STEPWAY_URL") or None
    given_key = os.environ.get("STEPWAY_KEY") or None
    kept = stored() if given_url is None or given_key is None else None
    try:
        chosen = base_url(given_url) if given_url else kept.url if kept else DEFAULT_URL
    except ValueError as error:
        raise Usage(str(error)) from error
    if given_key is not None:
        return Login(chosen, given_key.strip())
    return Login(chosen, kept.key if kept is not None and kept.url == chosen else None)
