"""A process that delivers webhooks until it is killed: `python -m tests.services.app.webhooks.deliverer URL FOLDER`."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from services.app.webhooks.delivery import Delivery
from services.app.webhooks.sending import Sender
from shared.db.engine import Database
from shared.jobs.hub import Hub
from shared.security.envelope import Keyring
from shared.settings import Settings


async def main(url: str, folder: Path) -> None:
    database, settings = Database(url, pool_size=2), Settings(allow_private_addresses=True, webhook_timeout=60)
    context: Any = SimpleNamespace(
        database=database, hub=Hub(database), settings=settings, keyring=Keyring.load(folder / "encryption-keys.json")
    )
    await Delivery(context, Sender(settings)).run()


asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
