"""Refusals are raised again where the call was made; all else that goes wrong over there stays there."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from shared.errors import Problem
from shared.jobs.attempts import CancelRequested
from shared.jobs.ledger import StaleFence
from shared.jobs.outcomes import Permanent, Retry
from shared.rpc.identity import APP, Identity, service_key
from shared.rpc.methods import MAX_BODY
from shared.rpc.server import Served, routes
from tests.shared.rpc.ports import INSIDE, NAMES, SECRET, SIDECAR, TOKEN, Serving, Shapes, ShapesPort, refusal, serving


@pytest.fixture
async def app() -> AsyncIterator[Serving]:
    async with serving() as made:
        yield made


@pytest.mark.parametrize("how", ["permanent", "retry", "retry soon", "problem", "stale", "cancelled"])
async def test_a_refusal_is_raised_again_over_there(app: Serving, how: str) -> None:
    port: ShapesPort = app.caller()
    wanted = refusal(how)
    with pytest.raises(type(wanted)) as raised:
        await port.refuse(how)
    got: Any = raised.value
    assert str(got) == str(wanted)
    for name in ("code", "message", "detail", "after", "status"):
        assert getattr(got, name, None) == getattr(wanted, name, None)
    assert app.shapes.calls == 1  # it is an answer, not an outage


@pytest.mark.parametrize("how", ["fault", "key", "base"])
async def test_other_exceptions_stay_inside(app: Serving, how: str) -> None:
    answer = await app.ask("refuse", SIDECAR | NAMES, b'{"how": "%s"}' % how.encode())
    assert answer.status_code == 500
    assert INSIDE not in answer.text + str(answer.headers)
    port: ShapesPort = app.caller(patience=0.1)
    with pytest.raises(Retry) as raised:
        await port.refuse(how)
    assert raised.value.code == "service_away"
    assert INSIDE not in str(raised.value)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "tök"])
async def test_only_our_sidecar_is_answered(app: Serving, token: str) -> None:
    header = {"dapr-api-token": token} if token else {}
    answer = await app.ask("nothing", header | NAMES)
    assert (answer.status_code, answer.json()) == (401, {"error": "unauthenticated"})
    assert app.shapes.calls == 0


@pytest.mark.parametrize(
    ("service", "key"),
    [
        (None, None),
        ("model", None),
        ("model", ""),
        ("model", "forged"),
        ("model", service_key(SECRET, "cluster")),
        ("model", service_key(SecretStr("another installation's"), "model")),
        (None, service_key(SECRET, "model")),
        ("", service_key(SECRET, "")),
        ("cluster", service_key(SECRET, "cluster")),  # real, but may not call this port
        ("app", service_key(SECRET, "app")),
    ],
)
async def test_only_services_that_may_call_are_answered(app: Serving, service: str | None, key: str | None) -> None:
    given = {"stepway-service": service, "stepway-service-key": key}
    names = {name: value for name, value in given.items() if value is not None}
    answer = await app.ask("nothing", SIDECAR | names)
    assert (answer.status_code, answer.json()) == (403, {"error": "forbidden"})
    assert app.shapes.calls == 0


async def test_a_refused_service_gives_up(app: Serving) -> None:
    port: ShapesPort = app.caller("cluster", patience=600)
    with pytest.raises(Permanent) as raised:
        await port.nothing()
    assert raised.value.code == "call_refused"


def test_services_share_no_key_but_with_the_app() -> None:
    app = Identity(APP, secret=SECRET)
    model, cluster = (Identity(name, key=SecretStr(service_key(SECRET, name))) for name in ("model", "cluster"))
    assert app.caller_of(model.headers_for(APP)) == "model"
    assert model.caller_of(app.headers_for("model")) == APP
    assert cluster.caller_of(app.headers_for("model")) is None
    assert cluster.caller_of(model.headers_for("cluster")) is None
    assert model.caller_of(model.headers_for("model")) is None
    assert app.caller_of(model.headers_for(APP) | {"stepway-service": "cluster"}) is None
    assert Identity("model").caller_of({"stepway-service": APP, "stepway-service-key": ""}) is None
    assert SECRET.get_secret_value() not in repr(app) + repr(model)
    assert service_key(SECRET, "model") not in repr(model)


def test_nothing_is_served_without_a_token() -> None:
    with pytest.raises(ValueError, match="anybody"):
        routes([Served(ShapesPort, Shapes(), frozenset())], Identity(APP, secret=SECRET), SecretStr(""))


async def test_nobody_gets_a_look_at_methods_that_are_no_ports(app: Serving) -> None:
    for path in ("_private", "__init__", "calls", "hold", "nothing/more"):
        assert (await app.ask(path, SIDECAR | NAMES)).status_code == 404


async def test_too_large(app: Serving) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(MAX_BODY // 65536 + 16):
            yield b"x" * 65536

    answer = await app.ask("raw", SIDECAR | NAMES, endless())
    assert answer.status_code == 413
    port: ShapesPort = app.caller(patience=600)
    with pytest.raises(Permanent) as raised:
        await port.raw(b"x" * MAX_BODY)
    assert raised.value.code == "call_refused"
    assert app.shapes.calls == 0


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"first": "no number"}',
        b'{"fourth": 4}',
        b'{"first": 1, "second": 2, "fourth": 4}',
        b"{}",
        b"\xff",
        b'{"first": null}',
    ],
)
async def test_malformed(app: Serving, body: bytes) -> None:
    answer = await app.ask("with_defaults", SIDECAR | NAMES, body)
    assert answer.status_code == 422
    assert answer.json().keys() == {"error", "faults"}


async def test_what_is_wrong_with_a_value_is_said_without_it(app: Serving) -> None:
    port: Any = app.caller()
    with pytest.raises(ValidationError) as raised:
        await port.pair("a-secret-that-is-no-id", [])
    assert "a-secret" not in str(raised.value)


async def read(lines: AsyncIterator[str], into: list[str]) -> None:
    async for line in lines:
        into.append(line)


async def test_streams_that_fail(app: Serving) -> None:
    port: ShapesPort = app.caller()
    for how, kind in (
        ("permanent", Permanent),
        ("problem", Problem),
        ("stale", StaleFence),
        ("cancelled", CancelRequested),
    ):
        for before in ([], ["one", "two"]):  # before its first line, and midway
            got: list[str] = []
            with pytest.raises(kind) as raised:
                await read(port.lines(before, how), got)
            assert got == before
            assert str(raised.value) == str(refusal(how))


@pytest.mark.parametrize("before", [[], ["one", "two"]])
async def test_a_stream_that_breaks_does_not_look_like_its_end(app: Serving, before: list[str]) -> None:
    port: ShapesPort = app.caller()
    got: list[str] = []
    with pytest.raises(Retry) as raised:
        await read(port.lines(before, "fault"), got)
    assert raised.value.code == "service_away"
    assert INSIDE not in str(raised.value)
    assert got == before


async def test_a_service_that_comes_back_is_waited_for(app: Serving) -> None:
    port: ShapesPort = app.caller(patience=60)
    await port.nothing()
    await app.stop()
    asking = asyncio.create_task(port.raw(b"still asked"))
    await asyncio.sleep(0.3)  # some tries
    assert not asking.done()
    await app.start()
    assert await asking == b"still asked"


async def test_a_service_that_stays_away_is_given_up(app: Serving) -> None:
    port: ShapesPort = app.caller(patience=0.3)
    await app.stop()
    with pytest.raises(Retry) as raised:
        await port.nothing()
    assert raised.value.code == "service_away"
    with pytest.raises(Retry):
        await read(port.lines(["one"], ""), [])


async def test_one_that_hangs_is_asked_again(app: Serving) -> None:
    port: ShapesPort = app.caller(patience=0.4, timeout=0.2)
    with pytest.raises(Retry) as raised:
        await port.slow()
    assert "Timeout" in raised.value.message
    assert app.shapes.calls > 1
