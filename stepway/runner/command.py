"""`stepway serve FILE` and `python -m stepway.runner FILE`, from the texts of the flags to the exit code.

0 is done, 1 it cannot run here and now (a port in use, a database that is away), 2 the file or a flag is wrong.
"""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping

from stepway.postgres.programs import PostgresError
from stepway.runner import settings
from stepway.runner.process import StartError, listen, say

REFUSED, USAGE = 1, 2


def serve(file: str, flags: Mapping[str, str | None], *, reload: bool = False, check: bool = False) -> int:
    """Serve the file until a signal. `flags`: what was given, by `Setting.name`."""
    from stepway.runner.loading import Broken, LoadError
    from stepway.runner.store import StoreUnavailable

    if sys.path and sys.path[0] in ("", os.getcwd()):  # noqa: PTH109 (as sys.path has it)
        del sys.path[0]  # what `python -m` puts there; with a file its folder comes there instead
    try:
        settings.remember(settings.said(flags))
        if check:
            return _check(file)
        if reload:
            from stepway.runner.reload import Reloader

            return Reloader(file, flags).run()
        return _serve(file)
    except Broken as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 (it is for a person)
        return USAGE
    except (LoadError, settings.SettingError) as error:
        say(str(error))
        return USAGE
    except (StartError, StoreUnavailable, PostgresError) as error:
        say(str(error))
        return REFUSED
    except KeyboardInterrupt:
        return 130


def _serve(file: str) -> int:
    from stepway.runner import loading
    from stepway.runner.reload import Child

    child = Child.of_environment()
    server = loading.load(loading.target(file))
    refuse_strangers(server.host, open_to_all=server.asks_keys or server.config.insecure)
    _log()
    listeners = child.listeners if child is not None else listen(server.host, server.config.port)

    def ready() -> None:
        if child is not None:
            child.ready()

    if child is not None:
        child.watch_parent()
    return on_loop(lambda: server.serve(sockets=listeners, ready=ready))


def refuse_strangers(host: str, *, open_to_all: bool) -> None:
    """Without keys anyone on the network could run the flows. Raises SettingError, with the ways out."""
    if open_to_all:
        return
    from stepway.runner.api.guard import is_local

    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return  # to listen there fails, and says why
    if not all(map(is_local, found)):
        raise settings.SettingError(
            f"Without keys only this machine is served, and {host} is open to others. Ask for keys (--platform URL --key KEY, "
            "or --own-key KEY), or say that the network is trusted (--insecure)."
        )


def on_loop(main: Callable[[], object]) -> int:
    """Run a coroutine to its end on the fastest event loop that there is."""
    try:
        import uvloop
    except ImportError:  # not on every platform
        factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())  # type: ignore[arg-type]  # a coroutine
    return 0


def _log() -> None:
    """To standard error, unless the file has made its own arrangements."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("uvicorn", "httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _check(file: str) -> int:
    from stepway.runner import loading
    from stepway.runner.api.describe import schema

    found = loading.target(file)
    server = loading.load(found)
    lines = []
    for one in server.runs.served.values():
        start = schema(one.workflow)["start"]
        required = start.get("required", [])
        fields = [
            f"{name} ({_type(field)}{'' if name in required else ', optional'})"
            for name, field in start.get("properties", {}).items()
        ]
        lines += [
            f"{one.name}: {type(one.workflow).__name__}",
            f"  start  {one.workflow.start_event_class.__name__}: {', '.join(fields) or 'any fields'}",
            f"  steps  {', '.join(one.workflow._get_steps())}",
            f"  stop   {one.workflow.stop_event_class.__name__}",
        ]
    print("\n".join(lines))  # noqa: T201 (the answer)
    return 0


def _type(field: Mapping[str, object]) -> str:
    if isinstance(field.get("type"), str):
        return str(field["type"])
    kinds = field.get("anyOf")
    if isinstance(kinds, list):
        return " or ".join(dict.fromkeys(_type(one) for one in kinds))
    reference = field.get("$ref")
    return str(reference).rpartition("/")[2] if reference else "any"
