"""The real context: who may be reached, what is read of it, whose key goes where, and the files of executions."""

import gzip
import zlib
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from services.flow.context import CalledProvider
from shared import settings as settings_module
from shared.security.outgoing import outgoing
from stepway.tasks import TaskError
from tests.services.flow.world import JOB, World
from tests.serving import Fault, FileServer, send
from tests.testbed.certificates import Authority
from tests.testbed.tls_server import http, serving

PAGE = b"<html><head><title>Example Domain</title></head><body><p>This domain is for use in examples.</p></body></html>"


async def fetched(world: World, url: str, **options: Any) -> bytes:
    async with world.context().request("GET", url, **options) as answer:
        return await answer.read()


async def refused(world: World, url: str, **options: Any) -> TaskError:
    with pytest.raises(TaskError) as failed:
        await fetched(world, url, **options)
    return failed.value


def packed(body: bytes, coding: str) -> Any:
    def route(request: BaseHTTPRequestHandler, fault: object) -> None:
        send(request, 200, body, {"Content-Encoding": coding, "Content-Type": "text/html"})

    return route


async def test_an_operators_pin_and_authority_lead_to_example_com(world: World, tmp_path: Path) -> None:
    """The seeds' first example, with no internet: a name that is found elsewhere, and a certificate of our own."""
    authority = Authority.make("the test's own")
    pem = tmp_path / "ca.pem"
    pem.write_bytes(authority.pair.certificate)
    pair = authority.issue("example.com", names=("example.com",))
    async with serving(lambda _: http(PAGE, Content_Type="text/html"), pair=pair) as server:
        found = settings_module.load(
            {"STEPWAY_RESOLVE": f"example.com:443:127.0.0.1:{server.port}", "STEPWAY_OUTBOUND_CA": str(pem)}
        )
        world.pins, world.tls = found.resolve, outgoing(found).tls
        assert outgoing(found).policy.pins == world.context()._policy.pins
        done = await world.run("web.download", url="https://example.com")
        assert done["html_content"] == done["html"] == PAGE.decode()
        assert (done["status"], done["final_url"]) == (200, "https://example.com")
        assert server.requests[0].headers["host"] == "example.com"
        text = await world.run("web.extract_text", html_content=done["html_content"])
        assert text == {"text": "This domain is for use in examples.", "title": "Example Domain"}
        # the pin is for this port alone, and trusts no certificate by itself
        assert (await refused(world, f"https://127.0.0.1:{server.port}/")).code == "address_refused"
        world.tls = outgoing(settings_module.Settings()).tls
        failed = await refused(world, "https://example.com")
        assert (failed.code, failed.retryable) == ("certificate_refused", False)
        assert failed.message.startswith("The TLS certificate of example.com is not accepted: ")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::1]:{port}/", "http://2130706433:{port}/",
        "http://169.254.169.254/latest/meta-data", "http://10.0.0.1/", "http://0.0.0.0:{port}/", "file:///etc/passwd",
        "ftp://example.com/", "http://user:pass@example.com/", "//example.com", "http://", "http://exa mple.com/", "",
        "http://127.0.0.1:99999/", "http://example.com:22/", "http://[::ffff:127.0.0.1]:{port}/", "gopher://x",
    ],
)  # fmt: skip
async def test_addresses_that_no_task_may_ask(world: World, url: str) -> None:
    with FileServer() as server:
        server.add("/", b"secret")
        failed = await refused(world, url.format(port=server.port))
        assert (failed.code, failed.retryable) == ("address_refused", False)
        assert "pass@" not in failed.message
        assert not server.seen


async def test_a_redirect_to_a_private_address_is_refused(world: World, web: FileServer) -> None:
    with FileServer() as private:
        for target in (
            private.add("/x", b"secret"),
            "http://169.254.169.254/",
            "file:///etc/passwd",
            "http://u:p@x.com/",
        ):
            failed = await refused(world, web.redirect("/go", target))
            assert (failed.code, failed.retryable) == ("address_refused", False)
        assert not private.seen


async def test_redirects_end(world: World, web: FileServer) -> None:
    web.redirect("/loop", "/loop")
    failed = await refused(world, f"{web.url}/loop")
    assert (failed.code, failed.message) == ("too_many_redirects", "The server redirects more than 10 times.")
    assert len(web.seen) == 11
    async with world.context().request("GET", f"{web.url}/loop", follow=False) as answer:
        assert answer.head.status == 302


