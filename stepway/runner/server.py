"""`WorkflowServer`: workflows under names, served over HTTP. `api` answers requests, `runs` runs, a store keeps."""

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from workflows import Workflow
from workflows.events import Event

from stepway.runner import settings
from stepway.runner.api.errors import RETRY_SOON, Refused
from stepway.runner.api.guard import is_local
from stepway.runner.api.request import JSON, NAMES, Receive, Scope, Send, is_name
from stepway.runner.api.routes import Api, Authorise
from stepway.runner.api.streams import CONNECTION
from stepway.runner.config import Config
from stepway.runner.process import Stopper, listen, refuse_in_loading, say, url_of
from stepway.runner.runs import Runs
from stepway.runner.store import Store, StoreUnavailable
from stepway.runner.store.memory import MemoryStore

if TYPE_CHECKING:
    from stepway.runner.platform import Platform

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # it does not exist for every system; uvicorn then has another way
    _PROTOCOL: Any = "auto"
else:

    class _Protocol(HttpToolsProtocol):
        """Lends the request its transport: what never reads cannot be let go otherwise."""

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["extensions"] = {CONNECTION: {"transport": self.transport}}

    _PROTOCOL = _Protocol

log = logging.getLogger(__name__)

_AFTER_RUNS = 0.3  # the part of `Config.drain` that is for connections and the store, after the runs
_LAST_WORD = 0.5  # seconds of these, to tell the platform that the server stops


def store_of(config: Config) -> Store:
    """Where a configuration keeps runs. Raises StoreUnavailable for a database's URL that is none."""
    if config.database is not None:
        from stepway.runner.store.postgres import PostgresStore

        return PostgresStore(config.database, config.retention)
    if config.data_dir is not None:
        from stepway.runner.store.embedded import EmbeddedStore

        return EmbeddedStore(config.data_dir, config.retention)
    return MemoryStore(config.retention)


