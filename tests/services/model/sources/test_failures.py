"""A host that cannot be reached is named, with the reason, in what the user reads; nothing else of the URL is."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import httpx2
import pytest

from services.model.sources.fetching.failures import outcome_of_failure
from services.model.sources.hugging_face import HuggingFace
from services.model.sources.url import Url
from shared.contracts.models import Source
from shared.jobs.outcomes import Permanent, Retry, StepError
from tests.services.model.sources.conftest import MakeContext, spec
from tests.serving import FileServer
from tests.testbed import tls_server

SECRET = "s3cret"


@asynccontextmanager
async def refusing() -> AsyncIterator[str]:
    """A port where nothing listens, kept from others by a socket that is bound to it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@asynccontextmanager
async def untrusted() -> AsyncIterator[str]:
    async with tls_server.serving(lambda request: tls_server.http(b"never")) as server:
        yield server.url


@asynccontextmanager
async def without_tls() -> AsyncIterator[str]:
    async with tls_server.plain() as server:
        yield server.url


async def _fault(source: Source, url: str, context: MakeContext) -> StepError:
    if source is Source.URL:
        check = Url().check(spec(source, f"{url}/{SECRET}.gguf?for={SECRET}"), context())
    else:
        check = HuggingFace().check(spec(source, "org/model"), context(hf_endpoint=url, token=SECRET))
    with pytest.raises(StepError) as raised:
        await check
    assert SECRET not in raised.value.message
    return raised.value


@pytest.mark.parametrize("source", [Source.URL, Source.HUGGING_FACE])
@pytest.mark.parametrize(
    ("server", "kind", "told"),
    [
        (refusing, Retry, "127.0.0.1:{port} refuses the connection."),
        (untrusted, Permanent, "The TLS certificate of 127.0.0.1:{port} is not accepted: "),
        (without_tls, Retry, "127.0.0.1:{port} does not speak TLS with us: "),
    ],
)
async def test_the_host_and_the_reason_are_told(
    context: MakeContext,
    source: Source,
    server: Callable[[], AbstractAsyncContextManager[str]],
    kind: type[StepError],
    told: str,
) -> None:
    async with server() as url:
        fault = await _fault(source, url, context)
        assert isinstance(fault, kind)
        assert fault.message.startswith(told.format(port=httpx.URL(url).port))
        assert fault.message.endswith(".")
        assert ".." not in fault.message


@pytest.mark.parametrize("source", [Source.URL, Source.HUGGING_FACE])
@pytest.mark.parametrize(
    ("number", "told"),
    [
        (socket.EAI_NONAME, "models.example was not found: there is no such name."),
        (socket.EAI_AGAIN, "models.example was not found: the name could not be looked up (no answer)."),
    ],
)
async def test_a_name_that_is_not_found_is_told(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch, source: Source, number: int, told: str
) -> None:
    def look_up(*_: object, **__: object) -> object:
        raise socket.gaierror(number, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    fault = await _fault(source, "http://models.example", context)
    assert isinstance(fault, Retry)
    assert fault.message == told


def test_a_host_that_is_too_slow_is_told_without_what_else_the_url_holds() -> None:
    url = f"https://{SECRET}:{SECRET}@models.example/{SECRET}?{SECRET}"
    first, second = httpx.Request("GET", url), httpx2.Request("GET", url)
    for fault in (httpx.ConnectTimeout("", request=first), httpx2.ConnectTimeout("", request=second)):
        assert outcome_of_failure(fault).message == "models.example could not be reached in time."
    for late in (httpx.ReadTimeout("", request=first), httpx2.ReadTimeout("", request=second)):
        assert outcome_of_failure(late).message == "models.example did not answer in time."


async def test_after_a_redirect_it_is_the_host_that_failed(context: MakeContext, files: FileServer) -> None:
    async with refusing() as url:
        with pytest.raises(Retry) as raised:
            await Url().check(spec(Source.URL, files.redirect("/m.gguf", f"{url}/m.gguf?{SECRET}")), context())
        assert raised.value.message == f"127.0.0.1:{httpx.URL(url).port} refuses the connection."
