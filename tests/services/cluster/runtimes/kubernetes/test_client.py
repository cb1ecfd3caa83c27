import asyncio
import gzip
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest

from services.cluster.runtimes.kubernetes import permissions
from services.cluster.runtimes.kubernetes.client import KubernetesClient, Limits
from shared.error_codes import CODES
from shared.jobs.outcomes import Permanent, Retry, StepError
from shared.security.kubeconfig import Kubeconfig, KubeconfigPolicy, parse
from shared.security.kubeconfig_server import ServerPolicy
from tests.testbed.certificates import DAY, Authority, as_yaml, authority, encoded, kubeconfig
from tests.testbed.tls_server import (
    VERSION,
    Answer,
    Handler,
    Request,
    Server,
    http,
    never,
    plain,
    serving,
    silent,
    status,
)

LOOPBACK = ServerPolicy(allow_loopback=True)
QUICK = Limits(connect=0.5, read=0.3, total=0.8, max_answer=1 << 20, page=2, max_items=50)
PATIENT = Limits(max_answer=1 << 20, page=2, max_items=50)
TOKEN = "sekret-token"


def config(url: str, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Kubeconfig:
    document = kubeconfig(cluster={"server": url, **(cluster or {})}, user=user)
    return parse(as_yaml(document), KubeconfigPolicy(addresses=LOOPBACK, allow_insecure=True))


def client(found: Kubeconfig | Server, limits: Limits = PATIENT) -> KubernetesClient:
    found = config(found.url) if isinstance(found, Server) else found
    return KubernetesClient(found, addresses=LOOPBACK, limits=limits)


async def fault(found: Kubeconfig | Server, limits: Limits = PATIENT) -> StepError:
    """What asking for the version raises; no secret is in it, nor in what it was raised from."""
    async with client(found, limits) as cluster:
        with pytest.raises(StepError) as caught:
            await cluster.version()
    error = caught.value
    assert error.code in CODES
    assert CODES[error.code].retryable == isinstance(error, Retry)
    assert TOKEN not in f"{error} {error!r} {error.__cause__!r}"
    assert error.__cause__ is None
    return error


def always(answer: Answer) -> Handler:
    return lambda request: answer


async def dribble(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.1)


async def cut(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"gitVersion"')
    await writer.drain()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


ANSWERS: list[tuple[str, str, type[StepError], Answer]] = [
    ("a web page", "not_kubernetes", Permanent, http(b"<html>hello</html>", Content_Type="text/html")),
    ("a page that is not there", "not_kubernetes", Permanent, http(b"<html>404</html>", 404)),
    ("a page that is forbidden", "not_kubernetes", Permanent, http(b"<html>403</html>", 403)),
    ("a crashing web server", "not_kubernetes", Permanent, http(b"oops", 500)),
    ("another API", "not_kubernetes", Permanent, http({"version": "1.2"})),
    ("a list", "not_kubernetes", Permanent, http([VERSION])),
    ("a version without numbers", "not_kubernetes", Permanent, http({"gitVersion": "vNext.x"})),
    ("a version that is a number", "not_kubernetes", Permanent, http({"gitVersion": 1.31})),
    ("very deep JSON", "not_kubernetes", Permanent, http(b"[" * 200_000)),
    ("a huge number", "not_kubernetes", Permanent, http(b'{"gitVersion": ' + b"9" * 9000 + b"}")),
    ("not HTTP", "not_kubernetes", Permanent, b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ("bad credentials", "unauthorized", Permanent, status(401)),
    ("a web page for members", "unauthorized", Permanent, http(b"<html>401</html>", 401)),
    ("not allowed", "forbidden", Permanent, status(403)),
    ("a fault inside", "unavailable", Retry, status(500)),
    ("overload", "unavailable", Retry, status(429)),
    ("a gateway without its backend", "unavailable", Retry, http(b"<html>502</html>", 502)),
    ("a list that expired between its pages", "unavailable", Retry, status(410)),
    ("a strange refusal", "request_refused", Permanent, status(422)),
    ("a redirect", "redirects", Permanent, http(b"", 302, Location="https://127.0.0.1:1/version")),
    ("a redirect to plain http", "redirects", Permanent, http(b"", 307, Location="http://169.254.169.254/")),
    ("too much", "answer_too_large", Permanent, http(b" " * (2 << 20))),
    ("a bomb", "answer_too_large", Permanent, http(gzip.compress(b" " * (64 << 20)), Content_Encoding="gzip")),
    ("an answer cut short", "unavailable", Retry, cut),
    ("no answer but the end", "unavailable", Retry, hang_up),
]


@pytest.mark.parametrize(("code", "kind", "answer"), [pytest.param(*rest, id=name) for name, *rest in ANSWERS])
async def test_answers_that_are_no_version(code: str, kind: type[StepError], answer: Answer) -> None:
    async with serving(always(answer)) as server:
        error = await fault(server)
    assert (error.code, type(error)) == (f"cluster_{code}", kind)


@pytest.mark.parametrize("answer", [never, dribble], ids=["never", "dribble"])
async def test_a_server_that_hangs(answer: Answer) -> None:
    async with serving(always(answer)) as server:
        error = await fault(server, QUICK)
    assert (error.code, type(error)) == ("cluster_answer_timeout", Retry)


async def test_a_server_that_does_not_even_speak_tls() -> None:
    async with silent() as server:
        assert (await fault(server, QUICK)).code == "cluster_connect_timeout"


async def test_a_closed_port() -> None:
    with socket.socket() as held:  # bound and not listening: nobody else gets the port
        held.bind(("127.0.0.1", 0))
        error = await fault(config(f"https://127.0.0.1:{held.getsockname()[1]}"))
    assert (error.code, type(error)) == ("cluster_refused", Retry)


async def test_plain_http_behind_an_https_url() -> None:
    async with plain() as server:
        error = await fault(server)
    assert (error.code, type(error)) == ("cluster_tls_failed", Permanent)


async def test_a_wrong_authority() -> None:
    async with serving(always(http(VERSION)), pair=Authority.make().issue("x", names=("127.0.0.1",))) as server:
        error = await fault(server)
        assert (error.code, type(error)) == ("cluster_certificate_untrusted", Permanent)
        other = config(server.url, cluster={"certificate-authority-data": None})
        assert (await fault(other)).code == "cluster_certificate_untrusted"
        unverified = {"certificate-authority-data": None, "insecure-skip-tls-verify": True}
        async with client(config(server.url, cluster=unverified)) as cluster:
            assert (await cluster.version()).minor == 31
    assert len(server.requests) == 1


async def test_a_certificate_for_another_name() -> None:
    async with serving(always(http(VERSION)), pair=authority().issue("x", names=("kubernetes",))) as server:
        assert (await fault(server)).code == "cluster_certificate_name"
        async with client(config(server.url, cluster={"tls-server-name": "kubernetes"})) as cluster:
            assert (await cluster.version()).version == "v1.31.2"


async def test_an_expired_certificate_of_the_server() -> None:
    old = authority().issue("x", names=("127.0.0.1",), start=-2 * DAY, end=-DAY)
    async with serving(always(http(VERSION)), pair=old) as server:
        assert (await fault(server)).code == "cluster_certificate_expired"


async def test_retry_after_is_honoured_within_bounds() -> None:
    for given, expected in (("7", 7.0), ("999999", 60.0), ("Fri, 31 Dec 1999 23:59:59 GMT", None)):
        async with serving(always(status(503, Retry_After=given))) as server:
            error = await fault(server)
        assert isinstance(error, Retry)
        assert error.after == expected


async def resolves_to(monkeypatch: pytest.MonkeyPatch, *found: str | OSError) -> None:
    """Names resolve to these addresses, as a name server of a stranger may say."""

    async def getaddrinfo(host: str, port: int, **rest: Any) -> list[Any]:
        for one in found:
            if isinstance(one, OSError):
                raise one
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (str(one), port)) for one in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


async def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    await resolves_to(monkeypatch, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
    error = await fault(config("https://cluster.example:6443"))
    assert (error.code, type(error)) == ("cluster_name_not_found", Retry)


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "0.0.0.0", "224.0.0.1"])
async def test_a_name_that_leads_where_it_must_not(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    await resolves_to(monkeypatch, "203.0.113.1", address)
    async with KubernetesClient(config("https://cluster.example:6443")) as cluster:
        with pytest.raises(Permanent) as caught:
            await cluster.version()
    assert caught.value.code == "cluster_address_refused"


async def test_a_literal_address_is_checked_again() -> None:
    with pytest.raises(Permanent) as caught:
        KubernetesClient(config("https://127.0.0.1:6443"))
    assert caught.value.code == "cluster_address_refused"


async def test_sends_the_token_and_takes_nothing_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with serving(always(http(VERSION, Set_Cookie="a=b"))) as server, client(server) as cluster:
        await cluster.version()
        await cluster.version()
        assert TOKEN not in repr(cluster)
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        assert "cookie" not in request.headers


async def test_a_client_certificate_is_on_disk_only_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pair = authority().issue("someone")
    user = {"token": None, "client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)}
    async with serving(always(http(VERSION)), clients=authority()) as server:
        for _ in range(2):  # the official loader's table would name a deleted file the second time
            async with client(config(server.url, user=user)) as cluster:
                assert list(tmp_path.iterdir()) == []
                await cluster.version()
        assert server.requests[0].peer is not None
        assert ("commonName", "someone") in [pair for (pair,) in server.requests[0].peer["subject"]]
        error = await fault(server)  # TLS 1.3 says no only after the handshake, by hanging up
    assert error.code == "cluster_unavailable"


def pages(request: Request) -> bytes:
    """Five items in pages of two."""
    start = int(request.target.partition("continue=")[2] or "0")
    items = [{"metadata": {"name": f"n{number}"}} for number in range(start, min(start + 2, 5))]
    return http({"items": items, "metadata": {"continue": str(start + 2)} if start + 2 < 5 else {}})


async def test_lists_are_read_page_by_page() -> None:
    async with serving(pages) as server, client(server) as cluster:
        found = [item["metadata"]["name"] async for item in cluster.items("/api/v1/nodes")]
    assert found == ["n0", "n1", "n2", "n3", "n4"]
    assert [request.target for request in server.requests] == [
        "/api/v1/nodes?limit=2",
        "/api/v1/nodes?limit=2&continue=2",
        "/api/v1/nodes?limit=2&continue=4",
    ]


async def test_a_list_without_an_end_is_given_up() -> None:
    endless = http({"items": [{}, "x"], "metadata": {"continue": "more"}})
    async with serving(always(endless)) as server, client(server) as cluster:
        with pytest.raises(Permanent) as caught:
            _ = [item async for item in cluster.items("/api/v1/nodes")]
    assert caught.value.code == "cluster_answer_too_large"
    assert len(server.requests) == 26


@pytest.mark.parametrize("answer", [{"items": "x", "metadata": {}}, {"items": []}, {"metadata": []}])
async def test_a_list_that_is_none(answer: dict[str, Any]) -> None:
    async with serving(always(http(answer))) as server, client(server) as cluster:
        with pytest.raises(Permanent) as caught:
            _ = [item async for item in cluster.items("/api/v1/nodes")]
    assert caught.value.code == "cluster_not_kubernetes"


async def test_the_first_fault_among_many_questions_is_raised_plainly() -> None:
    async with serving(always(status(401))) as server, client(server) as cluster:
        with pytest.raises(Permanent) as caught:
            await permissions.missing(cluster)
    assert caught.value.code == "cluster_unauthorized"


@pytest.mark.parametrize("answer", [{}, {"status": []}, {"status": {"allowed": "true"}}, {"status": {"allowed": 1}}])
async def test_only_a_plain_yes_is_a_permission(answer: dict[str, Any]) -> None:
    async with serving(always(http(answer, 201))) as server, client(server) as cluster:
        assert await permissions.missing(cluster, permissions.NEEDED[:3]) == list(permissions.NEEDED[:3])
    asked = [json.loads(request.body)["spec"]["resourceAttributes"] for request in server.requests]
    assert sorted(one["verb"] for one in asked) == ["get", "list", "watch"]