class WorkflowServer:
    """Serves workflows written with `llama-index-workflows`.

        server = WorkflowServer()
        server.add_workflow("greet", GreetingWorkflow())
        asyncio.run(server.serve("127.0.0.1", 8080))

    `app` is an ASGI app that other apps may mount. A mounted app is told nothing of the start and stop of the one around it,
    so the server starts at the first request; a program that wants runs of before to go on at once, and runs to be drained at
    its end, has `async with server:` around its life (in its own lifespan, say). One server is for one event loop.

    `authorise` is asked before each request is answered; without one the server takes requests of this machine's own pages
    and programs only (`api.guard`), whatever address it listens on, unless `Config.insecure`.

    Without a `config` the server has the one of the command line and the environment (`settings`); with one, the command line
    still has its way.
    """

    def __init__(
        self, config: Config | None = None, *, store: Store | None = None, authorise: Authorise | None = None
    ) -> None:
        self.config = settings.config() if config is None else settings.over(config)
        self.runs = Runs(store or store_of(self.config), self.config)
        self._platform = _platform(self.config, self.runs)
        authorise = authorise or _keys(self.config, self._platform)
        self._api = Api(self.runs, self.config, self._ready, authorise)
        self.app = App(self, self._api)
        self.streams = self._api.streams
        self._turn = asyncio.Lock()
        self._stopped = False
        self._serving: _Uvicorn | None = None
        self._keys = authorise is not None

    @property
    def asks_keys(self) -> bool:
        """Whether requests need a key."""
        return self._keys

    @property
    def host(self) -> str:
        """The address to listen on by its configuration."""
        return self.config.host or ("0.0.0.0" if self.asks_keys else "127.0.0.1")  # noqa: S104 (with keys)

    def add_workflow(
        self, name: str, workflow: Workflow, additional_events: Sequence[type[Event]] | None = None
    ) -> None:
        """Serve a workflow under a name. `additional_events`: classes that clients may send and that no signature shows.

        Raises ValueError for a name that cannot stand in a path or is taken, and what the library says of a bad workflow.
        """
        if not is_name(name):
            raise ValueError(f"A workflow cannot be called {name!r}: {NAMES}")
        if name in self.runs.served:
            raise ValueError(f"There is a workflow {name!r} already")
        self.runs.add(name, workflow, tuple(additional_events or ()))

    async def start(self) -> Self:
        """Open the store and go on with the runs that it holds. Does nothing when it is started. Raises StoreUnavailable."""
        async with self._turn:
            if not self.runs.started and not self._stopped:
                await self.runs.start_up()
                if self._platform is not None:
                    self._platform.start()
        return self

    async def stop(self) -> None:
        """Let runs end for most of `Config.drain` seconds, then give up what is left: streams break off, stores close.

        Runs of a durable store go on elsewhere, or here after the next start of the program. `serve` returns.
        """
        if self._serving is not None:
            self._serving.should_exit = True
        async with self._turn:
            if self._stopped:
                return
            self._stopped = True
            if self.runs.store.durable:
                self.streams.break_off()
            try:
                if self.runs.started:
                    await self.runs.shut_down(self.config.drain * (1 - _AFTER_RUNS))
            finally:
                self.streams.break_off()
                self._api.waiting.give_up()
                if self._platform is not None:
                    await self._platform.stop(_LAST_WORD)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def serve(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        sockets: list[socket.socket] | None = None,
        uvicorn_config: dict[str, Any] | None = None,
        ready: Callable[[], object] | None = None,
    ) -> None:
        """Serve until SIGINT or SIGTERM, and then to the end of `stop`. After a signal the process ends within `Config.drain`
        seconds, whatever the program does next, and on the second one at once.

        `host` and `port` are the configuration's if not given, port 0 is any free one. `sockets`: listen on these instead.
        `uvicorn_config`: more settings of uvicorn's. `ready` is called when requests are answered. Raises StartError,
        StoreUnavailable.
        """
        refuse_in_loading()
        listeners = sockets or listen(host or self.host, self.config.port if port is None else port)
        everyone = self.asks_keys or self.config.insecure
        usual: dict[str, Any] = {
            "http": _PROTOCOL,
            "ws": "none",
            "lifespan": "off",
            "access_log": False,
            "log_config": None,
            "server_header": False,
            "timeout_graceful_shutdown": self.config.drain * (1 - _AFTER_RUNS / 2),
        }
        config = uvicorn.Config(self.app if everyone else ThisMachine(self.app), **(usual | (uvicorn_config or {})))
        self._serving = _Uvicorn(config, self, ready or (lambda: None))
        with Stopper(self._serving.end, self.config.drain):
            try:
                await self.start()
                self._announce(listeners, everyone)
                await self._serving.serve(listeners)
            finally:
                for one in listeners:
                    one.close()
                await self.stop()

    def _announce(self, listeners: list[socket.socket], everyone: bool) -> None:
        names = ", ".join(self.runs.served) or "no workflow"
        kept = "are kept" if self.runs.store.durable else "live in memory"
        say(f"serving {names} at {' and '.join(map(url_of, listeners))}; runs {kept}")
        if not everyone and not all(is_local(one.getsockname()[0]) for one in listeners):
            say("without keys only programs of this machine are answered")

    async def _ready(self) -> None:
        """Raises Refused (503)."""
        if self.runs.started:
            return
        if self._stopped:
            raise Refused(503, "This server is stopping", RETRY_SOON)
        try:
            await self.start()
        except StoreUnavailable as error:
            raise Refused(503, f"This server cannot start: {error}", RETRY_SOON) from error


def _platform(config: Config, runs: Runs) -> "Platform | None":
    """None for a server that is joined to none."""
    if not config.platform_url or not config.platform_key:
        return None
    from stepway.runner.platform import Platform  # its HTTP client is not wanted by others

    return Platform(config, runs)


def _keys(config: Config, platform: "Platform | None") -> Authorise | None:
    if platform is not None:
        return platform.keys
    if config.key is None:
        return None
    from stepway.runner.api.auth import StaticKey

    return StaticKey(config.key)


class App:
    """The ASGI app of a server."""

    def __init__(self, server: WorkflowServer, api: Api) -> None:
        self._server = server
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._api(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._server.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._server.stop()
        await send({"type": "lifespan.shutdown.complete"})


class ThisMachine:
    """Lets requests of this machine pass, and no others."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        if client is None or is_local(client[0]):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            told = "Without keys this server answers its own machine only: give it keys (--platform, --own-key), or --insecure"
            await send({"type": "http.response.start", "status": 403, "headers": JSON})
            await send({"type": "http.response.body", "body": json.dumps({"detail": told}).encode()})


class _Uvicorn(uvicorn.Server):
    """Drains runs while connections are waited for. The signals are `process`'s."""

    def __init__(self, config: uvicorn.Config, server: WorkflowServer, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._server = server
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def end(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = asyncio.ensure_future(self._server.stop())
        await super().shutdown(sockets)
        with contextlib.suppress(Exception):
            await stopping
