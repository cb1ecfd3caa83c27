"""Servers of `errands` in processes of their own, on one store."""

import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, LiteralString

import httpx
import psycopg
import pytest

from tests import postgres
from tests.stepway.runner import stores
from tests.stepway.runner.serving import Server, serving, until

FILE = Path(__file__).with_name("errands.py")
ANSWER = {"event": {"type": "HumanResponseEvent", "value": {"_data": {"response": "yes"}}}}


class Errands:
    """A folder with the file and its log, and the store of its servers; `url` is None for one in memory."""

    def __init__(self, folder: Path, url: str | None) -> None:
        self.folder = folder
        self.url = url
        self._log = folder / "log"
        self._log.touch()
        self._file = folder / "errands.py"
        shutil.copy(FILE, self._file)

    def server(self, *flags: str, **environment: str) -> AbstractContextManager[Server]:
        store = () if self.url is None else ("--database", self.url)
        return serving(
            self._file, *store, *flags, log=self.folder / "server.log",
            environment={"LOG": str(self._log), **environment},
        )  # fmt: skip

    def notes(self, what: str = "") -> list[tuple[str, float]]:
        """What was noted, and when."""
        lines = [line.rsplit(" ", 1) for line in self._log.read_text().splitlines()]
        return [(name, float(at)) for name, at in lines if name.startswith(what)]

    def query(self, statement: LiteralString, *values: Any) -> Any:
        """The first value that the store's database answers."""
        assert self.url is not None
        with psycopg.connect(self.url) as connection:
            row = connection.execute(statement, values).fetchone()
        return None if row is None else row[0]

    def released(self, handler_id: str) -> bool:
        """Whether the run is in no server's memory."""
        return bool(
            self.query(
                "SELECT server_id IS NULL AND released_at IS NOT NULL FROM stepway_runner.handler "
                "WHERE handler_id = %s AND status = 'running'", handler_id,
            )
        )  # fmt: skip


@pytest.fixture
def errands(tmp_path: Path) -> Iterator[Errands]:
    """On a database."""
    url = stores.new_database()
    yield Errands(tmp_path, url)
    postgres.server().drop(url)


@pytest.fixture(params=stores.KINDS)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Errands]:
    """On each kind of store."""
    if request.param == "memory":
        yield Errands(tmp_path, None)
        return
    url = stores.new_database()
    yield Errands(tmp_path, url)
    postgres.server().drop(url)


def begin(server: Server, workflow: str, handler_id: str, **given: Any) -> float:
    """When it was asked for, in the machine's own seconds."""
    at = time.monotonic()
    body = {"handler_id": handler_id, "start_event": {"name": handler_id, **given}}
    answer = server.ask("POST", f"/workflows/{workflow}/run-nowait", json=body)
    assert answer.status_code == 200, answer.text
    return at


def answer(server: Server, handler_id: str) -> httpx.Response:
    return server.ask("POST", f"/events/{handler_id}", json=ANSWER)


def ended(server: Server, handler_id: str, timeout: float = 60) -> dict[str, Any]:
    """The handler, when its run is over."""

    def over() -> dict[str, Any] | None:
        handler: dict[str, Any] = server.ask("GET", f"/handlers/{handler_id}").json()
        return handler if handler["status"] != "running" else None

    found: dict[str, Any] = until(over, timeout)
    return found


def result(server: Server, handler_id: str) -> Any:
    handler = ended(server, handler_id)
    assert handler["status"] == "completed", handler
    return handler["result"]["value"]["result"]


def numbers(server: Server, handler_id: str) -> list[int]:
    """Of all events of a run that has ended, the library's own included."""
    text = server.ask("GET", f"/events/{handler_id}?after_sequence=-1&include_internal=true").text
    return [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]
