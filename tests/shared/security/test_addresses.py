"""The address guard: what it refuses, and that the connection goes where the guard looked."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator

import httpx
import pytest

from shared.security.addresses import AddressPolicy, AddressRefused, check_address, check_url, guarded_client, resolve
from tests.serving import FileServer

STRICT = AddressPolicy()
OPEN = AddressPolicy(allow_private=True)

PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "::1",
    "fd12:3456::1", "fc00::1", "fec0::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "2002:7f00:1::", "2002:c0a8:101::", "64:ff9b:1::a00:1",
]  # fmt: skip
NEVER = [
    "0.0.0.0", "::", "169.254.169.254", "169.254.1.1", "100.100.100.200", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
    "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1",
    "192.0.0.8", "2001:db8::1", "2001::1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::", "::8.8.8.8", "100::1", "192.88.99.1", "3fff::1", "4000::1",
    "2001:4860::5efe:169.254.169.254", "2606:4700::200:5efe:169.254.169.254",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::",
]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as files:
        files.add("/x", b"content")
        yield files


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Answers of the resolver by name, one list per look-up; the last one stays."""
    answers: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, *arguments: object, **named: object) -> object:
        if host not in answers:
            return real(host, *arguments, **named)  # type: ignore[arg-type]  # passed on as they came
        found = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, arguments[0])) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return answers


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    check_address(ipaddress.ip_address(address), STRICT)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_need_the_policy(address: str) -> None:
    with pytest.raises(AddressRefused):
        check_address(ipaddress.ip_address(address), STRICT)
    check_address(ipaddress.ip_address(address), OPEN)


@pytest.mark.parametrize("address", NEVER)
def test_some_addresses_are_never_for_models(address: str) -> None:
    for policy in (STRICT, OPEN):
        with pytest.raises(AddressRefused):
            check_address(ipaddress.ip_address(address), policy)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x", "file:///etc/passwd", "gopher://example.com/", "javascript:alert(1)", "//example.com/x",
        "https://user@example.com/", "https://user:pw@example.com/", "https://:pw@example.com/", "http:///x",
        "http://example.com:0/", "http://example.com:22/", "http://example.com:99999/", "http://[::1]/",
        "http://127.0.0.1/", "http://[::ffff:7f00:1]/", "http://[fe80::1%25eth0]/", "", "x",
    ],
)  # fmt: skip
def test_urls_that_no_fetch_may_have(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_url(url, STRICT)


def test_urls_that_pass_and_hosts_that_are_trusted() -> None:
    for url in (
        "https://example.com/x",
        "http://example.com:8080/x",
        "https://[2606:4700::1111]/x",
        "https://bücher.example/x",
    ):
        check_url(url, STRICT)
    check_url("http://127.0.0.1:22/", AddressPolicy(allowed_hosts=frozenset({"127.0.0.1"})))
    trusting = STRICT.trusting("http://[::1]:9000/hub")
    check_url("http://[::1]:9000/other", trusting)
    with pytest.raises(AddressRefused):
        check_url("http://[::1]:9001/other", trusting)


def test_a_refusal_does_not_repeat_the_secret() -> None:
    with pytest.raises(AddressRefused) as refused:
        check_url("https://user:hunter2@example.com/?token=hunter2", STRICT)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "017700000001", "127.1"])
async def test_loopback_is_refused_in_every_spelling(server: FileServer, host: str) -> None:
    async with guarded_client(STRICT) as client:
        with pytest.raises(AddressRefused):
            await client.get(f"http://{host}:{server.port}/x")
    assert not server.seen


async def test_a_name_with_one_private_address_is_refused(names: dict[str, list[list[str]]]) -> None:
    names["mixed.example"] = [["8.8.8.8", "10.0.0.1"]]
    with pytest.raises(AddressRefused) as refused:
        await resolve("mixed.example", 443, STRICT)
    assert "mixed.example" in str(refused.value)


async def test_the_connection_goes_to_the_address_that_was_judged(
    server: FileServer, names: dict[str, list[list[str]]]
) -> None:
    # the second answer would be refused: it must never be asked for
    names["model.example"] = [["127.0.0.1"], ["169.254.169.254"]]
    async with guarded_client(OPEN) as client:
        answer = await client.get(f"http://model.example:{server.port}/x")
    assert answer.content == b"content"
    assert server.seen[0].headers["host"] == f"model.example:{server.port}"
    assert len(names["model.example"]) == 1


async def test_redirects_pass_the_guard_and_leave_secrets_behind(server: FileServer) -> None:
    with FileServer() as other:
        target = other.add("/y", b"other")
        trusting = STRICT.trusting(server.url)
        async with guarded_client(trusting, headers={"Authorization": "Bearer s3cret", "Cookie": "a=b"}) as client:
            with pytest.raises(AddressRefused):
                await client.get(server.redirect("/to-other", target))
            with pytest.raises(AddressRefused):
                await client.get(server.redirect("/to-userinfo", f"http://u:p@127.0.0.1:{server.port}/x"))
        assert not other.seen
        async with guarded_client(OPEN, headers={"Authorization": "Bearer s3cret", "Cookie": "a=b"}) as client:
            assert (await client.get(server.redirect("/to-other", target))).content == b"other"
        assert server.seen[-1].headers["authorization"] == "Bearer s3cret"
        assert not {"authorization", "cookie"} & set(other.seen[-1].headers)


async def test_the_environment_names_no_proxy(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("ALL_PROXY", proxy.url)
        async with guarded_client(OPEN) as client:
            assert (await client.get(f"{server.url}/x")).status_code == 200
        assert not proxy.seen


async def test_the_name_in_tls_is_that_of_the_url(names: dict[str, list[list[str]]]) -> None:
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda connection, name, _: asked.append(name)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        names["model.example"] = [["127.0.0.1"]]

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                context.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        async with guarded_client(OPEN) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"https://model.example:{port}/x")
        thread.join()
    assert asked == ["model.example"]


async def test_an_unknown_host_is_a_failure_to_connect(names: dict[str, list[list[str]]]) -> None:
    async with guarded_client(STRICT) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://none.invalid/x")
        with pytest.raises((AddressRefused, httpx.ConnectError)):
            await client.get(f"http://{'a' * 300}.example/x")
