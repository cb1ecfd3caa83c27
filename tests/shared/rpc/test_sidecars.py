"""Calls through real sidecars, which hand on no answer before its end, and choose the replica that is asked."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import uuid4

import pytest
from pydantic import SecretStr

from shared.jobs.outcomes import Permanent, Retry
from shared.rpc.client import remote
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.methods import MAX_BODY
from shared.rpc.server import Served
from tests.shared.jobs.engines import Side
from tests.shared.rpc.ports import SECRET, Shapes, ShapesPort
from tests.testbed.dapr import session_dapr


@dataclass
class World:
    """The app's port as `model` sees it, through the sidecars of both; two replicas answer it."""

    port: ShapesPort
    replicas: list[Shapes]


@pytest.fixture
async def world(database_url: str, pytestconfig: pytest.Config) -> AsyncIterator[World]:
    dapr, prefix = session_dapr(pytestconfig), f"t{uuid4().hex[:8]}-"
    app, key = Identity(APP, secret=SECRET), SecretStr(service_key(SECRET, "model"))
    names = [f"daprd-{prefix}{number}" for number in range(3)]
    sides = [Side.beside(dapr, app, database_url, prefix, name) for name in names[:2]]
    sides.append(Side.beside(dapr, Identity("model", key=key), database_url, prefix, names[2]))
    replicas = [Shapes(), Shapes()]
    for side, shapes in zip(sides, [*replicas, Shapes()], strict=True):
        side.serve(Served(ShapesPort, shapes, frozenset({"model"})))
    try:
        for side in sides:
            await asyncio.to_thread(dapr.wait_ready, side.daprd)
        yield World(remote(ShapesPort, APP, sides[2].sidecar, patience=60), replicas)
    finally:
        for shapes in replicas:
            shapes.hold.set()
        for side in sides:
            await side.close()
            await asyncio.to_thread(dapr.processes.kill, side.daprd.name)


async def read(lines: AsyncIterator[str], into: list[str]) -> None:
    async for line in lines:
        into.append(line)


async def test_what_goes_through_sidecars(world: World) -> None:
    port = world.port
    assert await port.raw(bytes(range(256)) * 4096) == bytes(range(256)) * 4096
    with pytest.raises(Permanent):
        await port.refuse("permanent")
    with pytest.raises(Permanent) as raised:
        await port.raw(b"x" * MAX_BODY)
    assert raised.value.code == "call_refused"

    # A line is there before the next one is made, from whichever replica: each call may reach another one.
    streams = [port.lines(["first", "second\u2028"], "hold") for _ in range(4)]
    for lines in streams:
        async with asyncio.timeout(60):
            assert [await anext(lines), await anext(lines)] == ["first", "second\u2028"]
    for shapes in world.replicas:
        shapes.hold.set()
    for lines in streams:
        assert [one async for one in lines] == []

    many = [str(number) * 100 for number in range(5000)]
    for given, end, kind in ((many, "permanent", Permanent), (["one"], "fault", Retry), ([], "fault", Retry)):
        got: list[str] = []
        with pytest.raises(kind):
            await read(port.lines(given, end), got)
        assert got == given
