"""Where a `Config` comes from: flags of the command line, then the environment, then what is usual.

`SETTINGS` is the one list of them: `command` makes flags of it, `config` reads the environment. A `WorkflowServer` that a
file makes without a configuration has this one; to one that it makes with its own, `over` adds what the command line said.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stepway.runner.config import Config

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SPANS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class SettingError(ValueError):
    """A value that cannot be used, in one sentence that names where it was given; never a secret's value."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One flag, its variable of the environment, and the field that it fills. `read` raises ValueError with the reason."""

    field: str  # of Config; "retention.age" of what it holds
    flag: str
    variable: str
    metavar: str
    read: Callable[[str], Any]
    help: str
    usual: str | None = None

    @property
    def name(self) -> str:
        return self.flag.removeprefix("--").replace("-", "_")


def _port(text: str) -> int:
    return _number(text, 0, 65535)


def _number(text: str, least: int, most: int | None = None) -> int:
    number = int(text) if re.fullmatch(r"\s*-?\d{1,15}\s*", text) else None
    if number is None or number < least or (most is not None and number > most):
        raise ValueError(f"a whole number from {least}" + (f" to {most}" if most is not None else " up"))
    return number


def _count(text: str) -> int:
    return _number(text, 1)


def _at_least_none(text: str) -> int:
    return _number(text, 0)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"\s*(\d{1,12})\s*([kmg]?)(?:i?b)?\s*", text.lower())
    if found is None or int(found[1]) == 0:
        raise ValueError("a size, as 500k, 10m or a number of bytes")
    return int(found[1]) * _UNITS[found[2]]


def _seconds(text: str) -> float:
    found = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([smhd]?)\s*", text.lower())
    if found is None:
        raise ValueError("a span of time, as 0.5, 30s, 10m, 2h or 7d")
    return float(found[1]) * _SPANS[found[2]]


def _some_seconds(text: str) -> float:
    if not (span := _seconds(text)):
        raise ValueError("a span of time above 0, as 0.5, 30s, 10m, 2h or 7d")
    return span


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_%-]+|\[[0-9A-Fa-f.:%a-z]+\]", text):
        raise ValueError("a host name or an address")
    return text.strip("[]")


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("a folder")
    return Path(text).expanduser()


def _postgres(text: str) -> str:
    if urlsplit(text).scheme not in ("postgresql", "postgres"):
        raise ValueError("a URL that begins with postgresql://")
    return text


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("a URL that begins with http:// or https://, without a user")
    return text.rstrip("/")


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(one.rstrip("/") for one in re.split(r"[,\s]+", text) if one)
    if not origins or not all(one == "*" or re.fullmatch(r"https?://[^/?#@]+", one) for one in origins):
        raise ValueError("origins as https://example.com, with commas between, or *")
    return origins


def _text(text: str) -> str:
    if not (text := text.strip()) or not text.isprintable() or len(text) > 200:
        raise ValueError("1 to 200 printable characters")
    return text


