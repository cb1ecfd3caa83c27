"""`stepway check`: tries every setting, and says of each what is wrong and what to do next.

`CHECKS` lists them: each is a function that gets the settings and the places, and tells what it finds. It changes nothing,
but for a probe in the bucket that it removes, and may run beside a Stepway.
"""

import asyncio
import json
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from alembic.script import ScriptDirectory

from services.assembly.process import Say, say_aloud
from services.embedded.folder import LOCK, Places
from shared.db import migrate
from shared.findings import Finding, Findings
from shared.objects import s3_check
from shared.objects.opened import s3_place
from shared.objects.store import StoreRefused
from shared.security.envelope import Keyring, SealError
from shared.settings import Settings

SECONDS = 60.0  # for one check
_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def run_check(settings: Settings, *, as_json: bool = False, say: Say = say_aloud) -> int:
    """Returns the exit code: 1 when something is wrong."""
    found = asyncio.run(_found(settings))
    if as_json:
        say(json.dumps({"findings": [one.as_json() for one in found]}, indent=2))
    else:
        for one in found:
            say(f"{_MARKS[one.level]} {one.check}: {' '.join(filter(None, (one.message, one.remedy)))}")
    return 1 if any(one.level == "wrong" for one in found) else 0


async def _found(settings: Settings) -> list[Finding]:
    places = Places.of(settings)
    found: list[Finding] = []
    for name, check in CHECKS:
        findings = Findings(name)
        try:
            async with asyncio.timeout(SECONDS):
                await check(settings, places, findings)
        except TimeoutError:
            findings.wrong(f"It was not known after {SECONDS:g} s.", "Look whether what it asks is up, and try again.")
        found += findings.all
    return found


async def _data_directory(settings: Settings, places: Places, findings: Findings) -> None:
    for folder, setting in (
        (places.root, "data_dir"),
        (places.objects, "objects_dir"),
        (places.machine, "machine_dir"),
    ):
        variable = f"STEPWAY_{setting.upper()}"
        above = next(path for path in (folder, *folder.parents) if path.exists())
        if above != folder:
            if not os.access(above, os.W_OK | os.X_OK):
                findings.wrong(
                    f"{folder} is not there, and {above} may not be written.", f"Make it, or set {variable}."
                )
            continue
        status = folder.stat()
        if not folder.is_dir():
            findings.wrong(f"{folder} is no folder.", f"Set {variable} to a folder.")
        elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            findings.wrong(
                f"{folder} may not be read and written by this user.", f"Give it to the user (chown {_user()})."
            )
        elif folder == places.root and settings.database_url is None and status.st_uid != os.geteuid():
            findings.wrong(f"{folder} belongs to another user.", f"Give it to the user (chown {_user()}).")
        elif folder == places.root and status.st_mode & 0o077:
            findings.wrong(f"{folder} may be entered by others.", "Make it private (chmod 700).")
    if places.restoring.exists():
        findings.wrong(f"A restore into {places.root} was cut off.", "Empty the directory, and restore again.")
    if not findings.all:
        findings.ok(f"{places.root} is ours alone.")


def _user() -> str:
    return str(os.geteuid())


async def _key(settings: Settings, places: Places, findings: Findings) -> None:
    path = places.key
    if not path.exists():
        if (places.root / LOCK).exists() and (places.postgres / "pgdata").exists():
            findings.wrong(
                f"The encryption key {path} is missing, but there is a database.", "Restore it from the backup."
            )
        else:
            findings.ok(f"{path} is made at the first start.")
        return
    try:
        Keyring.load(path)
    except (SealError, OSError) as error:
        reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
        findings.wrong(f"The encryption key {path} cannot be used: {reason}", "Restore it from the backup.")
        return
    if path.stat().st_mode & 0o037:  # a group may read it: so it comes into a pod
        findings.wrong(f"The encryption key {path} may be read by others.", "Make it private (chmod 600).")
        return
    findings.ok(f"The encryption key {path} can be used.")


async def _database(settings: Settings, places: Places, findings: Findings) -> None:
    if settings.database_url is None:
        findings.ok(f"PostgreSQL runs in {places.postgres}, and is started with Stepway.")
        return
    try:
        version, revisions = await asyncio.to_thread(_asked, settings.database_url)
    except psycopg.ProgrammingError:
        findings.wrong(
            "DATABASE_URL is no address of a PostgreSQL.", "Write postgresql://user:password@host:port/name."
        )
        return
    except psycopg.OperationalError as error:
        findings.wrong(f"The database does not let us in: {_first_words(error)}", "Correct DATABASE_URL, or start it.")
        return
    if version < 150000:
        findings.wrong(f"The database is PostgreSQL {version // 10000}.", "Use PostgreSQL 15 or a newer one.")
        return
    scripts = ScriptDirectory.from_config(migrate.config(settings.database_url))
    known, heads = {one.revision for one in scripts.walk_revisions()}, set(scripts.get_heads())
    if unknown := set(revisions) - known:
        findings.wrong(
            f"The tables are of a newer Stepway (revision {', '.join(sorted(unknown))}).",
            "Run that version, or a newer.",
        )
    elif not revisions:
        findings.ok("The database is reached, and empty: its tables are made at the start.")
    elif set(revisions) != heads:
        findings.note("The tables are of an older version.", "They are brought up to date at the next start.")
    else:
        findings.ok(f"The database is reached, with the tables of this version ({', '.join(revisions)}).")


