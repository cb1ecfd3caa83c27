"""`stepway login`, `logout` and `whoami`: which server the commands talk to, and as whom."""

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from stepway.cli import config
from stepway.cli.command import Cli, command
from stepway.cli.config import Login
from stepway.cli.problems import Usage
from stepway.cli.terminal import secret
from stepway.client import Client, base_url

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_to(app: typer.Typer) -> None:
    command(app, "login")(login)
    command(app, "logout")(logout)
    command(app, "whoami")(whoami)


def login(
    cli: Cli,
    url: Annotated[str | None, typer.Option("--url", help="The server.", show_default=config.DEFAULT_URL)] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The file that holds the key, e.g. admin.key.")
    ] = None,
) -> None:
    """Keep a server's URL and a key. The key comes from --key-file, or is asked for; a script pipes it in."""
    try:
        chosen = base_url(url or cli.url or config.DEFAULT_URL)
    except ValueError as error:
        raise Usage(str(error)) from error
    parts = urlsplit(chosen)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        cli.out.say(f"{chosen} is not encrypted: the key can be read on the way.", "yellow")
    key = _read(key_file) if key_file is not None else secret(f"Key for {chosen}: ")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise Usage("That is not a key.")
    with Client(chosen, key, patience=5) as client:
        me = client.get("/me")
    path = config.store(Login(chosen, key))
    cli.out.say(f"Logged in at {chosen} as {_name(me)}; kept in {path}.")
    if not cli.out.is_table:
        cli.out.data(me)


def logout(cli: Cli) -> None:
    """Forget the stored URL and key. The key itself stays valid: `stepway keys revoke` ends it."""
    cli.out.say("Logged out." if config.forget() else "There was no login.")


def whoami(cli: Cli) -> None:
    """Show whom the key speaks for."""
    me = cli.client.get("/me")
    cli.out.one({"url": cli.client.url, **me})


def _read(path: Path) -> str:
    try:
        return sys.stdin.readline().strip() if str(path) == "-" else path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise Usage(f"{path} cannot be read: {reason}.") from error


def _name(me: dict[str, object]) -> str:
    user = me.get("user")
    found = user if isinstance(user, dict) else me
    return f"{found.get('name')} ({found.get('role')})"