def _yes(text: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
    if text.strip().lower() not in known:
        raise ValueError("true or false")
    return known[text.strip().lower()]


def _own(name: str) -> str:
    return f"STEPWAY_RUNNER_{name}"


SETTINGS: tuple[Setting, ...] = (
    Setting("host", "--host", "WORKFLOWS_PY_SERVER_HOST", "HOST", _host,
            "The address to listen on.", "127.0.0.1; 0.0.0.0 with keys"),
    Setting("port", "--port", "WORKFLOWS_PY_SERVER_PORT", "PORT", _port, "The port; 0 for a free one.", "8080"),
    Setting("database", "--database", _own("DATABASE"), "URL", _postgres,
            "Keep runs in this PostgreSQL; use the variable when the URL holds a password."),
    Setting("data_dir", "--data-dir", _own("DATA_DIR"), "FOLDER", _folder,
            "Keep runs in a PostgreSQL of its own, in this folder."),
    Setting("concurrent_runs", "--concurrent-runs", _own("CONCURRENT_RUNS"), "N", _count,
            "Runs of one flow at a time; others wait their turn.", "no bound"),
    Setting("max_body", "--max-body", _own("MAX_BODY"), "SIZE", _bytes, "A request's body at most.", "10m"),
    Setting("max_event", "--max-event", _own("MAX_EVENT"), "SIZE", _bytes, "One event of a run at most.", "10m"),
    Setting("max_run_time", "--max-run-time", _own("MAX_RUN_TIME"), "TIME", _some_seconds,
            "A run at most, its waiting included.", "no bound"),
    Setting("idle_release", "--idle-release", _own("IDLE_RELEASE"), "TIME", _seconds,
            "How long a waiting run stays in memory.", "2s"),
    Setting("drain", "--drain", _own("DRAIN"), "TIME", _some_seconds, "From SIGTERM to the end at most.", "5s"),
    Setting("heartbeat", "--heartbeat", _own("HEARTBEAT"), "TIME", _some_seconds,
            "Between two signs of life on a silent stream.", "25s"),
    Setting("stream_buffer", "--stream-buffer", _own("STREAM_BUFFER"), "SIZE", _bytes,
            "Events held for one reader of a stream.", "1m"),
    Setting("stream_stall", "--stream-stall", _own("STREAM_STALL"), "TIME", _some_seconds,
            "A reader that takes nothing for so long is let go.", "60s"),
    Setting("allowed_origins", "--allowed-origins", _own("ALLOWED_ORIGINS"), "ORIGINS", _origins,
            "Web pages that may call, with commas between; * for all.", "none"),
    Setting("retention.age", "--keep-age", _own("KEEP_AGE"), "TIME", _some_seconds,
            "How long ended runs are kept.", "no bound"),
    Setting("retention.number", "--keep-number", _own("KEEP_NUMBER"), "N", _at_least_none,
            "How many ended runs are kept.", "no bound"),
    Setting("retention.events", "--keep-events", _own("KEEP_EVENTS"), "N", _count,
            "How many of a run's newest events are kept.", "10000"),
    Setting("platform_url", "--platform", "STEPWAY_URL", "URL", _url, "Join this control plane; with --key."),
    Setting("platform_key", "--key", "STEPWAY_API_KEY", "KEY", _text,
            "The key for it; the variable shows it to nobody."),
    Setting("platform_project", "--project", "STEPWAY_PROJECT", "ID", _text, "The project there, by its id.",
            "the key's"),
    Setting("key", "--own-key", _own("KEY"), "KEY", _text,
            "Without a platform: callers show this key; the variable shows it to nobody."),
    Setting("public_url", "--public-url", _own("PUBLIC_URL"), "URL", _url, "Where others reach this server."),
    Setting("name", "--name", _own("NAME"), "NAME", _text, "What people call this server."),
    Setting("insecure", "--insecure", _own("INSECURE"), "", _yes,
            "Serve all who reach --host without keys: the network is trusted."),
)  # fmt: skip

_flags: dict[str, Any] = {}  # what this process's command line said, by field


def said(given: Mapping[str, str | None]) -> dict[str, Any]:
    """Values of flags by field, from texts by `Setting.name`. Raises SettingError."""
    return _read({one: text for one in SETTINGS if (text := given.get(one.name)) is not None}, lambda one: one.flag)


def environment(variables: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Values of the environment by field; an empty variable is none. Raises SettingError."""
    return _read({one: text for one in SETTINGS if (text := variables.get(one.variable))}, lambda one: one.variable)


def remember(flags: Mapping[str, Any]) -> None:
    """Every server that is made in this process from now on takes these, whatever else it is given."""
    _flags.clear()
    _flags.update(flags)


def config() -> Config:
    """What the command line and the environment say. Raises SettingError."""
    return over(_with(Config(), environment()))


def over(made: Config) -> Config:
    """A configuration with what the command line said instead. Raises SettingError where that does not go together."""
    result = _with(made, _flags)
    if "platform_url" in _flags and not result.platform_key:
        raise SettingError("--platform needs a key for it: --key, or STEPWAY_API_KEY.")
    return result


def _with(made: Config, values: Mapping[str, Any]) -> Config:
    kept = {name.partition(".")[2]: value for name, value in values.items() if name.startswith("retention.")}
    plain = {name: value for name, value in values.items() if not name.startswith("retention.")}
    if "data_dir" in plain and "database" not in plain:  # a place said nearer is meant instead of the other kind
        plain["database"] = None
    elif "database" in plain and "data_dir" not in plain:
        plain["data_dir"] = None
    result = replace(made, **plain, retention=replace(made.retention, **kept))
    if result.database is not None and result.data_dir is not None:
        raise SettingError("Runs are kept in one place: give --database or --data-dir.")
    return result


def _read(texts: Mapping[Setting, str], place: Callable[[Setting], str]) -> dict[str, Any]:
    values = {}
    for one, text in texts.items():
        try:
            values[one.field] = one.read(text)
        except ValueError as error:
            raise SettingError(f"{place(one)} takes {error}.") from None
    return values