def _asked(url: str) -> tuple[int, list[str]]:
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(plain, connect_timeout=10, autocommit=True) as connection:
        there = connection.execute("SELECT to_regclass('platform.alembic_version')").fetchone()
        rows = (
            connection.execute("SELECT version_num FROM platform.alembic_version").fetchall()
            if there and there[0]
            else []
        )
        return connection.info.server_version, [row[0] for row in rows]


def _first_words(error: Exception) -> str:
    """Its first line, which names host and user, and no password."""
    return str(error).strip().partition("\n")[0].rstrip(".") + "."


async def _objects(settings: Settings, places: Places, findings: Findings) -> None:
    try:
        place = s3_place(settings)
    except StoreRefused as refused:
        findings.wrong(refused.message, "Correct the path, or who may read the file.")
        return
    if place is None:
        findings.ok(f"Objects are kept in {places.objects}.")
        return
    if place.endpoint.startswith("http://") and not _is_here(place.endpoint):
        findings.note(
            "The object store is spoken to without TLS.", "Set an https:// endpoint, unless the network is yours."
        )
    await s3_check.check(place, findings)


def _is_here(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


async def _advertised(settings: Settings, places: Places, findings: Findings) -> None:
    if settings.advertised_url is None:
        if settings.advertised_ca is not None:
            findings.wrong(
                "STEPWAY_ADVERTISED_CA is set without an address.", "Set STEPWAY_ADVERTISED_URL, or neither."
            )
        else:
            findings.ok("No address is advertised: files go to pods through their cluster's API server.")
        return
    parts = urlsplit(settings.advertised_url)
    if _is_here(settings.advertised_url):
        findings.wrong(
            "STEPWAY_ADVERTISED_URL is this machine's own loopback, which no pod reaches.", "Name the machine."
        )
        return
    try:
        await asyncio.to_thread(socket.getaddrinfo, parts.hostname, parts.port or 443)
    except (OSError, UnicodeError):
        findings.wrong(f"No address is known for {parts.hostname}.", "Correct STEPWAY_ADVERTISED_URL.")
        return
    if settings.advertised_ca is not None and (fault := _fault_of_ca(settings.advertised_ca)):
        findings.wrong(f"STEPWAY_ADVERTISED_CA: {fault}.", "Set it to a PEM file of the authorities.")
        return
    findings.ok(f"Pods fetch from {settings.advertised_url}.")


def _fault_of_ca(path: Path) -> str | None:
    try:
        ssl.create_default_context(cafile=path.expanduser())
    except ssl.SSLError:
        return f"{path} holds no certificate"
    except OSError as error:
        return f"{path} cannot be read ({(error.strerror or '').lower()})"
    return None


async def _hub(settings: Settings, places: Places, findings: Findings) -> None:
    parts = urlsplit(settings.hf_endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        findings.wrong("HF_ENDPOINT is no address of a hub.", "Write https://host, without a user or a query.")
        return
    findings.ok(f"Models come from {settings.hf_endpoint}.")


async def _outgoing(settings: Settings, places: Places, findings: Findings) -> None:
    if settings.outbound_ca is not None and (fault := _fault_of_ca(settings.outbound_ca)):
        findings.wrong(f"STEPWAY_OUTBOUND_CA: {fault}.", "Set it to a PEM file of the authorities.")
        return
    findings.ok(f"Tasks of flows call {settings.flow_openai_base_url} when they name no other provider.")


async def _hosts(settings: Settings, places: Places, findings: Findings) -> None:
    odd = [host for host in settings.allowed_hosts if "/" in host or " " in host or (":" in host and host[:1] != "[")]
    if odd:
        findings.wrong(f"STEPWAY_ALLOWED_HOSTS has {odd[0]!r}.", "Write names alone, without scheme, port or path.")
    elif settings.host not in ("127.0.0.1", "localhost", "::1") and settings.answered_hosts == [
        "127.0.0.1",
        "localhost",
        "[::1]",
    ]:
        findings.wrong(
            f"It listens on {settings.host}, but answers requests to this machine's loopback names only.",
            "Add its name to STEPWAY_ALLOWED_HOSTS.",
        )
    else:
        findings.ok(f"Answers as {', '.join(settings.answered_hosts)}.")


async def _model_roots(settings: Settings, places: Places, findings: Findings) -> None:
    for root in settings.model_roots:
        if not Path(root).is_dir() or not os.access(root, os.R_OK | os.X_OK):
            findings.wrong(
                f"{root} of STEPWAY_MODEL_ROOTS is no folder that may be read.", "Correct it, or leave it out."
            )


Check = Callable[[Settings, Places, Findings], Awaitable[None]]
CHECKS: tuple[tuple[str, Check], ...] = (
    ("data directory", _data_directory),
    ("encryption key", _key),
    ("database", _database),
    ("object store", _objects),
    ("advertised address", _advertised),
    ("hub", _hub),
    ("outgoing requests", _outgoing),
    ("allowed hosts", _hosts),
    ("model roots", _model_roots),
)
