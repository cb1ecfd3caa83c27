"""Deployed endpoints from a Python-coded flow or a script (`stepway.runner.endpoints`), with a small real model."""

from typing import Any

import pytest

from stepway.client import Client
from stepway.runner import endpoint as named
from stepway.runner import endpoints
from stepway.runner.endpoints import EndpointError
from tests.stepway.cli.conftest import Service


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, and no server that this process has joined."""
    for name in ("STEPWAY_URL", "STEPWAY_GATEWAY_URL", "STEPWAY_API_KEY", "STEPWAY_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("url", "key", "project"):
        monkeypatch.setattr(endpoints._Joined, name, None)


async def test_chats_and_streams(service: Service, endpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWAY_URL", service.url)
    monkeypatch.setenv("STEPWAY_API_KEY", service.key)
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organisation")
    one = named(endpoint["name"])
    try:
        assert await one.base_url() == f"{service.url}/endpoints/{endpoint['id']}/v1"
        assert (await one.chat("Say a word.", max_tokens=8)).strip()
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Count."}]
        pieces = [piece async for piece in one.stream(messages, max_tokens=8, temperature=0)]
        assert len(pieces) > 1
        assert "".join(pieces) == await one.chat(messages, max_tokens=8, temperature=0)
        client = await one.openai()
        assert client.organization is None
        assert [found.id async for found in client.models.list()]
    finally:
        await one.aclose()
    assert service.key not in repr(one)


async def test_an_id_and_what_the_server_is_joined_with(service: Service, endpoint: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="STEPWAY_URL"):
        named("x")
    with pytest.raises(EndpointError, match="STEPWAY_API_KEY"):
        named("x", url=service.url)
    endpoints.use(service.url, service.key, endpoint["project_id"])
    one = named(endpoint["id"])
    try:
        assert (await one.chat("Say a word.", max_tokens=4)).strip()
    finally:
        await one.aclose()


async def test_errors_say_what_to_do(service: Service, endpoint: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="stepway endpoints list"):
        await named("no such", url=service.url, key=service.key).base_url()
    with pytest.raises(EndpointError, match="answered 401"):
        await named("x", url=service.url, key="nobody").base_url()
    with pytest.raises(EndpointError, match="No platform answers"):
        await named("x", url="http://127.0.0.1:1", key="k").base_url()
    with pytest.raises(EndpointError, match="is not a URL"):
        named("x", url="ftp://x", key="k")
    with Client(service.url, service.key) as client:
        narrow = client.post("/keys", {"name": "narrow", "scopes": ["read"]})["key"]
    one = named(endpoint["name"], url=service.url, key=narrow)
    try:
        with pytest.raises(EndpointError, match="scope `inference`") as refused:
            await one.chat("x")
        assert narrow not in str(refused.value)
        with pytest.raises(EndpointError, match="scope `inference`"):
            [piece async for piece in one.stream("x")]
    finally:
        await one.aclose()
