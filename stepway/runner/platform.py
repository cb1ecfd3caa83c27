"""Joins a workflow server to a platform: registers it, tells of its runs, and takes what people ask there.

The server calls, never the platform. Runs do not wait for any of it. What has been told is not written down here: after an
absence of the platform, or of this server, what has to be told is found anew in the runs themselves, from the newest back to
where the last report had come; and the platform asks for those that go on as far as it knows (`told` says what is told).
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx

from stepway.client import base_url
from stepway.runner import endpoints, told
from stepway.runner.api.auth import Caller, PlatformKeys
from stepway.runner.config import Config
from stepway.runner.runs import Runs
from stepway.runner.store import Handler, StoreUnavailable, UnknownHandler

log = logging.getLogger(__name__)

TIMEOUT = 10.0  # seconds that the platform has for an answer
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts while it has none
PAGE = 200  # runs that are read from the store at once
OVERLAP = timedelta(seconds=10)  # by which clocks of servers over one store may differ
MOST_TOLD, MOST_OPEN, MOST_CALLERS, MOST_CANCELLING = 20_000, 10_000, 10_000, 100
RUNNING_PAGES = 5  # of runs that go on, in one round


class Refusal(Exception):
    """The platform does not take something; the message is its sentence."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Platform:
    """One per server. `keys` is the server's `authorise`. Raises ValueError for a URL that is none."""

    def __init__(self, config: Config, runs: Runs) -> None:
        if not config.platform_url or not config.platform_key:
            raise ValueError("A server is joined to a platform by its URL and a key")
        self._url = base_url(config.platform_url)
        self._config = config
        self._runs = runs
        # A proxy of the environment is for the outside: it would get the key, and not find this machine.
        proxied = urlsplit(self._url).hostname not in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT, trust_env=proxied)
        self._key = config.platform_key.strip()
        self._own = {"Authorization": f"Bearer {self._key}"}
        self.project_id: str | None = config.platform_project
        self.server_id: str | None = None
        self.keys = PlatformKeys(self._http, lambda: self.project_id, self._started)
        self._instance = told.instance(config)
        self._process = None if runs.store.durable else secrets.token_hex(8)
        self._terms: dict[str, Any] = {}  # of the last answer
        self._told: OrderedDict[str, str] = OrderedDict()  # statuses of runs; the newest last
        self._open: OrderedDict[str, str] = OrderedDict()  # handlers of runs that were told to go on
        self._callers: OrderedDict[str, str | None] = OrderedDict()  # keys by which runs were started
        self._answers: list[dict[str, str]] = []  # questions to be answered
        self._taken: list[str] = []  # commands that have been carried out
        self._cancelling: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._scanned = False  # whether all runs of before have been told
        self._trouble = ""

    def start(self) -> None:
        endpoints.use(self._url, self._key, self._config.platform_project)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="platform")

    async def stop(self, seconds: float) -> None:
        """Tell what is left and that this server stops, for so many seconds at most."""
        self._stopping = True
        for task in (self._task, *self._cancelling.values()):
            if task is not None:
                task.cancel()
        if self._http.is_closed:
            return
        try:
            async with asyncio.timeout(seconds):
                if self.server_id is not None:
                    if not self._runs.store.durable:  # others are closed by now, and go on elsewhere
                        await self._round()
                    await self._report(stopping=True)
        except (httpx.HTTPError, Refusal, StoreUnavailable, TimeoutError):
            log.info("The platform was not told that this server stops")
        finally:
            await self._http.aclose()

    def _started(self, run_id: str, caller: Caller) -> None:
        _remember(self._callers, run_id, caller.key_id, MOST_CALLERS)

    # the loop

    async def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                if self.server_id is None:
                    await self._register()
                await self._round()
            except Exception as error:  # whatever it is, runs go on; it is tried again, ever more rarely
                self._troubled(error)
                await asyncio.sleep(pause * (0.7 + secrets.randbelow(300) / 1000))
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                if self._trouble:
                    log.info("The platform is told of runs again")
                pause, self._trouble = FIRST_PAUSE, ""
                await asyncio.sleep(min(max(float(self._terms.get("report_every", 2.0)), 0.1), LONGEST_PAUSE))

    def _troubled(self, error: Exception) -> None:
        """Log what is wrong, once."""
        if isinstance(error, Refusal):
            if error.status in (404, 409):  # forgotten, or another process in its place
                if error.status == 409 and self.server_id is not None:
                    self._instance = f"{told.instance(self._config)}#{secrets.token_hex(3)}"
                self.server_id = None
            trouble = f"it refuses ({error.status}): {error}"
        elif isinstance(error, httpx.HTTPError):
            trouble = f"no answer from {self._url} ({type(error).__name__})"
        else:
            trouble = f"{type(error).__name__}: {told.error(str(error))}"
        if trouble != self._trouble:
            log.warning("The platform cannot be told of runs: %s; it is tried again", trouble)
        self._trouble = trouble

    async def _register(self) -> None:
        try:
            found = await self._registered(schema=True)
        except Refusal as error:
            if error.status not in (400, 413, 422):
                raise
            found = await self._registered(schema=False)  # a schema may be larger or deeper than it takes
        self.server_id, self.project_id, self._terms = found["id"], found["project_id"], found
        endpoints.use(self._url, self._key, self.project_id)
        self._told.clear()
        self._open.clear()
        self._scanned = False
        log.info("Registered with %s as %s", self._url, found["name"])

    async def _registered(self, *, schema: bool) -> dict[str, Any]:
        body = {
            "name": told.name(self._config),
            "instance": self._instance,
            "process": self._process,
            "project_id": self._config.platform_project,
            "url": self._config.public_url,
            "workflows": [told.workflow(one, schema=schema) for one in self._runs.served.values()],
        }
        return await self._post("/workflow-servers", body)

    # one round

    async def _round(self) -> None:
        """Tell of all that is new, then of what has changed, and take what is asked."""
        changes: list[dict[str, Any]] = []
        gone: list[str] = []
        newest: datetime | None = None
        async for handler in self._new():
            newest = max(newest or handler.started_at, handler.started_at)
            await self._add(changes, handler)
        await self._changed(changes, gone)
        await self._answer(changes, gone)
        before = self._terms.get("position")
        position = before if newest is None else max(newest.isoformat(), before or "")
        await self._report(changes, gone, position=position)

    async def _add(self, changes: list[dict[str, Any]], handler: Handler) -> None:
        """Note a run to be told; a full list is told at once."""
        changes.append(told.run(handler, self._callers.get(handler.run_id)))
        if len(changes) >= self._most():
            await self._report(changes)
            changes.clear()

    async def _new(self) -> AsyncIterator[Handler]:
        """Runs that have not been told as they are, newest first, down to a page of which all have been. The platform keeps
        only so many: what is older is not looked for. A process that has told nothing yet goes by the time to which it or
        another one had come; later, clocks do not matter.
        """
        since = None if self._scanned else self._since()
        cursor: str | None = None
        left = int(self._terms.get("runs_kept", 10_000))
        while left > 0:
            page, cursor = await self._runs.page(None, None, min(PAGE, left), cursor, results=False)
            left -= len(page)
            known = 0
            for handler in page:
                if since is not None and handler.started_at < since and handler.run_id not in self._told:
                    _remember(self._told, handler.run_id, handler.status, MOST_TOLD)
                if self._told.get(handler.run_id) == handler.status or not told.can_be(handler):
                    known += 1
                else:
                    yield handler
            if cursor is None or known == len(page):
                break
            await asyncio.sleep(0)
        self._scanned = True

    def _since(self) -> datetime | None:
        position = self._terms.get("position")
        try:
            return None if position is None else datetime.fromisoformat(position) - OVERLAP
        except ValueError:  # of another version
            return None

    async def _changed(self, changes: list[dict[str, Any]], gone: list[str]) -> None:
        """Runs that were told to go on, and do not."""
        if not self._open:
            return
        going: set[str] = set()
        cursor, whole = None, False
        for _ in range(RUNNING_PAGES):
            page, cursor = await self._runs.page(["running"], None, PAGE, cursor, results=False)
            going.update(one.run_id for one in page)
            if whole := cursor is None:
                break
            await asyncio.sleep(0)
        ended = [(run_id, handler_id) for run_id, handler_id in self._open.items() if run_id not in going]
        for run_id, handler_id in ended if whole else ended[:PAGE]:
            self._open.move_to_end(run_id)  # if it goes on after all, others come first
            await self._look(run_id, handler_id, changes, gone, again=False)

    async def _answer(self, changes: list[dict[str, Any]], gone: list[str]) -> None:
        asked, self._answers = self._answers, []
        for one in asked:
            await self._look(one["run_id"], one["handler_id"], changes, gone, again=True)

    async def _look(
        self, run_id: str, handler_id: str, changes: list[dict[str, Any]], gone: list[str], *, again: bool
    ) -> None:
        """Tell how a run is; `again`: also if that has been told."""
        try:
            handler = await self._runs.get(handler_id)
        except UnknownHandler:
            handler = None
        if handler is None or handler.run_id != run_id:
            gone.append(run_id)
        elif again or self._told.get(run_id) != handler.status:
            await self._add(changes, handler)

    # reports

    def _most(self) -> int:
        return int(self._terms.get("most_changes", 500))

    async def _report(
        self,
        changes: list[dict[str, Any]] | None = None,
        gone: list[str] | None = None,
        *,
        position: str | None = None,
        stopping: bool = False,
    ) -> None:
        """Send one report, in halves when there is something in it that is not taken, and do what the answer asks."""
        changes, gone, taken = changes or [], (gone or [])[: self._most()], self._taken[: self._most()]
        body = {
            "process": self._process,
            "after": self._terms.get("position"),
            "position": position,
            "changes": changes,
            "gone": gone,
            "taken": taken,
            "stopping": stopping,
        }
        try:
            answer = await self._post(f"/workflow-servers/{self.server_id}/report", body)
        except Refusal as error:
            if error.status not in (400, 413, 422) or not changes:
                raise
            if len(changes) == 1:
                log.warning("The platform does not take a run of %s: %s", changes[0]["workflow"], error)
                _remember(self._told, changes[0]["run_id"], changes[0]["status"], MOST_TOLD)
                await self._report([], gone, position=position, stopping=stopping)
                return
            half = len(changes) // 2
            await self._report(changes[:half])
            await self._report(changes[half:], gone, position=position, stopping=stopping)
            return
        self._terms = answer
        del self._taken[: len(taken)]
        self._noted(changes, gone)
        self._answers = list(answer["questions"])
        for command in [] if self._stopping else answer["commands"]:
            self._obey(command)

    def _noted(self, changes: list[dict[str, Any]], gone: list[str]) -> None:
        for one in changes:
            run_id = one["run_id"]
            _remember(self._told, run_id, one["status"], MOST_TOLD)
            self._callers.pop(run_id, None)
            if one["status"] == "running":
                _remember(self._open, run_id, one["handler_id"], MOST_OPEN)
            else:
                self._open.pop(run_id, None)
        for run_id in gone:
            self._open.pop(run_id, None)

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._http.post(path, json=body, headers=self._own)
        if answer.status_code >= 500 or answer.status_code == 429:
            answer.raise_for_status()
        if not answer.is_success:
            raise Refusal(answer.status_code, _detail(answer))
        found = answer.json()
        if not isinstance(found, dict):
            raise Refusal(answer.status_code, "The answer is none of a platform.")
        return found

    # commands

    def _obey(self, command: dict[str, Any]) -> None:
        """Cancel a run, beside everything else: it may take as long as its step lets it. It is asked until it is taken."""
        number = command["id"]
        if command["kind"] != "cancel" or number in self._cancelling or len(self._cancelling) >= MOST_CANCELLING:
            return
        task = asyncio.create_task(self._cancel(number, command["handler_id"], command["run_id"]))
        self._cancelling[number] = task
        task.add_done_callback(lambda _: self._cancelling.pop(number, None))

    async def _cancel(self, number: str, handler_id: str, run_id: str) -> None:
        try:
            if (await self._runs.get(handler_id)).run_id == run_id:  # not a later run of the handler
                await self._runs.cancel(handler_id, purge=False)
        except UnknownHandler:
            pass  # it has ended, which the next report tells
        except Exception as error:  # it stays to be asked for
            log.warning("A run could not be cancelled: %s", told.error(str(error)))
            return
        self._taken.append(number)


def _remember(kept: "OrderedDict[str, Any]", name: str, value: Any, most: int) -> None:
    kept.pop(name, None)
    kept[name] = value
    if len(kept) > most:
        kept.popitem(last=False)


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        body = None
    detail = body.get("detail") if isinstance(body, dict) else None
    return told.error(str(detail or answer.reason_phrase))