async def test_headers_of_a_user_stay_with_the_host_that_was_asked(world: World, web: FileServer) -> None:
    with FileServer() as other:
        world.trust(other.port)
        web.redirect("/here", "/there")
        web.redirect("/there", other.add("/x", b"done"))
        headers = {
            "X-Api-Key": "s3cret",
            "Authorization": "Bearer s3cret",
            "Cookie": "a=s3cret",
            "Accept": "text/plain",
        }
        assert await fetched(world, f"{web.url}/here", headers=headers) == b"done"
        assert [seen.headers.get("x-api-key") for seen in web.seen] == ["s3cret", "s3cret"]
        assert "s3cret" not in str(other.seen[0].headers)
        assert other.seen[0].headers["accept"] == "text/plain"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil"}, {"Content-Length": "1"}, {"transfer-encoding": "chunked"}, {"A b": "x"}, {"": "x"},
        {"X": "a\r\nY: b"}, {"X": "é"}, {"X": "a\0"}, {"X": True}, {"X": ["a"]}, {"X": "a" * 20000},
        {f"X-{number}": "a" for number in range(100)}, {"Accept-Encoding": "br"},
    ],
)  # fmt: skip
async def test_headers_that_cannot_be_sent(world: World, web: FileServer, headers: dict[str, Any]) -> None:
    web.add("/x", b"")
    assert (await refused(world, f"{web.url}/x", headers=headers)).code == "bad_header"
    assert not web.seen


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
async def test_a_bomb_is_stopped_at_the_limit(world: World, web: FileServer, coding: str) -> None:
    plain = bytes(50 * 1024**2)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS if coding == "raw" else zlib.MAX_WBITS)
    body = gzip.compress(plain) if coding == "gzip" else deflate.compress(plain) + deflate.flush()
    assert len(body) < 100_000
    web.route("/bomb", packed(body, "gzip" if coding == "gzip" else "deflate"))
    failed = await refused(world, f"{web.url}/bomb", limit=1024**2)
    assert (failed.code, failed.message) == ("too_large", "The answer is larger than 1 MiB, which is the limit.")
    assert len(await fetched(world, f"{web.url}/bomb", limit=len(plain))) == len(plain)
    async with world.context().http_client() as client:  # libraries are held to a limit too
        web.route("/large", packed(gzip.compress(bytes(65 * 1024**2)), "gzip"))
        with pytest.raises(TaskError):
            await client.get(f"{web.url}/large")


async def test_a_body_that_is_larger_than_it_may_be(world: World, web: FileServer) -> None:
    web.add("/x", b"12345")
    assert await fetched(world, f"{web.url}/x", limit=5) == b"12345"
    assert (await refused(world, f"{web.url}/x", limit=4)).code == "too_large"


async def test_compression_that_is_damaged_or_unknown(world: World, web: FileServer) -> None:
    whole = gzip.compress(b"text" * 1000)
    web.route("/two", packed(gzip.compress(b"one ") + gzip.compress(b"two"), "x-gzip"))
    assert await fetched(world, f"{web.url}/two") == b"one two"
    web.route("/empty", packed(b"", "gzip"))
    assert await fetched(world, f"{web.url}/empty") == b""
    for number, (body, coding) in enumerate(
        [(whole[:-9], "gzip"), (b"not gzip", "gzip"), (b"\xff" * 50, "deflate"), (b"x", "br"), (whole, "gzip, gzip")]
    ):
        web.route(f"/{number}", packed(body, coding))
        assert (await refused(world, f"{web.url}/{number}")).code == "bad_answer"


async def test_faults_of_the_network_may_pass(world: World, web: FileServer) -> None:
    world.trusted |= {"127.0.0.1:1", "no-such-host.invalid"}
    failed = await refused(world, "http://127.0.0.1:1/?token=s3cret")
    assert (failed.code, failed.message, failed.retryable) == (
        "unreachable",
        "127.0.0.1:1 refuses the connection.",
        True,
    )
    failed = await refused(world, "http://no-such-host.invalid/")
    assert (failed.code, failed.retryable) == ("unreachable", True)
    assert "no-such-host.invalid was not found" in failed.message
    web.add("/cut", b"0123456789")
    web.fail(Fault("/cut", cut_after=3))
    failed = await refused(world, f"{web.url}/cut")
    assert (failed.code, failed.retryable) == ("unreachable", True)


async def test_a_silent_server_is_left(world: World, web: FileServer) -> None:
    web.add("/slow", b"0123456789")
    web.fail(Fault("/slow", pause_after=3))
    failed = await refused(world, f"{web.url}/slow", timeout=0.2)
    assert (failed.code, failed.retryable) == ("unreachable", True)
    assert failed.message.endswith(" in time.")


async def test_errors_that_libraries_read_are_small(world: World, web: FileServer) -> None:
    def route(request: BaseHTTPRequestHandler, fault: object) -> None:
        send(request, 500, b"x" * 300_000, {})

    async with world.context().http_client() as client:
        with pytest.raises(TaskError, match="larger than 262144 bytes"):
            await client.get(web.route("/x", route))


