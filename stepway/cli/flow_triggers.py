"""`stepway flows triggers`: addresses whose signed messages start a flow, and such a message to try one."""

import base64
import hashlib
import hmac
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from stepway.cli.command import Cli, command, group
from stepway.cli.flow_files import Unreadable, mapping
from stepway.cli.nouns import Ref, Yes, pairs
from stepway.cli.output import Column
from stepway.cli.problems import Usage
from stepway.cli.resolve import FLOW, Kind, find_id
from stepway.cli.terminal import confirm_change

app = group("triggers", "Triggers: addresses whose signed messages start a flow.")
TRIGGER = Kind("trigger", "", ())
COLUMNS = [
    Column("url", "url"), Column("scheme", "scheme"), Column("enabled", "enabled"), Column("mapping", "mapping"),
    Column("description", "description"), Column("id", "id"),
]  # fmt: skip
SENT = ("description", "mapping")

Trigger = Annotated[str, typer.Argument(metavar="TRIGGER", help="Its id.")]


def place(cli: Cli, flow: str, trigger: str | None = None) -> str:
    path = f"{FLOW.path}/{find_id(cli.client, FLOW, flow)}/triggers"
    return path if trigger is None else f"{path}/{find_id(cli.client, TRIGGER, trigger)}"


def _whole(cli: Cli, trigger: dict[str, Any]) -> dict[str, Any]:
    """With an address that others can be told."""
    return {**trigger, "url": f"{cli.client.url}{trigger['url']}"}


@command(app, "list")
def list_all(cli: Cli, flow: Ref) -> None:
    """List the triggers of a flow."""
    cli.show_list([_whole(cli, one) for one in cli.client.items(place(cli, flow))], COLUMNS)


@command(app, "show")
def show(cli: Cli, flow: Ref, trigger: Trigger) -> None:
    """Show a trigger, without its secret."""
    cli.out.one(_whole(cli, cli.client.get(place(cli, flow, trigger))))


@command(app, "create")
def create(
    cli: Cli,
    flow: Ref,
    scheme: Annotated[
        str, typer.Option("--scheme", help="How messages are signed.", metavar="standard|github")
    ] = "standard",
    places: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="INPUT=PLACE", help="Where in the body an input is: text=head_commit.message"),
    ] = None,
    description: Annotated[str | None, typer.Option("--description")] = None,
) -> None:
    """Make an address that starts a flow on your behalf. The secret is printed in this answer only."""
    body = {"scheme": scheme, "mapping": pairs(places) if places else None, "description": description}
    given = {name: value for name, value in body.items() if value is not None}
    cli.out.one(_whole(cli, cli.client.post(place(cli, flow), given)))
    cli.out.say("Keep the secret: it is not shown again.", "yellow")


@command(app, "pause")
def pause(cli: Cli, flow: Ref, trigger: Trigger) -> None:
    """Refuse a trigger's messages, until it is resumed."""
    _enable(cli, flow, trigger, enabled=False)


@command(app, "resume")
def resume(cli: Cli, flow: Ref, trigger: Trigger) -> None:
    """Take a trigger's messages again, on your behalf from now on."""
    _enable(cli, flow, trigger, enabled=True)


def _enable(cli: Cli, flow: str, trigger: str, *, enabled: bool) -> None:
    path = place(cli, flow, trigger)
    before: dict[str, Any] = cli.client.get(path)
    body = {**{name: before[name] for name in SENT}, "enabled": enabled}
    cli.out.one(_whole(cli, cli.client.put(path, body, revision=before["revision"])))


@command(app, "fire")
def fire(
    cli: Cli,
    flow: Ref,
    trigger: Trigger,
    secret_file: Annotated[Path, typer.Option("--secret-file", help="Holds the trigger's secret.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="The body, a JSON object; - for stdin.")] = "{}",
) -> None:
    """Send a trigger a signed message, to try it."""
    try:
        value = mapping((sys.stdin.read() if data == "-" else data).encode(), is_json=True)
    except Unreadable as error:
        raise Usage(f"The data must be a JSON object. {error}") from error
    shown = cli.client.get(place(cli, flow, trigger))
    body = json.dumps(value).encode()
    headers = _signed(shown["scheme"], secret_file.read_text("utf-8", "replace").strip(), body)
    cli.out.one(cli.client.post_bytes(shown["url"], body, headers))


def _signed(scheme: str, secret: str, body: bytes) -> dict[str, str]:
    """The headers that a message is known by. `Usage` for what is no secret."""
    if scheme == "github":
        return {"X-Hub-Signature-256": f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"}
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        raise Usage("The file does not hold a trigger's secret: whsec_…") from None
    message, sent = f"msg_{uuid4().hex}", str(int(time.time()))
    digest = hmac.new(key, f"{message}.{sent}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message, "webhook-timestamp": sent, "webhook-signature": signature}


@command(app, "delete")
def delete(cli: Cli, flow: Ref, trigger: Trigger, yes: Yes = False) -> None:
    """Delete a trigger; executions that it has started go on."""
    path = place(cli, flow, trigger)
    confirm_change(cli.out, f"Delete the trigger {trigger}?", sure=yes)
    cli.client.delete(path)
    cli.out.say(f"The trigger {trigger} is deleted.")
