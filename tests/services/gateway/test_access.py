"""The cache before the app's answer to who may use an endpoint."""

import asyncio
from uuid import uuid4

import pytest

from services.gateway.access import CachedAccess, Caller, Credentials
from services.gateway.limits import Limits
from shared.errors import Problem
from tests.services.gateway.conftest import Keys

ENDPOINT = uuid4()
GOOD = Credentials(authorization="Bearer good")


class Setting:
    def __init__(self) -> None:
        self.now = 0.0
        self.keys = Keys()
        self.keys.grant("good", ENDPOINT)
        self.cached = CachedAccess(self.keys, Limits(access_seconds=0.05), lambda: self.now)


async def test_a_good_key_is_believed_for_15_seconds() -> None:
    setting = Setting()
    assert await setting.cached.authorize(GOOD, ENDPOINT) == Caller(id="good")
    setting.keys.revoke("good")
    setting.now = 14.9
    assert await setting.cached.authorize(GOOD, ENDPOINT) == Caller(id="good")
    assert setting.keys.asked == 1
    setting.now = 15.0
    with pytest.raises(Problem, match="unauthenticated"):
        await setting.cached.authorize(GOOD, ENDPOINT)


async def test_a_refusal_is_not_remembered() -> None:
    setting = Setting()
    new = Credentials(authorization="Bearer new")
    with pytest.raises(Problem, match="unauthenticated"):
        await setting.cached.authorize(new, ENDPOINT)
    setting.keys.grant("new", ENDPOINT)
    assert (await setting.cached.authorize(new, ENDPOINT)).id == "new"


async def test_what_is_remembered_is_one_key_for_one_endpoint() -> None:
    setting = Setting()
    await setting.cached.authorize(GOOD, ENDPOINT)
    with pytest.raises(Problem, match="not_found"):
        await setting.cached.authorize(GOOD, uuid4())
    for other in (Credentials(cookie="Bearer good"), Credentials(), Credentials(authorization="Bearer goo")):
        with pytest.raises(Problem, match="unauthenticated"):
            await setting.cached.authorize(other, ENDPOINT)


async def test_a_recheck_asks_anew_and_forgets_what_it_refutes() -> None:
    setting = Setting()
    await setting.cached.authorize(GOOD, ENDPOINT)
    setting.keys.revoke("good")
    with pytest.raises(Problem, match="unauthenticated"):
        await setting.cached.recheck(GOOD, ENDPOINT)
    with pytest.raises(Problem, match="unauthenticated"):
        await setting.cached.authorize(GOOD, ENDPOINT)


async def test_many_who_ask_at_once_make_one_question_and_outlive_each_other() -> None:
    setting = Setting()
    setting.keys.gate = asyncio.Event()
    asking = [asyncio.create_task(setting.cached.authorize(GOOD, ENDPOINT)) for _ in range(20)]
    await asyncio.sleep(0)
    asking[0].cancel()
    await asyncio.sleep(0)
    setting.keys.gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [Caller(id="good")] * 19
    assert setting.keys.asked == 1


@pytest.mark.parametrize("silent", [False, True])
async def test_an_app_that_cannot_answer_is_unavailable(silent: bool, caplog: pytest.LogCaptureFixture) -> None:
    setting = Setting()
    setting.keys.fault = OSError("no route to postgres://secret")
    setting.keys.gate = asyncio.Event() if silent else None
    with pytest.raises(Problem, match="unavailable") as caught:
        await setting.cached.authorize(GOOD, ENDPOINT)
    assert "postgres" not in caught.value.detail
    setting.keys.fault = setting.keys.gate = None
    assert (await setting.cached.authorize(GOOD, ENDPOINT)).id == "good"


def test_credentials_do_not_show_themselves() -> None:
    shown = repr(Credentials(authorization="Bearer sesame", cookie="stepway_session=sesame"))
    assert "sesame" not in shown