async def test_a_credential_is_for_its_own_address(world: World, web: FileServer) -> None:
    context = world.context()
    own = world.rows.add_credential(api_key="k1", base_url=f"{web.url}/v1/")
    bare = world.rows.add_credential(api_key="k2")
    for given in ({"credential_id": own}, {"credential_id": own, "base_url": f"{web.url}/v1"}):
        assert await context.provider(given) == CalledProvider(f"{web.url}/v1", "k1")
    assert await context.provider({"credential_id": bare}) == CalledProvider("https://api.openai.com/v1", "k2")
    for credential in (own, bare):
        with pytest.raises(TaskError) as failed:
            await context.provider({"credential_id": credential, "base_url": "https://thief.example/v1"})
        assert failed.value.code == "credential_elsewhere"
    keyless = world.rows.add_credential(base_url=f"{web.url}/v1")
    assert (await context.provider({"credential_id": keyless})).key == ""
    for wrong, code in ((str(uuid4()), "credential_gone"), ("no id", "credential_gone"),
                        (world.rows.add_credential(region="x"), "provider_key_missing")):  # fmt: skip
        with pytest.raises(TaskError) as failed:
            await context.provider({"credential_id": wrong})
        assert failed.value.code == code


async def test_the_key_that_came_with_the_execution(world: World, web: FileServer) -> None:
    with pytest.raises(TaskError) as failed:
        await world.context().provider({})
    assert failed.value.code == "provider_key_missing"
    world.rows.key = "from-header"
    found = await world.context().provider({})
    assert found == CalledProvider("https://api.openai.com/v1", "from-header")
    assert "from-header" not in repr(found)
    assert (await world.context().provider({"base_url": f"{web.url}/v1"})).key == "from-header"
    for wrong in ("http://10.0.0.1/v1", "file:///v1", "https://x.com/v1?key=1", "https://u:p@x.com/v1"):
        with pytest.raises(TaskError) as failed:
            await world.context().provider({"base_url": wrong})
        assert failed.value.code == "address_refused"


async def test_what_is_trusted_for_providers_is_not_for_requests(world: World) -> None:
    with FileServer() as gateway:
        gateway.add("/v1/models", b"{}")
        world.openai = f"{gateway.url}/v1"
        context = world.context()
        async with context.http_client() as client:
            with pytest.raises(Exception, match="loopback"):
                await client.get(f"{gateway.url}/v1/models")
        await context.provider({})
        async with context.http_client() as client:
            assert (await client.get(f"{gateway.url}/v1/models")).status_code == 200
        with pytest.raises(TaskError):
            async with context.request("GET", f"{gateway.url}/v1/models"):
                pass
        assert len(gateway.seen) == 1


async def test_files_are_kept_once_and_read_back(world: World) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    context = world.context()
    file = await context.save("../../etc/pass\nwd.mp3", "Audio/MPEG", pieces())
    again = await context.save("other", "nonsense", b"one two")
    assert (file["name"], file["media_type"], file["size"]) == ("passwd.mp3", "audio/mpeg", 7)
    assert (again["media_type"], again["sha256"]) == ("application/octet-stream", file["sha256"])
    assert len([info async for info in world.store.list()]) == 1
    assert {str(one) for one in world.rows.artifacts} == {file["artifact_id"], again["artifact_id"]}
    assert await context.read(file, 7) == b"one two"
    assert b"".join([chunk async for chunk in context.open(file)]) == b"one two"
    assert not list((world.store.root / "scratch").iterdir())
    with pytest.raises(TaskError) as failed:
        await context.read({**file, "size": 1}, 6)  # what the value says of itself counts for nothing
    assert failed.value.code == "too_large"
    await world.store.delete(f"blobs/{file['sha256'][:2]}/{file['sha256']}")
    with pytest.raises(TaskError) as failed:
        await context.read(file, 100)
    assert failed.value.code == "file_gone"


async def test_a_file_whose_making_fails_leaves_nothing(world: World) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"one"
        raise TaskError("unreachable", "It broke off.")

    with pytest.raises(TaskError):
        await world.context().save("a", "a/b", broken())
    assert not world.rows.artifacts
    assert not list((world.store.root / "scratch").iterdir())


def test_progress_is_told_in_bounds(world: World) -> None:
    told: list[tuple[float | None, str | None]] = []
    context = world.context(lambda percent, message: told.append((percent, message)))
    context.progress(150, "almost")
    context.progress(message="words alone")
    world.context().progress(10)
    assert told == [(100.0, "almost"), (None, "words alone")]
    assert (context.execution_id, context.task) == (str(JOB), "the_task")


async def test_the_client_for_libraries_reads_no_proxy(
    world: World, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.add("/x", b"direct")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with world.context().http_client() as client:
        assert isinstance(client, httpx.AsyncClient)
        assert (await client.get(f"{web.url}/x")).content == b"direct"
